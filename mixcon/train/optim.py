"""Optimisers by name through optax, with schedules and overrides by parameter path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.models.functional import map_with_path, path_names
from mixcon.train.state import PyTree

SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "steps")


def schedule(
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    start: float | None = None,
    decay: str = "cosine",
    end: float = 0.0,
    at: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Linear warm-up, then a decay.

    lr(t) = peak·(t+1)/w for t < w, or from `start` to peak in as many steps; afterwards, with u = (t-w)/(steps-w):
    cosine: end + (peak-end)·(1+cos πu)/2;  linear: peak + (end-peak)·u;  rsqrt: peak·sqrt(w/t);  constant: peak;
    steps: peak·factor^(number of steps in `at` that have passed).

    Args:
      peak: highest learning rate.
      steps: updates in the whole run.
      warmup_steps: w.
      start: learning rate of the first step, peak/w by default.
      decay: "constant", "cosine", "linear", "rsqrt" or "steps".
      end: learning rate at the last step (cosine, linear).
      at, factor: steps of the run from which the rate is multiplied by `factor` once more (steps).

    Example:
      >>> lr = schedule(peak=1e-3, steps=1000, warmup_steps=100)
    """
    if decay not in SCHEDULES:
        raise InputError(f"unknown learning-rate decay {decay!r}; {configs.nearest(decay, SCHEDULES)}")
    if not 0 <= warmup_steps <= steps:
        raise InputError(f"warmup_steps={warmup_steps} must lie between 0 and steps={steps}")
    if peak < 0 or end < 0 or (start or 0.0) < 0:
        raise InputError(f"learning rates must not be negative: peak={peak}, start={start}, end={end}")
    if (decay == "steps") != bool(at) or any(step <= warmup_steps for step in at):
        raise InputError(f"at={tuple(at)} are steps after warmup_steps={warmup_steps}, for decay='steps' and no other")
    rest = max(steps - warmup_steps, 1)
    after: optax.Schedule
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=end / peak if peak else 0.0)
    elif decay == "linear":
        after = optax.linear_schedule(peak, end, rest)
    elif decay == "steps":
        after = optax.piecewise_constant_schedule(peak, {step - warmup_steps: factor for step in at})
    elif decay == "rsqrt":
        anchor = max(warmup_steps, 1)

        def after(count: jax.Array) -> jax.Array:
            return peak * (anchor / (count + anchor)) ** 0.5
    else:
        after = optax.constant_schedule(peak)
    if not warmup_steps:
        return after
    first = peak / warmup_steps if start is None else start
    warmup = optax.linear_schedule(first, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def momentum_schedule(*, start: float, end: float, steps: int, hold_steps: int = 0) -> optax.Schedule:
    """Momentum of a teacher: `start` for `hold_steps`, then a half cosine over the whole run up to `end`.

    m(t) = end - (end - start)·(1 + cos(πt/T))/2 for t ≥ hold_steps.

    Args:
      start, end: in [0, 1].
      steps: T, updates in the whole run.
      hold_steps: steps at `start` before the cosine is read; its argument counts from the first step all the same.

    Example:
      >>> m = momentum_schedule(start=0.99, end=1.0, steps=1000)

    Reference: Grill et al., "Bootstrap Your Own Latent", 2020, section 3.3 (no hold).
    """
    if not (0 <= start <= 1 and 0 <= end <= 1):
        raise InputError(f"momentum must lie in [0, 1]: start={start}, end={end}")

    def momentum(step: jax.Array) -> jax.Array:
        share = step.astype(jnp.float32) / steps
        cosine = end - (end - start) * (1 + jnp.cos(jnp.pi * share)) / 2
        return jnp.where(step < hold_steps, start, cosine)

    return momentum


def optimizer(
    *,
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    clip_norm: float | None = None,
    overrides: Sequence[tuple[str, Mapping[str, Any]]] = (),
    **arguments: Any,
) -> optax.GradientTransformation:
    """An optax optimiser with arguments that may differ by parameter path.

    Args:
      name: in `optax` or `optax.contrib`: adamw, lars, adafactor, muon, ...; "sgd", "adam" and "lamb" are those below.
      learning_rate: number or schedule.
      clip_norm: largest global gradient norm; None does not clip.
      overrides: pairs `(regex, arguments)`; a parameter follows the first regex found in its path.
        Beside the optimiser's own arguments, `learning_rate` (number or schedule) replaces the learning rate,
        `lr_scale` multiplies it and `freeze=True` stops it.
      **arguments: of the optimiser, checked against its signature.

    Returns:
      The transformation; its state is built from parameters as plain nested dicts.

    Raises:
      InputError: unknown optimiser or argument; at `init`, a regex that matches no parameter.

    Example:
      >>> tx = optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.2,
      ...                overrides=((r"bias$|scale$", {"weight_decay": 0.0}),))
    """
    make = (
        {"sgd": sgd, "adam": adam, "lamb": lamb}.get(name)
        or getattr(optax, name, None)
        or getattr(optax.contrib, name, None)
    )
    if not callable(make):
        known = [n for n in (*dir(optax), *dir(optax.contrib)) if not n.startswith("_")]
        raise InputError(f"unknown optimiser {name!r}; {configs.nearest(name, known)}")
    configs.check_arguments(make, f"optimiser {name}", arguments)

    def build(
        learning_rate: optax.ScalarOrSchedule = learning_rate,
        lr_scale: float = 1.0,
        freeze: bool = False,
        **changed: Any,
    ) -> optax.GradientTransformation:
        configs.check_arguments(make, f"optimiser {name}", changed)
        if freeze:
            return optax.set_to_zero()
        return make(learning_rate=scale_rate(learning_rate, lr_scale), **{**arguments, **changed})

    groups = {"default": build(), **{regex: build(**changed) for regex, changed in overrides}}
    chosen = optax.partition(groups, lambda params: label_by_path(params, [regex for regex, _ in overrides]))
    return optax.chain(optax.clip_by_global_norm(clip_norm), chosen) if clip_norm else chosen


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent; the decay is part of the gradient, `m ← μm + (g + λθ)`, `θ ← θ - lr·m`.

    Args:
      learning_rate: number or schedule.
      momentum: μ; None keeps none.
      nesterov: look ahead.
      weight_decay: λ.

    Example:
      >>> tx = sgd(0.1, momentum=0.9, weight_decay=1e-4)
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov))


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam whose decay is part of the gradient, g + λθ, and so goes through the moments (in adamw it does not).

    Args:
      learning_rate: number or schedule.
      b1, b2, eps: of Adam.
      weight_decay: λ.

    Example:
      >>> tx = adam(2e-3, weight_decay=1e-4)

    Reference: Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2015; Loshchilov, Hutter, "Decoupled Weight
      Decay Regularization", 2019, algorithm 2 (the first of its two forms).
    """
    moments = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    return optax.chain(optax.add_decayed_weights(weight_decay), moments) if weight_decay else moments


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    adapt: bool = True,
) -> optax.GradientTransformation:
    """Adam whose step has, for each array, the length of that array: `θ ← θ - lr·‖θ‖/‖u‖·u`, u = adam(g) + λθ.

    Args:
      learning_rate: number or schedule.
      b1, b2, eps: of Adam.
      weight_decay: λ.
      adapt: the factor ‖θ‖/‖u‖ (1 where either is zero); gains and biases go without, as in the authors' code.

    Example:
      >>> tx = lamb(1e-3, weight_decay=1e-5)

    Reference: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2.
    """
    parts = [optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay)]
    parts += [optax.scale_by_trust_ratio()] if adapt else []
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def on_plateau(
    optimizer: optax.GradientTransformation,
    *,
    metric: str,
    factor: float,
    patience: int,
    every: int,
    threshold: float = 1e-4,
) -> tuple[optax.GradientTransformation, Callable[[Any], jax.Array]]:
    """Multiplies updates by `factor` each time a metric of training has stopped rising.

    The metric's mean over each `every` steps is compared with the best so far; after more than `patience` means in a
    row that are not above it by `threshold`, the factor applies once more and the count starts anew.

    Args:
      optimizer: what makes the updates.
      metric: name that the task's objective reports, "accuracy".
      factor: in (0, 1). patience: spans without a better one that are borne. every: steps in a span, such as an epoch.
      threshold: what counts as better.

    Returns:
      The transformation, and the `monitor` that `make_step` hands it the metric by.

    Raises:
      InputError: numbers out of range; at the first step, a metric that is not reported.

    Example:
      >>> tx, monitor = on_plateau(adam(1e-4), metric="accuracy", factor=0.2, patience=1, every=375)
    """
    if not 0 < factor < 1 or patience < 0 or every < 1 or threshold <= 0:
        raise InputError(
            f"plateau: want factor in (0, 1), patience >= 0, every >= 1 and threshold > 0; got factor={factor}, "
            f"patience={patience}, every={every}, threshold={threshold}"
        )
    rule = optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience + 1, rtol=0.0, atol=threshold, accumulation_size=every
    )

    def monitor(outcome: Any) -> jax.Array:
        if metric not in outcome.metrics:
            raise InputError(f"plateau: {metric!r} is not reported; {configs.nearest(metric, outcome.metrics)}")
        return -outcome.metrics[metric]

    return optax.chain(optimizer, rule), monitor


def own_schedules(overrides: Sequence[tuple[str, Mapping[str, Any]]], steps: int) -> tuple[tuple[str, dict], ...]:
    """Overrides of `optimizer` whose `schedule`, arguments of the function above, has become a learning rate."""
    configs.check_pairs("optimizer.overrides", overrides, (Mapping, ml_collections.ConfigDict))
    ready = []
    for regex, changed in overrides:
        rest = dict(changed)
        if "schedule" in rest:
            rest["learning_rate"] = schedule(steps=steps, **rest.pop("schedule"))
        ready.append((regex, rest))
    return tuple(ready)


def scale_rate(rate: optax.ScalarOrSchedule, factor: float) -> optax.ScalarOrSchedule:
    """A learning rate or schedule times a number."""
    if callable(rate):
        return lambda count: rate(count) * factor
    return rate * factor


def label_by_path(params: PyTree, regexes: Sequence[str]) -> PyTree:
    """For every parameter the first regex found in its path, else "default"."""
    names = path_names(params)
    unused = [r for r in regexes if not any(re.search(r, n) for n in names)]
    if unused:
        raise InputError(f"optimiser override {unused[0]!r} matches no parameter path; paths are e.g. {names[:5]}")
    return map_with_path(lambda name, _: next((r for r in regexes if re.search(r, name)), "default"), params)
