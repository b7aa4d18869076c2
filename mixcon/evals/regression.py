"""Errors of regression: pure functions of predictions and targets, for NumPy and inside jit alike.

Shapes: N examples, D outputs; sums are taken in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError

Metric = Callable[[Array, Array], Array]


def rmse(pred: Array, y: Array) -> Array:
    """Root mean squared error, `sqrt(mean (p - y)²)` over all entries, in the units of the targets.

    Args:
        pred, y: [N] or [N, D].
    Returns:
        Scalar.
    Raises:
        InputError: shapes that differ, nothing to compare.
    Example:
        >>> round(float(rmse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))), 4)
        1.4142
    """
    pred, y = _checked(pred, y)
    return jnp.sqrt(jnp.square(pred - y).mean())


def mape(pred: Array, y: Array) -> Array:
    """Mean absolute percentage error, `100 · mean |p - y| / |y|` over the entries with y ≠ 0; nan when there is none.

    Targets near zero make it huge: prefer `rmse` there.

    Args, Raises: as `rmse`.
    Returns:
        Scalar in per cent.
    Example:
        >>> round(float(mape(jnp.array([1.0, 3.0, 9.0]), jnp.array([2.0, 4.0, 0.0]))), 4)
        37.5
    """
    pred, y = _checked(pred, y)
    known = y != 0
    relative = jnp.abs(pred - y) / jnp.where(known, jnp.abs(y), 1)
    return 100 * jnp.where(known, relative, 0).sum() / known.sum().astype(jnp.float32)


def pearson_r(pred: Array, y: Array) -> Array:
    """Pearson's correlation over the examples, averaged over the outputs whose targets vary; nan when none does.

    Args, Raises: as `rmse`.
    Returns:
        Scalar in [-1, 1]; an output whose predictions do not vary counts as 0.
    Example:
        >>> round(float(pearson_r(jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 6.0]))), 4)
        1.0
    """
    pred, y = _checked(pred, y)
    p, t = ((x - x.mean(axis=0, keepdims=True)).reshape(len(x), -1) for x in (pred, y))
    both = jnp.square(p).sum(axis=0) * jnp.square(t).sum(axis=0)
    varies = jnp.square(t).sum(axis=0) > 0
    r = jnp.where(both > 0, (p * t).sum(axis=0) / jnp.sqrt(jnp.where(both > 0, both, 1)), 0)
    return jnp.where(varies, r, 0).sum() / varies.sum().astype(jnp.float32)


def worst_group(
    metric: Metric, pred: Array, y: Array, group: np.ndarray, *, worst: Literal["highest", "lowest"] = "highest"
) -> Array:
    """The worst value of a metric among groups: the highest error, or the lowest correlation.

    Args:
        metric: `rmse`, `mape`, `pearson_r` or any function (pred, y) → scalar.
        pred, y: [N] or [N, D].
        group: int [N], known before tracing: which groups there are is part of the program.
        worst: "highest" for errors, "lowest" for what should be high.
    Returns:
        Scalar.
    Raises:
        InputError: groups that are traced or of another length; unknown `worst`.
    Example:
        >>> p, y = jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 2.0, 3.0])
        >>> float(worst_group(rmse, p, y, np.array([0, 0, 1])))
        2.0
    """
    if worst not in ("highest", "lowest"):
        raise InputError(f"worst must be 'highest' or 'lowest'; got {worst!r}.")
    if isinstance(group, jax.core.Tracer):
        raise InputError("group must be known before tracing; close over it instead of passing it to jit.")
    group = np.asarray(group)
    if group.shape != (len(y),):
        raise InputError(f"group must be [{len(y)}], one for each example; got {list(group.shape)}.")
    values = [metric(pred[rows], y[rows]) for rows in (np.flatnonzero(group == g) for g in np.unique(group))]
    return jnp.stack(values).max() if worst == "highest" else jnp.stack(values).min()


def regression_report(pred: Array, y: Array, group: np.ndarray | None = None) -> Mapping[str, Array]:
    """`rmse`, `mape`, `r` and, with groups, `worst_rmse`: what an evaluator of regression logs.

    Args:
        pred, y: [N] or [N, D].
        group: int [N], or None.
    Returns:
        Scalars by name.
    Example:
        >>> sorted(regression_report(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
        ['mape', 'r', 'rmse']
    """
    found = {"rmse": rmse(pred, y), "mape": mape(pred, y), "r": pearson_r(pred, y)}
    return found if group is None else found | {"worst_rmse": worst_group(rmse, pred, y, group)}


def _checked(pred: Any, y: Any) -> tuple[Array, Array]:
    """Both as float32 arrays of one shape."""
    if np.shape(pred) != np.shape(y) or np.size(y) == 0:
        raise InputError(f"pred {list(np.shape(pred))} and y {list(np.shape(y))} must be of one shape, and not empty.")
    return jnp.asarray(pred, jnp.float32), jnp.asarray(y, jnp.float32)
