"""Momentum contrast of two views (MoCo), with harder negatives mixed from the queue (MoCHi).

ShuffleBN. MoCo shuffles its keys over the devices because batch norm per device marks the keys of a device with the
statistics of their group, which is also the group of their queries: the positive can be told by the mark instead of the
picture. Here batch norm is over the global batch. All queries of a step share one set of statistics and all its keys
another, whatever the mesh, and a shuffle would change nothing; `tests/experiments/test_mochi.py` shows both. What
remains: the keys in the queue carry the statistics of earlier batches, so the positive can be told as far as the
statistics of B pictures differ from batch to batch (they do by 1/√B of a feature's spread: a third of what groups of
32 gave, at B = 256, shuffled or not). A norm without batch statistics leaves nothing.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, models
from mixcon.errors import InputError
from mixcon.evals import knn, linear_probe, uniformity
from mixcon.evals.embed import embed
from mixcon.objectives import Objective, l2_normalize
from mixcon.objectives.momentum import Mixing
from mixcon.train import mesh as meshes
from mixcon.train.assemble import assemble, process_share
from mixcon.train.gradients import ema_teacher, refuse_parts
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState, stream

Extra = dict[str, Any]


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Encoder and its slow copy, queue, loss, data and evaluations as the config names them."""
    refuse_parts(config.gradient.name, ("standard",), "its norms and its queue see one whole batch a step")
    source = configs.call(config.data.train)
    model = models.functional(models.build(configs.plain(config.model)))
    augment = data.augment.compose(*map(configs.partial, config.augment))
    pixels = data.augment.pixels(augment, mean=config.image_mean, std=config.image_std)
    contrast: Objective = configs.partial(config.objective)(
        dim=config.model.embed_dim, mixing=read_mixing(config, len(source) / config.batch_size)
    )

    def init(key: jax.Array) -> tuple[dict, Extra, Any]:
        model_key, queue_key = jax.random.split(key)
        params, stats = model.init(model_key)
        teacher, teacher_stats = jax.tree.map(jnp.copy, (params, stats))
        extra = {"stats": stats, "teacher": teacher, "teacher_stats": teacher_stats}
        return params, extra, contrast.init(queue_key)

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        keys = dict(zip(("query", "key"), jax.random.split(key), strict=True))
        views = {name: pixels(batch["image"], each) for name, each in keys.items()}
        return views | {name: batch[name] for name in ("index", "label") if name in batch}

    def encode(params: dict, extra: Extra, batch: Batch, *, key: Any, train: bool) -> tuple[dict, Extra]:
        """Batch norm sees all queries of the step together, and all keys: no shuffling of batches is needed."""
        query, stats = model.apply(params, extra["stats"], batch["query"], key=key, train=train)
        slow, slow_stats = model.apply(extra["teacher"], extra["teacher_stats"], batch["key"], key=key, train=train)
        unit = {"query": l2_normalize(query["embedding"]), "key": l2_normalize(slow["embedding"])}
        return unit, extra | {"stats": stats, "teacher_stats": slow_stats}

    def objective(params: dict, state: Any, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        ids = batch["index"] if config.exclude_own else None
        return contrast.apply(state, reps["query"], reps["key"], rng=key, step=step, ids=ids, labels=batch.get("label"))

    def embed_images(state: TrainState, images: data.Source) -> dict[str, np.ndarray]:
        """Features for the probe, unit embeddings, and labels."""

        def outputs(batch: Batch) -> dict[str, jax.Array]:
            ready = pixels(center(data.augment.unit_float(batch["image"])))
            out, _ = model.apply(state.averaged, state.extra["stats"], ready)
            return {"features": out["features"], "embedding": l2_normalize(out["embedding"]), "label": batch["label"]}

        return embed(outputs, data.eval_batches(images, batch_size=config.batch_size, **process_share()))

    def center(images: jax.Array) -> jax.Array:
        """What the augmentations would leave of the size: the middle."""
        high, wide = jax.eval_shape(augment, jax.random.key(0), images).shape[1:3]
        top, left = (images.shape[1] - high) // 2, (images.shape[2] - wide) // 2
        return images[:, top : top + high, left : left + wide]

    @jax.jit
    def judged(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """The pretext task with the views and mixtures of the next step: metrics, and the distance of views."""
        key = stream(0, "views", batch["index"][0])  # the same views for every seed
        ready = prepare(batch, key=key, step=state.step)
        reps, _ = encode(state.params, state.extra, ready, key=key, train=True)
        aux = objective(state.params, state.objective, reps, ready, key=key, step=state.step)[1]
        return aux | {"alignment": jnp.sum(jnp.square(reps["query"] - reps["key"]), axis=1).mean()}

    def pretext(state: TrainState, images: data.Source) -> dict[str, float]:
        """Means over whole batches."""
        batches = data.eval_batches(images, batch_size=config.batch_size, **process_share())
        spread = functools.partial(meshes.put_batch, sharding=meshes.batch_sharding(jax.sharding.get_mesh()))
        whole = min(len(images) // config.batch_size, config.pretext_batches)  # the last one may be padded
        found = jax.device_get([judged(state, spread(batches[i])) for i in range(whole)])
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        around=functools.partial(ema_teacher, momentum=config.teacher_momentum),
        evals=evaluators(config, source, embed_images, pretext),
    )


def read_mixing(config: ml_collections.ConfigDict, steps_per_epoch: float) -> Mixing | None:
    """The mixer of the config: none (MoCo) or mochi, its warm-up counted in steps."""
    options = dict(configs.plain(config.mixer))
    name = options.pop("name")
    if name == "none":
        return None
    if name != "mochi":
        raise InputError(f"mixer.name={name!r} is no mixer of negatives: none (MoCo) or mochi")
    return Mixing(warmup_steps=round(options.pop("warmup_epochs") * steps_per_epoch), **options)


def evaluators(
    config: ml_collections.ConfigDict, source: data.Source, embed_images: Callable, pretext: Callable
) -> dict[str, Evaluator]:
    """Probe and neighbours of each held-out set, geometry of its embeddings; how hard the pretext task is."""

    def evaluator(held_out: data.Source) -> Evaluator:
        def evaluate(state: TrainState) -> Any:
            known, new = embed_images(state, source), embed_images(state, held_out)
            labels = known["label"], new["label"]
            probe = linear_probe(known["features"], labels[0], new["features"], labels[1], method=config.probe)
            yield "probe", probe["top1"]
            neighbours = knn(known["embedding"], labels[0], new["embedding"], labels[1], k=10, temperature=None)
            yield "knn", neighbours["top1"]
            yield "uniformity", uniformity(new["embedding"])
            yield "alignment", pretext(state, held_out)["alignment"]
            task = pretext(state, source)
            yield from ((name, task[name]) for name in ("proxy_accuracy", "queue_accuracy"))

        return evaluate

    return {name: evaluator(configs.call(piece)) for name, piece in config.data.evals.items()}
