"""Learning to learn: gradients through a few steps of adaptation to each task of a batch.

Shapes: T tasks, S support and Q query examples of a task; a batch of tasks holds arrays [T, S+Q, ...].
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixcon.errors import InputError
from mixcon.models.functional import map_with_path, path_names
from mixcon.train.gradients import Gradient, Outcome
from mixcon.train.state import Batch, Metrics, PyTree, Task, TrainState, stream

Loss = Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, Metrics]]  # parameters, examples, key -> loss, metrics


def maml(
    task: Task,
    *,
    support: int,
    rate: float,
    inner_steps: int = 1,
    first_order: bool = False,
    adapted: str = "",
) -> Gradient:
    """Parameters from which a few steps on a task's support set lead to a low loss on its query set.

    θ_t = θ - rate·∇L(θ; support_t), repeated; the gradient is that of mean_t L(θ_t; query_t) with respect to θ.
    `prepare` sees one task at a time, its support and query together: what it mixes, it mixes within the task.

    Args:
      task: of a single task's examples. Its extra and objective state are read and stay as they are.
      support: S, the first examples of each task; the rest is the query.
      rate: learning rate of the inner steps.
      inner_steps: how many.
      first_order: take the inner gradients as constants (FOMAML).
      adapted: regex on parameter paths; only these move inside ("" all, "head" is ANIL).

    Returns:
      A gradient like those of `mixcon.train.gradients`, for batches whose arrays are [T, S+Q, ...].

    Raises:
      InputError: support or inner_steps below 1, a rate that is not above 0; at the batch, no query left, or a regex
        that matches no parameter.

    Example:
      >>> gradient = maml(task, support=10, rate=0.01, inner_steps=5)

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
      algorithm 2; Raghu et al., "Rapid Learning or Feature Reuse?", 2020 (ANIL).
    """
    if support < 1 or inner_steps < 1 or not rate > 0:
        raise InputError(
            f"support={support} and inner_steps={inner_steps} must be at least 1, and rate={rate} above 0."
        )

    def gradient(state: TrainState, batch: Batch) -> tuple[PyTree, Outcome]:
        def loss_of(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            keys = jax.random.split(key)
            reps, _ = task.encode(params, state.extra, batch, key=keys[0], train=True)
            return task.objective(params, state.objective, reps, batch, key=keys[1], step=state.step)[:2]

        def after_adaptation(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            keys = jax.random.split(key, 3)
            batch = task.prepare(batch, key=keys[0], step=state.step)
            known, asked = split_task(batch, support)
            params = adapt(
                loss_of, params, known, keys[1], rate=rate, steps=inner_steps, first_order=first_order, adapted=adapted
            )
            return loss_of(params, asked, keys[2])

        def mean_loss(params: PyTree) -> tuple[jax.Array, Outcome]:
            tasks = len(next(iter(batch.values())))
            keys = jax.random.split(stream(state.seed, "tasks", state.step), tasks)
            losses, metrics = jax.vmap(after_adaptation, in_axes=(None, 0, 0))(params, batch, keys)
            loss = losses.mean()
            return loss, Outcome(loss, jax.tree.map(lambda m: m.mean(0), metrics), state.extra, state.objective)

        return jax.grad(mean_loss, has_aux=True)(state.params)

    return gradient


def adapt(
    loss: Loss,
    params: PyTree,
    batch: Batch,
    key: jax.Array,
    *,
    rate: float,
    steps: int = 1,
    first_order: bool = False,
    adapted: str = "",
) -> PyTree:
    """Parameters after a few steps of gradient descent on one task; differentiable.

    Args:
      loss: (parameters, examples, key) -> loss and metrics.
      params: where to start.
      batch: the task's support examples.
      key: split over the steps.
      rate, steps, first_order, adapted: see `maml`.

    Returns:
      Parameters of the same structure.

    Example:
      >>> params = adapt(loss, params, {"x": x, "y": y}, jax.random.key(0), rate=0.01, steps=5)
    """
    names = path_names(params)
    if not any(re.search(adapted, name) for name in names):
        raise InputError(f"adapted={adapted!r} matches no parameter path; paths are e.g. {names[:5]}")

    def step(params: PyTree, key: jax.Array) -> tuple[PyTree, None]:
        grads = jax.grad(lambda p: loss(p, batch, key)[0])(params)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        moved = map_with_path(lambda name, p, g: p - rate * g if re.search(adapted, name) else p, params, grads)
        return moved, None

    return jax.lax.scan(step, params, jax.random.split(key, steps))[0]


def split_task(batch: Batch, support: int) -> tuple[Batch, Batch]:
    """One task's examples as support and query, in the order in which they came."""
    sizes = {name: x.shape[:1] for name, x in batch.items()}
    if any(not size or size[0] <= support for size in sizes.values()):
        raise InputError(f"a task needs more examples than its support={support}; its arrays have {sizes}")
    known = {name: x[:support] for name, x in batch.items()}
    return known, {name: jnp.asarray(x)[support:] for name, x in batch.items()}
