"""Contrast of two descriptions of one thing with a learned temperature: how much noise does more data make up for?

Images and texts are `experiments.clip`; here are two tables of numbers, `config.views`, some rows of which may belong
to another thing.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import jax
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
    """Towers, temperature, loss and data as the config names them."""
    source = configs.call(config.data.train)
    views = two_views(config.views, source[0])
    towers = {view: models.functional(models.build(configs.plain(config.towers[view]))) for view in views}
    scale = models.functional(lambda rngs: LogitScale(**configs.plain(config.logit_scale)))
    loss = pair_objective(config.objective, num_examples=len(source))
    lowest, highest = configs.bounds("logit_scale_range", config.logit_scale_range)

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        made = {view: towers[view].init(k) for view, k in zip(views, jax.random.split(key, len(views)), strict=True)}
        params, extra = ({view: pair[i] for view, pair in made.items()} for i in (0, 1))
        return params | {"logit_scale": scale.init(key)[0]}, extra, loss.init()

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        return {name: batch[name] for name in (*views, "index")}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        reps, new = {}, dict(extra)
        for view in views:
            out, new[view] = towers[view].apply(params[view], extra[view], batch[view], key=key, train=train)
            reps[view] = models.l2_normalize(out["embedding"])
        return reps, new

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        multiplier, bias = models.read_logit_scale(params["logit_scale"])
        learned = {"logit_scale": multiplier, "logit_bias": bias, "index": batch["index"], "epoch": 0}
        value, aux, state = loss.apply(state, *(reps[view] for view in views), **learned)
        return value, aux | {"logit_scale": multiplier}, state

    def embedded(state: TrainState, held_out: data.Source) -> dict[str, np.ndarray]:
        def features(batch: Batch) -> dict[str, jax.Array]:
            return encode(state.averaged, state.extra, batch, key=None, train=False)[0]

        return embed(features, data.eval_batches(held_out, batch_size=EVAL_BATCH, **process_share()))

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        constrain=lambda params: models.clamp_logit_scale(params, low=lowest, high=highest),
        source=source,
        evals={name: evaluator(configs.call(piece), views, embedded) for name, piece in config.data.evals.items()},
    )


def evaluator(held_out: data.Source, views: tuple[str, str], embedded: Callable[..., dict]) -> Evaluator:
    """Retrieval between the views of a held-out set, both ways and their mean."""

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        found = embedded(state, held_out)
        there, back = (evals.retrieval(found[a], found[b], ks=(1,)) for a, b in (views, views[::-1]))
        yield from ((f"{views[0]}_to_{views[1]}/R@1", there["R@1"]), (f"{views[1]}_to_{views[0]}/R@1", back["R@1"]))
        yield "R@1", (there["R@1"] + back["R@1"]) / 2
        yield "R@1/chance", there["R@1/chance"]

    return evaluate
