"""What a training run is at one moment, and the experiment that moves it.

Shapes: B global batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Health(NamedTuple):
    """Counts of steps whose loss or gradient was not finite."""

    skipped: jax.Array  # steps that were left out
    halted_at: jax.Array  # first bad step under the "stop" policy, -1 while all is well


class Patience(NamedTuple):
    """How long the training loss has not improved."""

    best: jax.Array  # lowest loss so far
    stale: jax.Array  # steps since then


class TrainState(NamedTuple):
    """Everything that a checkpoint holds on the device; plain nested dicts of arrays inside."""

    step: jax.Array  # updates done so far
    seed: jax.Array  # of every random stream inside the step: an input of it, so that one program serves all seeds
    params: PyTree
    extra: PyTree  # what layers carry and gradients do not touch: batch statistics
    opt_state: PyTree
    objective: PyTree  # queues, per-example denominators, prototypes
    ema: PyTree  # averaged parameters, or () when not asked for
    health: Health
    patience: PyTree = ()  # a `Patience`, or () when the run does not wait for improvement

    @property
    def averaged(self) -> PyTree:
        """The parameters to evaluate: their average where one is kept."""
        return self.ema or self.params


class Task(NamedTuple):
    """What one step optimises, as three pure functions.

    prepare(batch, *, key, step) -> batch: augmentation and mixing, once over the whole batch.
    encode(params, extra, batch, *, key, train) -> (representations, extra): may run on a part of the batch;
      every array of the representations has the batch as its first axis.
    objective(params, state, representations, batch, *, key, step) -> (loss, metrics, state): over the whole batch.
    """

    prepare: Callable[..., Batch]
    encode: Callable[..., tuple[PyTree, PyTree]]
    objective: Callable[..., tuple[jax.Array, Metrics, PyTree]]


# An evaluator yields scalars, which are logged, and mappings of arrays, which are saved for the report.
Evaluator = Callable[[TrainState], Iterator[tuple[str, float | Mapping[str, np.ndarray]]]]


class Experiment(NamedTuple):
    """What the outer loop needs to know of a method."""

    init: Callable[[jax.Array], tuple[PyTree, PyTree, PyTree]]  # key -> params, extra, objective state
    optimizer: optax.GradientTransformation
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batches: Callable[[], Any]  # -> iterator over host batches with get_state and set_state
    evals: Mapping[str, Evaluator]
    steps_per_epoch: float
    pretrained: tuple[PyTree, PyTree] | None = None  # params and extra, on the host, that replace the initial ones
    fixed: Mapping[str, PyTree] = MappingProxyType({})  # arrays that are part of every batch, placed once (a graph)
    patience: int = 0  # steps without a lower loss after which the run ends; 0 runs to the last step
    task: Task | None = None  # what the step optimises, for whoever wants to look into it
    model: Mapping[str, Any] | None = None  # what `models.build` made the network from, where it can be exported


def init_state(experiment: Experiment, seed: jax.Array | np.ndarray | np.uint32, *, ema: bool) -> TrainState:
    """The state before the first step; jit it with `out_shardings` to build it where it will live.

    Of several seeds all states, stacked.
    """
    if np.ndim(seed):
        return jax.vmap(lambda one: init_state(experiment, one, ema=ema))(seed)
    params, extra, objective = experiment.init(stream(seed, "init", 0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        extra=extra,
        opt_state=experiment.optimizer.init(params),
        objective=objective,
        ema=jax.tree.map(jnp.copy, params) if ema else (),
        health=Health(skipped=jnp.zeros((), jnp.int32), halted_at=-jnp.ones((), jnp.int32)),
        patience=Patience(jnp.array(jnp.inf, jnp.float32), jnp.zeros((), jnp.int32)) if experiment.patience else (),
    )


def stream(seed: jax.Array | np.ndarray | np.uint32 | int, name: str, step: jax.Array | int) -> jax.Array:
    """Key of a named random stream at a step: derived, never stored, so that resuming repeats it.

    Example:
      >>> key = stream(state.seed, "augment", state.step)
    """
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(named, step)
