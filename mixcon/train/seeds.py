"""Several seeds of one config side by side under `vmap`: one program, and one dispatch a step for all of them.

Worth it where a step is so small that its dispatch counts; the results are each seed's own up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon.errors import InputError
from mixcon.train.state import Batch, Evaluator, Experiment, Metrics, PyTree, TrainState, init_state

UNTOLD = r"0x[0-9a-f]+|\d+:i32\[\] -1:i32\[\]"  # in a printed program: addresses, and how checkify counts its checks
NAME = "seed_{}"  # of an evaluator's results, and of the folder of a seed's own files


def of_config(config: ml_collections.ConfigDict) -> np.ndarray:
    """The seed of a config, or all of them where it has `seeds`."""
    return np.asarray(config.get("seeds", config.seed), np.uint32)


def with_seeds(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> ml_collections.ConfigDict:
    """A config whose seeds run side by side.

    Example:
      >>> train(with_seeds(configs.load("configs/cmixup.py:airfoil"), range(5)), "runs/airfoil")
    """
    found = config.copy_and_resolve_references()
    with found.unlocked():
        found.seeds = tuple(seeds)
    return found


def alone(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """The config of one of its seeds."""
    found = config.copy_and_resolve_references()
    with found.unlocked():
        del found.seeds
        found.seed = seed
    return found


def side_by_side(experiments: Sequence[Experiment], seeds: Sequence[int], *, ema: bool) -> Experiment:
    """One experiment of several whose steps compute the same function of state and batch.

    Every array of the state and of a batch has the seeds as its first axis. Metrics are means over the seeds; bad
    steps are the worst seed's. Evaluators are those of every seed: `test` becomes `seed_0/test`, `seed_1/test`, ...

    Args:
      experiments: one for each seed, of the same shapes.
      seeds: theirs.
      ema: whether their states keep an average.

    Raises:
      InputError: more than one device; a pretrained start, arrays fixed on the device, or a patience, which are each
        seed's own; steps that differ (a constant in them depends on the seed).
    """
    first = experiments[0]
    if jax.sharding.get_abstract_mesh().size > 1:
        raise InputError("seeds run side by side on one device only; run them one by one")
    if first.pretrained is not None or first.fixed or first.patience:
        raise InputError("pretrained parameters, fixed arrays and patience are one seed's own; run seeds one by one")
    refuse_different(experiments, seeds, ema=ema)
    vmapped = jax.vmap(first.step)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = vmapped(state, batch)
        return state, {k: jnp.max(v) if k == "halted_at" else jnp.mean(v) for k, v in metrics.items()}

    return first._replace(
        step=step,
        task=None,
        batches=lambda: Stacked([each.batches() for each in experiments]),
        evals={
            f"{NAME.format(seed)}/{name}": of_one(evaluator, row)
            for row, (seed, each) in enumerate(zip(seeds, experiments, strict=True))
            for name, evaluator in each.evals.items()
        },
    )


def refuse_different(experiments: Sequence[Experiment], seeds: Sequence[int], *, ema: bool) -> None:
    """The first state and the step of the first experiment serve all only if they are those of all."""

    def traced(each: Experiment) -> tuple[str, list[np.ndarray]]:
        batch = {k: v for k, v in next(each.batches()).items() if k != "skipped"}

        def begin(seed: np.ndarray, batch: Batch) -> tuple[TrainState, Metrics]:
            return each.step(init_state(each, seed, ema=ema), batch)

        closed = jax.make_jaxpr(begin)(np.uint32(0), batch)
        return re.sub(UNTOLD, "", str(closed.jaxpr)), [np.asarray(c) for c in closed.consts]

    (text, constants), *others = map(traced, experiments)
    for seed, (other_text, other_constants) in zip(seeds[1:], others, strict=True):
        if text != other_text or not all(map(np.array_equal, constants, other_constants)):
            raise InputError(
                f"seed {seed} does not compute what seed {seeds[0]} does, with other keys: something in its first "
                "state or step depends on the seed; run seeds one by one"
            )


def of_one(evaluator: Evaluator, row: int) -> Evaluator:
    """An evaluator of the state of one seed."""

    def evaluate(state: TrainState) -> Iterator[tuple[str, float | Mapping[str, np.ndarray]]]:
        yield from evaluator(jax.tree.map(lambda x: x[row], state))

    return evaluate


class Stacked:
    """Batches of several iterators in step."""

    def __init__(self, iterators: Sequence[Any]):
        self.iterators = iterators

    def __iter__(self) -> Stacked:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return jax.tree.map(lambda *rows: np.stack(rows), *map(next, self.iterators))

    def get_state(self) -> PyTree:
        return self.iterators[0].get_state()  # all stand at the same step

    def set_state(self, state: PyTree) -> None:
        for each in self.iterators:
            each.set_state(state)


def seed_and_metric(name: str) -> tuple[int, str]:
    """`eval/seed_3/test/rmse` -> 3, `eval/test/rmse`."""
    found = re.fullmatch(r"eval/seed_(\d+)/(.+)", name)
    if found is None:
        raise InputError(f"{name!r} is no metric of seeds that ran side by side")
    return int(found[1]), f"eval/{found[2]}"
