"""Deep metric learning on pairs of a labelled batch: margins and weightings of similar and dissimilar pairs.

In all of them P(i) are the other samples of i's class, N(i) those of other classes. S_ij = z_i·z_j, d_ij = ‖z_i - z_j‖.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, batch_mean, batch_sum, unit_rows
from mixcon.objectives.supervised import class_labels
from mixcon.ops import Block, Impl, Reduce, checks


def contrastive(
    features: Array,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    power: Literal[1, 2] = 2,
    average: Literal["all", "active"] = "all",
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Pairs of a class pulled together, others pushed beyond a margin.

    `loss = mean_{i, j∈P(i)} d_ij^q + mean_{i, j∈N(i)} max(0, m - d_ij)^q`. The two kinds are averaged apart, so that
    the many negatives do not drown the few positives (the reference sums both, each with 1/2).

    Args:
      features: [B, D], of any norm. labels: [B] classes.
      margin: m > 0. power: q.
      average: over "all" pairs of a kind, or over the "active" ones, whose term is not zero.
      impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar; a kind without pairs contributes 0.

    Raises:
      InputError: labels of the wrong length, a margin not above zero.

    Example:
      >>> loss = contrastive(features, labels, margin=1.0)

    Reference: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", 2006, eq. 4.
    """
    labels = class_labels(labels, features.shape[0])
    checks.positive("margin", margin)
    if power not in (1, 2) or average not in ("all", "active"):
        raise InputError(f'power must be 1 or 2 and average "all" or "active", got {power!r} and {average!r}.')
    dtype = accumulator(features)
    data = (labels, jnp.sum(jnp.square(features.astype(dtype)), axis=1))
    names = ("pull", "pull_count", "push", "push_count")
    out = ops.pair_reduce(
        _Margins(power, average == "active"),
        features,
        features,
        {name: Reduce(name, "sum") for name in names},
        rows=data,
        cols=data,
        shared=jnp.asarray(margin, dtype),
        impl=impl,
        axis_name=axis_name,
    )
    pull, pulls, push, pushes = (batch_sum(out[name], axis_name) for name in names)
    return pull / jnp.maximum(pulls, 1) + push / jnp.maximum(pushes, 1)


