"""Step transforms, second half: from a gradient to `step(state, batch) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from mixcon.config import nearest
from mixcon.errors import InputError
from mixcon.train.gradients import Gradient, Outcome
from mixcon.train.state import Batch, Health, Metrics, Patience, PyTree, TrainState

NONFINITE = ("stop", "skip")
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    *,
    constrain: Callable[[PyTree], PyTree] = lambda params: params,
    ema_decay: float | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    patience: int = 0,
    monitor: Callable[[Outcome], jax.Array] | None = None,
) -> Step:
    """One update: gradient, optimiser, constraint, average, guard.

    Args:
      gradient: one of `mixcon.train.gradients`, e.g. `standard(task)`.
      optimizer: an optax transformation.
      constrain: projection of the parameters after the update, outside autodiff (a clamp on a logit scale).
      ema_decay: d in `ema ← d·ema + (1-d)·params`; None keeps no average.
      nonfinite: "skip" leaves a bad step out and counts it. "stop" freezes the state at the first bad
        step, so that what the loop saves when it notices is the state from before it.
      patience: the state is frozen likewise, whole, after that many steps without a lower loss (which the loop reads
        from the metric "stale"), so that it does not matter how far the loop has run ahead. 0 waits for nothing.
      monitor: what the optimiser is told of each step as `value` (see `optim.on_plateau`); None tells it nothing.

    Returns:
      `step(state, batch) -> (state, metrics)`, pure, to be jitted with the state donated.

    Raises:
      InputError: a decay outside (0, 1), an unknown policy, a negative patience.
    """
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise InputError(f"ema={ema_decay} must be a decay between 0 and 1; 0 keeps no average")
    if nonfinite not in NONFINITE:
        raise InputError(f"unknown nonfinite={nonfinite!r}; {nearest(nonfinite, NONFINITE)}")
    if patience < 0:
        raise InputError(f"patience={patience} must not be negative; 0 runs to the last step")

    told_optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, outcome = gradient(state, batch)
        told = {} if monitor is None else {"value": monitor(outcome)}
        updates, opt_state = told_optimizer.update(grads, state.opt_state, state.params, **told)
        params = constrain(optax.apply_updates(state.params, updates))
        ema = state.ema if ema_decay is None else optax.incremental_update(params, state.ema, 1 - ema_decay)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(outcome.loss) & jnp.isfinite(grad_norm)
        alive = state.health.halted_at < 0
        bad = ~finite & alive
        if nonfinite == "skip":
            health = Health(state.health.skipped + bad.astype(jnp.int32), state.health.halted_at)
        else:
            health = Health(state.health.skipped, jnp.where(bad, state.step, state.health.halted_at))
        moved = state._replace(
            step=state.step + 1,
            params=params,
            extra=outcome.extra,
            opt_state=opt_state,
            objective=outcome.objective,
            ema=ema,
            health=health,
        )
        # A skipped step still counts as a step: the data and the random streams move on.
        still = state._replace(step=state.step + int(nonfinite == "skip"), health=health)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite & alive, new, old), moved, still)
        metrics = {"loss": outcome.loss, "grad_norm": grad_norm, **outcome.metrics, "halted_at": health.halted_at}
        if nonfinite == "skip":
            metrics["skipped_steps"] = health.skipped
        if patience:
            new_state, metrics["stale"] = wait(state, new_state, outcome.loss, patience)
        return new_state, metrics

    return step


def wait(before: TrainState, after: TrainState, loss: jax.Array, patience: int) -> tuple[TrainState, jax.Array]:
    """Counts steps since the lowest loss; after `patience` of them the state stays as it is for good."""
    best, stale = before.patience
    ended = stale >= patience
    loss = loss.astype(best.dtype)
    lower = loss < best  # false for what is not finite
    waited = Patience(jnp.where(lower, loss, best), jnp.where(lower, 0, stale + 1))
    after = after._replace(patience=waited)
    kept = jax.tree.map(lambda new, old: jnp.where(ended, old, new), after, before)
    return kept, kept.patience.stale
