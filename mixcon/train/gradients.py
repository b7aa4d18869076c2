"""Step transforms, first half: from a task to its gradient.

Each takes a `Task` and returns `gradient(state, batch) -> (grads, Outcome)`. They differ in
how much of the batch is encoded at a time, and in what the objective gets to see.

Shapes: B batch, M parts, b = B/M examples a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixcon.errors import InputError
from mixcon.train.state import Batch, Metrics, PyTree, Task, TrainState, stream


class Outcome(NamedTuple):
    """What a gradient computation leaves beside the gradient."""

    loss: jax.Array
    metrics: Metrics
    extra: PyTree
    objective: PyTree


Gradient = Callable[..., tuple[PyTree, Outcome]]


def standard(task: Task) -> Gradient:
    """Encode the whole batch, one objective over it, one backward pass."""

    def gradient(state: TrainState, batch: Batch) -> tuple[PyTree, Outcome]:
        keys = {name: stream(state.seed, name, state.step) for name in ("prepare", "encode", "objective")}
        batch = task.prepare(batch, key=keys["prepare"], step=state.step)

        def loss_fn(params: PyTree) -> tuple[jax.Array, Outcome]:
            reps, extra = task.encode(params, state.extra, batch, key=keys["encode"], train=True)
            loss, metrics, objective = task.objective(
                params, state.objective, reps, batch, key=keys["objective"], step=state.step
            )
            return loss, Outcome(loss, metrics, extra, objective)

        grads, outcome = jax.grad(loss_fn, has_aux=True)(state.params)
        return grads, outcome

    return gradient


def accumulate(task: Task, parts: int) -> Gradient:
    """Average the gradients of `parts` smaller batches; each part's objective sees only that part.

    For losses that are means over examples this equals `standard`; for in-batch contrast it is the
    smaller problem with fewer negatives (use `grad_cache` for the exact one).
    """
    check_parts(parts)

    def gradient(state: TrainState, batch: Batch) -> tuple[PyTree, Outcome]:
        batch = task.prepare(batch, key=stream(state.seed, "prepare", state.step), step=state.step)
        keys = jax.random.split(stream(state.seed, "encode", state.step), parts)
        objective_keys = jax.random.split(stream(state.seed, "objective", state.step), parts)

        def body(carry: tuple, part: tuple) -> tuple[tuple, tuple]:
            extra, objective, total = carry
            part_batch, key, objective_key = part

            def loss_fn(params: PyTree) -> tuple[jax.Array, Outcome]:
                reps, new_extra = task.encode(params, extra, part_batch, key=key, train=True)
                loss, metrics, new = task.objective(
                    params, objective, reps, part_batch, key=objective_key, step=state.step
                )
                return loss, Outcome(loss, metrics, new_extra, new)

            grads, out = jax.grad(loss_fn, has_aux=True)(state.params)
            total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
            return (out.extra, out.objective, total), (out.loss, out.metrics)

        start = (state.extra, state.objective, jax.tree.map(jnp.zeros_like, state.params))
        parts_of_batch = split_batch(batch, parts)
        (extra, objective, grads), (losses, metrics) = jax.lax.scan(body, start, (parts_of_batch, keys, objective_keys))
        return grads, Outcome(losses.mean(), jax.tree.map(lambda m: m.mean(0), metrics), extra, objective)

    return gradient


def grad_cache(task: Task, parts: int) -> Gradient:
    """Exact large-batch gradient with the activations of one part at a time.

    1. encode every part without keeping activations; 2. the objective over the whole batch gives the
    gradient of each representation; 3. encode each part again and pull that gradient back. Equal to
    `standard` up to rounding when encoding draws nothing at random and carries no batch statistics.

    Reference: Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory
      Limited Setup", 2021, section 3.2.
    """
    check_parts(parts)

    def gradient(state: TrainState, batch: Batch) -> tuple[PyTree, Outcome]:
        batch = task.prepare(batch, key=stream(state.seed, "prepare", state.step), step=state.step)
        keys = jax.random.split(stream(state.seed, "encode", state.step), parts)
        parts_of_batch = split_batch(batch, parts)

        def encode_part(params: PyTree, extra: PyTree, part: tuple) -> tuple[PyTree, PyTree]:
            return task.encode(params, extra, part[0], key=part[1], train=True)

        def forward(extra: PyTree, part: tuple) -> tuple[PyTree, tuple[PyTree, PyTree]]:
            reps, new_extra = encode_part(state.params, extra, part)
            return new_extra, (reps, extra)

        extra, (part_reps, part_extra) = jax.lax.scan(forward, state.extra, (parts_of_batch, keys))
        reps = jax.tree.map(lambda r: merge_parts(r, parts), part_reps)

        def objective_fn(params: PyTree, reps: PyTree) -> tuple[jax.Array, Outcome]:
            key = stream(state.seed, "objective", state.step)
            loss, metrics, objective = task.objective(params, state.objective, reps, batch, key=key, step=state.step)
            return loss, Outcome(loss, metrics, extra, objective)

        (grads, reps_grad), outcome = jax.grad(objective_fn, argnums=(0, 1), has_aux=True)(state.params, reps)
        part_reps_grad = jax.tree.map(lambda g: split_parts(g, parts), reps_grad)

        def backward(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            *inputs, extra, cotangent = part
            _, pull = jax.vjp(lambda params: encode_part(params, extra, tuple(inputs))[0], state.params)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        grads, _ = jax.lax.scan(backward, grads, (parts_of_batch, keys, part_extra, part_reps_grad))
        return grads, outcome

    return gradient


def ema_teacher(
    gradient: Gradient, *, momentum: float | Callable[[jax.Array], jax.Array], name: str = "teacher"
) -> Gradient:
    """A second set of parameters, `extra[name]`, that follows the trained ones and is never trained.

    θ_k ← m·θ_k + (1-m)·θ_q before each step, so that the step sees a teacher of the current parameters
    (MoCo, BYOL); tasks read it in `encode` and hand it on unchanged in `extra`.

    Args:
      gradient: what runs inside, e.g. `standard(task)`.
      momentum: m in [0, 1], or a function of the step (see `optim.momentum_schedule`).
      name: key of the teacher's parameters in `extra`; a subtree of the parameters by the same names.

    Example:
      >>> gradient = ema_teacher(standard(task), momentum=0.999)
    """
    if not callable(momentum) and not 0 <= momentum <= 1:
        raise InputError(f"momentum={momentum} of the teacher must lie in [0, 1]")

    def wrapped(state: TrainState, batch: Batch) -> tuple[PyTree, Outcome]:
        m = momentum(state.step) if callable(momentum) else momentum
        teacher = state.extra[name]
        online = {key: state.params[key] for key in teacher}
        moved = jax.tree.map(lambda k, q: (m * k + (1 - m) * q).astype(k.dtype), teacher, online)
        return gradient(state._replace(extra=state.extra | {name: moved}), batch)

    return wrapped


def refuse_parts(name: str, allowed: tuple[str, ...], why: str) -> None:
    """Refuse a gradient by its dotted name where a method needs its batch whole.

    Example:
      >>> refuse_parts(config.gradient.name, ("standard",), "partners are drawn over the whole batch")
    """
    if name.rpartition(".")[2] not in allowed:
        raise InputError(f"gradient.name={name!r} cuts the batch into parts, but {why}; use {' or '.join(allowed)}")


def check_parts(parts: int) -> None:
    """Refuse what is no number of parts; whether it divides the batch is seen at the batch."""
    if not isinstance(parts, int) or parts < 1:
        raise InputError(f"parts={parts!r} must be a whole number of at least 1")


def split_batch(batch: Batch, parts: int) -> Batch:
    """Every [B, ...] array as [M, b, ...]."""
    return {name: split_parts(x, parts) for name, x in batch.items()}


def split_parts(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] → [M, b, ...]; part m holds examples m, m+M, ..., so that a batch sharded by blocks stays in place."""
    if x.shape[0] % parts:
        raise InputError(f"batch of {x.shape[0]} cannot be split into {parts} equal parts; choose a divisor")
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def merge_parts(x: jax.Array, parts: int) -> jax.Array:
    """Inverse of `split_parts`: [M, b, ...] → [B, ...]."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1] * parts, *x.shape[2:])
