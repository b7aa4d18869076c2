"""Regression with mixed examples: whom an example is mixed with, and before or after the first block, is the config's.

A batch is B couples, example and partner: partners drawn by labels over the whole training set are read along with it.
Shapes: B batch, D outputs; x [B, ...], y [B, D]; a couple has an axis of 2 after B.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mixcon import config as configs
from mixcon import models
from mixcon.data import partners, sampling
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.evals.regression import regression_report
from mixcon.mixers.draw import check_positive, sample_weight
from mixcon.mixers.partner import label_kernel_partner
from mixcon.mixers.plan import Plan, mix, mix_targets
from mixcon.train.assemble import assemble
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

FROM_SET = ("uniform", "label", "input")  # drawn on the host, out of all training examples
FROM_POOL = ("label_in_batch", "representation")  # drawn on the device, out of the batch and as many random others


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Data, network and mixing as the config names them."""
    check_mixer(config.mixer)
    sets = configs.partial(config.data.sets)(seed=config.seed)
    model = models.functional(models.build(configs.plain(config.model)))
    return assemble(
        config,
        init=lambda key: (*model.init(key), {}),
        task=mixing_task(config.mixer, model),
        source=sets.train,
        sampler=sampler(config, sets.train),
        evals={name: evaluator(model, getattr(sets, name)) for name in ("valid", "test")},
    )


def check_mixer(mixer: ml_collections.ConfigDict) -> None:
    """Refuse what cannot be mixed."""
    for key, known in (("partner", ("none", *FROM_SET, *FROM_POOL)), ("at", ("input", "hidden"))):
        if mixer[key] not in known:
            raise InputError(f"mixer.{key}={mixer[key]!r} is unknown; {configs.nearest(mixer[key], known)}")
    check_positive("mixer.alpha", mixer.alpha)
    check_positive("mixer.bandwidth", mixer.bandwidth)


def sampler(config: ml_collections.ConfigDict, train: Arrays) -> sampling.Sampler:
    """Examples in shuffled or fixed epochs and, unless they stay alone, somebody beside each."""
    mixer, seed = config.mixer, config.seed
    labels = partners.check_values(train.columns["y"])
    own = sampling.uniform(len(train), config.batch_size, seed=seed, shuffle=config.data.reshuffle)
    if mixer.partner == "none":
        return own
    if mixer.partner not in ("label", "input"):
        return partners.paired(own, partners.uniform_partner(len(train), seed=seed))
    values = labels if mixer.partner == "label" else standard(train.columns["x"])
    draw = partners.kernel_partner(values, bandwidth=mixer.bandwidth, kernel=mixer.kernel, seed=seed)
    return partners.paired(own, draw)


def mixing_task(mixer: ml_collections.ConfigDict, model: models.Model) -> Task:
    """Mean squared error, of mixed examples unless they stay alone."""

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        if mixer.partner == "none":
            return {"x": batch["x"], "y": batch["y"]}
        if len(batch["y"]) % 2:
            raise InputError(f"a batch of couples has an even number of rows, not {len(batch['y'])}")
        couples = {name: batch[name].reshape(-1, 2, *batch[name].shape[1:]) for name in ("x", "y")}
        return couples | {"weight": sample_weight(key, len(couples["y"]), alpha=mixer.alpha, per=mixer.per)}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        keys = dict(zip(("partner", "features", "head"), jax.random.split(key, 3), strict=True))

        def part(name: str, x: jax.Array, train: bool = train) -> jax.Array:
            return model.apply(params, extra, x, key=keys[name], train=train, method=name)[0]

        if mixer.partner == "none":
            return {"pred": part("head", part("features", batch["x"])), "y": batch["y"]}, extra
        x, y = (jnp.concatenate([batch[name][:, 0], batch[name][:, 1]]) for name in ("x", "y"))  # [2B, ...]
        size = len(batch["weight"])
        partner = size + jnp.arange(size)  # who was read along
        if mixer.partner in FROM_POOL:
            near = y if mixer.partner == "label_in_batch" else standard(part("features", x, train=False))
            near = jax.lax.stop_gradient(near)
            partner = label_kernel_partner(
                keys["partner"], near[:size], near, bandwidth=mixer.bandwidth, kernel=mixer.kernel
            )
        plan = Plan(partner, batch["weight"])

        def mixed(values: jax.Array) -> jax.Array:
            return jax.tree.map(lambda v: mix(plan, v[:size], v), values)

        features = part("features", mixed(x)) if mixer.at == "input" else mixed(part("features", x))
        return {"pred": part("head", features), "y": mix_targets(plan, y[:size], bank=y)}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        return jnp.square(reps["pred"] - reps["y"]).mean(), {}, state

    return Task(prepare, encode, objective)


def standard(x: Any) -> Any:
    """Rows [N, ...] as vectors [N, F] in units of their spread `sqrt(Σ_f var)`; NumPy or JAX arrays.

    A bandwidth in these units means the same for inputs and for hidden features, whose scale changes in training.
    """
    flat = x.reshape(len(x), -1)
    return flat / (flat.var(axis=0).sum() ** 0.5 + 1e-12)


def evaluator(model: models.Model, part: Arrays) -> Evaluator:
    """Errors on a whole held-out set, in one compiled call."""
    x, y, group = (part.columns.get(name) for name in ("x", "y", "group"))

    @jax.jit
    def score(params: dict, extra: dict, x: jax.Array, y: jax.Array) -> dict:
        return dict(regression_report(model.apply(params, extra, x)[0], y, group))

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        found = jax.device_get(score(state.averaged, state.extra, x, y))
        yield from ((name, float(value)) for name, value in found.items())

    return evaluate
