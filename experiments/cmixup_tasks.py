"""Few-shot regression: a start from which a few steps learn a new task, meta-trained on tasks mixed within themselves.

A record is a task, x [S+Q, ...] and y [S+Q, D]; partners come from the task's own support and query.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import models
from mixcon.data import Source, eval_batches
from mixcon.errors import InputError
from mixcon.evals.regression import rmse
from mixcon.mixers.linear import cmixup, mixup
from mixcon.mixers.plan import mix, mix_targets
from mixcon.train.assemble import assemble
from mixcon.train.meta import adapt, split_task
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

PARTNERS = ("none", "uniform", "label")


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Tasks, network and mixing as the config names them; `config.gradient` is `mixcon.train.meta.maml`."""
    model = models.functional(models.build(configs.plain(config.model)))
    task = task_of(config.mixer, model)
    known, unknown = (configs.partial(piece)(seed=config.seed) for piece in (config.data.train, config.data.test))
    return assemble(
        config,
        init=lambda key: (*model.init(key), {}),
        task=task,
        source=known,
        evals={"test": evaluator(config.gradient, task, unknown)},
    )


def task_of(mixer: ml_collections.ConfigDict, model: models.Model) -> Task:
    """Mean squared error of one task's examples, mixed with each other or not."""
    if mixer.partner not in PARTNERS:
        raise InputError(f"mixer.partner={mixer.partner!r} is unknown; {configs.nearest(mixer.partner, PARTNERS)}")

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        x, y = batch["x"], batch["y"]
        if mixer.partner == "none":
            return {"x": x, "y": y}
        if mixer.partner == "uniform":
            plan = mixup(key, x, alpha=mixer.alpha, per=mixer.per)
        else:
            plan = cmixup(key, x, labels=y, bandwidth=mixer.bandwidth, alpha=mixer.alpha, per=mixer.per)
        return {"x": mix(plan, x), "y": mix_targets(plan, y)}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        return {"pred": model.apply(params, extra, batch["x"], key=key, train=train)[0]}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        return jnp.square(reps["pred"] - batch["y"]).mean(), {}, state

    return Task(prepare, encode, objective)


def evaluator(maml: ml_collections.ConfigDict, task: Task, source: Source) -> Evaluator:
    """Error on the queries of unknown tasks, before and after the steps on their unmixed supports."""
    whole = eval_batches(source, batch_size=len(source))[0]
    x, y = whole["x"], whole["y"]

    @jax.jit
    def score(state: TrainState, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        def loss(params: dict, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
            reps, _ = task.encode(params, state.extra, batch, key=key, train=False)
            return task.objective(params, state.objective, reps, batch, key=key, step=state.step)[:2]

        def predict(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            known, asked = split_task({"x": x, "y": y}, maml.support)
            moved = adapt(
                loss, state.params, known, jax.random.key(0),
                rate=maml.rate, steps=maml.inner_steps, adapted=maml.get("adapted", ""),
            )  # fmt: skip
            before, after = (
                task.encode(params, state.extra, asked, key=None, train=False)[0]["pred"]
                for params in (state.params, moved)
            )
            return before, after

        before, after = jax.vmap(predict)(x, y)
        asked = y[:, maml.support :]
        return {"rmse": rmse(after, asked), "rmse_before": rmse(before, asked)}

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        found: dict[str, np.ndarray] = jax.device_get(score(state, x, y))
        yield from ((name, float(value)) for name, value in found.items())

    return evaluate
