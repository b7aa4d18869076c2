"""A network contrasted with a memory of every training image, by a softmax, with or without hardness.

Measured is the geometry that the loss leaves behind: how uniform embeddings are, how tolerant of images of one class,
how far the nearest others are.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.evals.embed import embed
from mixcon.objectives import feature_bank
from mixcon.train.assemble import assemble, process_share
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState, stream

EVAL_BATCH = 500


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Network, memory, loss, data and evaluations as the config names them."""
    source = configs.call(config.data.train)
    model = models.functional(models.build(configs.plain(config.model)))
    augmentations = map(configs.partial, config.augment)
    view = data.augment.pixels(*augmentations, mean=config.image_mean, std=config.image_std)
    memory = feature_bank(
        len(source), config.model.embed_dim, contrast=configs.partial(config.objective), momentum=config.bank_momentum
    )

    def init(key: jax.Array) -> tuple[dict, dict, tuple]:
        model_key, memory_key = jax.random.split(key)
        return *model.init(model_key), memory.init(memory_key)

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        return {"image": view(batch["image"], key), "index": batch["index"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        out, extra = model.apply(params, extra, batch["image"], key=key, train=train)
        return {"embedding": models.l2_normalize(out["embedding"]), "features": out["features"]}, extra

    def objective(params: dict, state: tuple, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        return memory.apply(state, reps["embedding"], index=batch["index"])

    def embedded(state: TrainState, images: data.Source) -> dict[str, np.ndarray]:
        """Unit embeddings, also of one augmentation, features for the probe, and labels."""

        def outputs(batch: Batch) -> dict[str, jax.Array]:
            key = stream(0, "view", batch["index"][0])  # the same views for every seed
            seen, other = (
                encode(state.averaged, state.extra, {"image": image}, key=None, train=False)[0]
                for image in (view(batch["image"]), view(batch["image"], key))
            )
            return seen | {"view": other["embedding"], "label": batch["label"]}

        return embed(outputs, data.eval_batches(images, batch_size=EVAL_BATCH, **process_share()))

    held_out = {name: configs.call(piece) for name, piece in config.data.evals.items()}
    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        evals={name: evaluator(config, images, source, embedded) for name, images in held_out.items()},
    )


def evaluator(
    config: ml_collections.ConfigDict,
    held_out: data.Source,
    known: data.Source,
    embedded: Callable[..., Mapping[str, np.ndarray]],
) -> Evaluator:
    """Geometry of the embeddings of a held-out set, and how well classes are read from them."""
    method = config.probe if isinstance(config.probe, str) else configs.partial(config.probe)

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        shown, train = embedded(state, held_out), embedded(state, known)
        unit, labels = shown["embedding"], shown["label"]
        yield "uniformity", -evals.uniformity(unit)  # as the paper prints it: larger is more uniform
        yield "tolerance", evals.tolerance(unit, labels)
        yield "alignment", evals.alignment(unit, shown["view"])
        own, nearest = evals.neighbor_profile(unit, shown["view"], top=10)
        yield "profile/positive", own
        yield from ((f"profile/nearest_{rank}", float(value)) for rank, value in enumerate(nearest, 1))
        neighbours = evals.knn(train["embedding"], train["label"], unit, labels, k=1, temperature=None)
        yield "knn", neighbours["top1"]
        for name in ("embedding", "features"):
            probe = evals.linear_probe(train[name], train["label"], shown[name], labels, method=method)
            yield f"linear/{name}", probe["top1"]

    return evaluate
