"""Contrast with the whole data set and a temperature for every example: of two augmentations, or of two views.

`config.views` names the field of each view: the same one twice is augmented twice and has one tower (unimodal), two
names have two towers (bimodal). `config.logit_scale` learns one temperature for all, for objectives that take it.
Images and captions are `experiments.clip` with the same objectives.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.data.records import two_views
from mixcon.evals.embed import embed
from mixcon.models.heads import LogitScale
from mixcon.train.assemble import assemble, process_share
from mixcon.train.objective import pair_objective
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 500


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Towers, objective, data and evaluations as the config names them."""
    source = configs.call(config.data.train)
    first, second = two_views(config.views, source[0])
    towers = {view: models.functional(models.build(configs.plain(config.towers[view]))) for view in (first, second)}
    augment = data.augment.compose(*map(configs.partial, config.augment))
    pixels = data.augment.pixels(augment, mean=config.image_mean, std=config.image_std)
    loss = pair_objective(config.objective, num_examples=len(source))
    first_scale = config.logit_scale
    scale = models.functional(lambda rngs: LogitScale(first_scale)) if first_scale else None
    steps_per_epoch = max(len(source) // config.batch_size, 1)

    def ready(x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images, or features, which are not normalised."""
        if x.dtype == jnp.uint8:
            return pixels(x, key)
        return x if key is None else augment(key, x)

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        keys = jax.random.split(key, len(towers))
        made = {view: tower.init(k) for k, (view, tower) in zip(keys, towers.items(), strict=True)}
        params, extra = ({view: pair[i] for view, pair in made.items()} for i in (0, 1))
        if scale:
            params["logit_scale"] = scale.init(key)[0]
        return params, extra, loss.init()

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        one, other = jax.random.split(key)
        return {"first": ready(batch[first], one), "second": ready(batch[second], other), "index": batch["index"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        reps = {}
        for name, view, k in zip(("first", "second"), (first, second), jax.random.split(key), strict=True):
            out, new = towers[view].apply(params[view], extra[view], batch[name], key=k, train=train)
            reps[name], extra = models.l2_normalize(out["embedding"]), extra | {view: new}
        return reps, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        told = {"index": batch["index"], "epoch": step // steps_per_epoch}
        if scale:
            told["logit_scale"], _ = models.read_logit_scale(params["logit_scale"])
        value, metrics, state = loss.apply(state, reps["first"], reps["second"], **told)
        return value, metrics | ({"logit_scale": told["logit_scale"]} if scale else {}), state

    def embedded(state: TrainState, held_out: data.Source) -> dict[str, np.ndarray]:
        params = state.averaged

        def features(batch: Batch) -> dict[str, jax.Array]:
            found = {}
            for view, tower in towers.items():
                out, _ = tower.apply(params[view], state.extra[view], ready(batch[view]), key=None, train=False)
                found[view] = models.l2_normalize(out["embedding"])
                found[f"{view}/probed"] = found[view] if config.probe == "embedding" else out["features"]
            return found | {"label": batch["label"]}

        return embed(features, data.eval_batches(held_out, batch_size=EVAL_BATCH, **process_share()))

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        constrain=lambda params: models.clamp_logit_scale(params, low=1.0, high=100.0),
        source=source,
        evals=evaluators(config, source, embedded),
    )


def evaluators(
    config: ml_collections.ConfigDict, source: data.Source, embedded: Callable[..., dict[str, np.ndarray]]
) -> dict[str, Evaluator]:
    """Retrieval between the views and a class-balanced probe on each held-out set; temperatures by class."""
    views = list(dict.fromkeys(config.views))

    def evaluator(piece: ml_collections.ConfigDict) -> Evaluator:
        held_out = configs.call(piece)

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            known, shown = embedded(state, source), embedded(state, held_out)
            if len(views) == 2:
                there, back = (evals.retrieval(shown[a], shown[b], ks=(1,))["R@1"] for a, b in (views, reversed(views)))
                yield from ((f"{views[0]}_to_{views[1]}/R@1", there), (f"{views[1]}_to_{views[0]}/R@1", back))
                yield "R@1", (there + back) / 2
            features = [np.concatenate([found[f"{view}/probed"] for view in views], 1) for found in (known, shown)]
            labels, settings = (known["label"], shown["label"]), configs.plain(config.probe_settings)
            found = evals.linear_probe(features[0], labels[0], features[1], labels[1], balanced=True, **settings)
            yield "probe/top1", found["top1"]

        return evaluate

    def temperatures(state: TrainState) -> Iterator[tuple[str, float]]:
        labels = np.asarray([source[i]["label"] for i in range(len(source))])
        memories = state.objective.values() if isinstance(state.objective, dict) else [state.objective]
        kept = [np.asarray(jax.device_get(m.temperature)) for m in memories]
        yield from temperature_report(np.mean(kept, axis=0), labels)

    found = {name: evaluator(piece) for name, piece in config.data.evals.items()}
    individual = "isogclr" in config.objective.name and "label" in source[0]
    return found | {"temperature": temperatures} if individual else found


def temperature_report(temperature_N: np.ndarray, labels_N: np.ndarray) -> Iterator[tuple[str, float]]:
    """Mean temperatures of classes, and their correlation with the logarithm of the classes' sizes.

    "head" and "tail" are the three largest and the three smallest classes.
    """
    classes, sizes = np.unique(labels_N, return_counts=True)
    means = np.asarray([temperature_N[labels_N == c].mean() for c in classes])
    yield "mean", float(temperature_N.mean())
    yield "spread", float(temperature_N.std())
    by_size = np.argsort(-sizes, kind="stable")
    yield "head", float(means[by_size[:3]].mean())
    yield "tail", float(means[by_size[-3:]].mean())
    if np.ptp(sizes) and np.ptp(means):
        yield "correlation", float(np.corrcoef(np.log(sizes), means)[0, 1])
    yield from ((f"class_{c}", float(mean)) for c, mean in zip(classes, means, strict=True))