def multi_similarity(
    features: Array,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    mining_margin: float | None = 0.1,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Pairs weighted by their own and by relative similarity.

    `ℓ_i = (1/α) log[1 + Σ_{P(i)} exp(-α(S_ij - λ))] + (1/β) log[1 + Σ_{N(i)} exp(β(S_ij - λ))]`, mean over anchors.
    Mined first, unless `mining_margin` is None: positives with `S_ij < max_{N(i)} S + ε`, negatives with
    `S_ij > min_{P(i)} S - ε`; the choice carries no gradient.

    Args:
      features: [B, D] unit rows. labels: [B] classes.
      alpha, beta: α, β > 0. base: λ. mining_margin: ε.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar.

    Raises:
      InputError: labels of the wrong length, α or β not above zero, rows not of unit length (outside jit).

    Example:
      >>> loss = multi_similarity(features, labels)

    Reference: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", 2019, eq. 11
      to 15.
    """
    labels = class_labels(labels, features.shape[0])
    features = unit_rows("features", features, normalize)
    checks.positive("alpha", alpha)
    checks.positive("beta", beta)
    dtype = accumulator(features)
    edges = {}
    if mining_margin is not None:
        edges = ops.pair_reduce(
            _extremes,
            *lax.stop_gradient((features, features)),
            {"positive": Reduce("positive", "max"), "negative": Reduce("negative", "max")},
            rows=labels,
            cols=labels,
            impl=impl,
            axis_name=axis_name,
        )
    a, b, centre = (jnp.asarray(value, dtype) for value in (alpha, beta, base))
    out = ops.pair_reduce(
        _MultiSimilarity(mining_margin),
        features,
        features,
        {"positive": Reduce("positive", "logsumexp"), "negative": Reduce("negative", "logsumexp")},
        rows=(labels, edges),
        cols=labels,
        shared=(a, b, centre),
        impl=impl,
        axis_name=axis_name,
    )
    return batch_mean(log1p_exp(out["positive"]) / a + log1p_exp(out["negative"]) / b, axis_name)


def circle(
    features: Array,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.25,
    scale: ArrayLike = 80.0,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Every similarity optimised at its own pace, towards a circular decision boundary.

    `ℓ_i = log[1 + Σ_{n∈N(i)} exp(γ α_n (S_in - m)) Σ_{p∈P(i)} exp(-γ α_p (S_ip - 1 + m))]`, with the paces
    `α_n = max(0, S_in + m)`, `α_p = max(0, 1 + m - S_ip)` held constant for the gradient; mean over the anchors that
    have both.

    Args:
      features: [B, D] unit rows. labels: [B] classes. margin: m. scale: γ > 0.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar.

    Raises:
      InputError: labels of the wrong length, a scale not above zero, rows not of unit length (outside jit).

    Example:
      >>> loss = circle(features, labels, margin=0.25, scale=80.0)

    Reference: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", 2020, eq. 5 to 8.
    """
    labels = class_labels(labels, features.shape[0])
    features = unit_rows("features", features, normalize)
    checks.positive("scale", scale)
    dtype = accumulator(features)
    out = ops.pair_reduce(
        _circle,
        features,
        features,
        {"positive": Reduce("positive", "logsumexp"), "negative": Reduce("negative", "logsumexp")},
        rows=labels,
        cols=labels,
        shared=(jnp.asarray(margin, dtype), jnp.asarray(scale, dtype)),
        impl=impl,
        axis_name=axis_name,
    )
    both = jnp.isfinite(out["positive"]) & jnp.isfinite(out["negative"])
    exponent = jnp.where(both, out["positive"], 0) + jnp.where(both, out["negative"], 0)
    return batch_mean(jax.nn.softplus(exponent), axis_name, both)


def log1p_exp(values: Array) -> Array:
    """log(1 + exp(x)), 0 with a zero gradient at -inf (an empty sum)."""
    return jnp.where(values == -jnp.inf, 0, jax.nn.softplus(jnp.where(values == -jnp.inf, 0, values)))


def split_pairs(row: Block, col: Block, row_labels: Array, col_labels: Array) -> tuple[Array, Array]:
    """(positives, negatives) of a tile: other samples of the same class, and samples of other classes."""
    same = row_labels[:, None] == col_labels[None, :]
    return same & (row.position[:, None] != col.position[None, :]), ~same


def root(square: Array) -> Array:
    """√x, 0 with a zero gradient where x ≤ 0 (two equal rows, up to rounding)."""
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


@dataclasses.dataclass(frozen=True)
class _Margins:
    power: int
    active: bool

    def __call__(self, sim: Array, row: Block, col: Block, margin: Array) -> dict[str, Array]:
        (row_labels, row_square), (col_labels, col_square) = row.data, col.data
        positive, negative = split_pairs(row, col, row_labels, col_labels)
        distance = root(row_square[:, None] + col_square[None, :] - 2 * sim)
        pull = jnp.where(positive, distance**self.power, 0)
        push = jnp.where(negative, jax.nn.relu(margin - distance) ** self.power, 0)
        pulls, pushes = (pull > 0, push > 0) if self.active else (positive, negative)
        return {
            "pull": pull,
            "pull_count": pulls.astype(sim.dtype),
            "push": push,
            "push_count": pushes.astype(sim.dtype),
        }


def _extremes(sim: Array, row: Block, col: Block, shared: tuple[()]) -> dict[str, Array]:
    positive, negative = split_pairs(row, col, row.data, col.data)
    return {"positive": jnp.where(positive, -sim, -jnp.inf), "negative": jnp.where(negative, sim, -jnp.inf)}


@dataclasses.dataclass(frozen=True)
class _MultiSimilarity:
    mining_margin: float | None

    def __call__(self, sim: Array, row: Block, col: Block, shared: tuple[Array, Array, Array]) -> dict[str, Array]:
        labels, edges = row.data
        alpha, beta, base = shared
        positive, negative = split_pairs(row, col, labels, col.data)
        if self.mining_margin is not None:
            positive &= sim < edges["negative"][:, None] + self.mining_margin
            negative &= sim > -edges["positive"][:, None] - self.mining_margin
        return {
            "positive": jnp.where(positive, -alpha * (sim - base), -jnp.inf),
            "negative": jnp.where(negative, beta * (sim - base), -jnp.inf),
        }


def _circle(sim: Array, row: Block, col: Block, shared: tuple[Array, Array]) -> dict[str, Array]:
    margin, scale = shared
    positive, negative = split_pairs(row, col, row.data, col.data)
    fixed = lax.stop_gradient(sim)
    pull = -scale * jax.nn.relu(1 + margin - fixed) * (sim - 1 + margin)
    push = scale * jax.nn.relu(fixed + margin) * (sim - margin)
    return {"positive": jnp.where(positive, pull, -jnp.inf), "negative": jnp.where(negative, push, -jnp.inf)}
