"""Contrast over features instead of examples: Barlow Twins and VICReg. Their matrices are D×D: memory linear in B."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, all_devices, batch_mean, global_size, same_shape


def barlow_twins(
    first: Array,
    second: Array,
    *,
    off_diagonal_weight: ArrayLike = 5e-3,
    scale: ArrayLike = 1.0,
    standardize: bool = True,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
) -> Array:
    """Cross-correlation of two views as near the identity as can be.

    `C_kl = (1/B) Σ_b a_bk b_bl`; `loss = κ [ Σ_k (1 - C_kk)² + λ Σ_{k≠l} C_kl² ]`, with features standardised over the
    batch, `a = (z - mean) / sqrt(variance + ε)`, the variance biased.

    Args:
      first, second: [B, D] projector outputs of two views, of any norm.
      off_diagonal_weight: λ. scale: κ (0.024 or 0.025 in released code).
      standardize: False when the projector already ends in a batch normalisation.
      epsilon: ε, keeps a constant feature finite. axis_name: statistics and C are of the whole batch.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ.

    Example:
      >>> loss = barlow_twins(z[0], z[1], off_diagonal_weight=5e-3)

    Reference: Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
      2021, eq. 1 and 2.
    """
    same_shape("first", first, "second", second)
    dtype = accumulator(first)
    a, b = (_standardized(z.astype(dtype), epsilon, axis_name, standardize) for z in (first, second))
    correlation = all_devices(a.T @ b, axis_name) / global_size(a.shape[0], axis_name)
    diagonal = jnp.diagonal(correlation)
    on = jnp.sum(jnp.square(1 - diagonal))
    off = jnp.sum(jnp.square(correlation)) - jnp.sum(jnp.square(diagonal))
    return jnp.asarray(scale, dtype) * (on + jnp.asarray(off_diagonal_weight, dtype) * off)


def vicreg(
    first: Array,
    second: Array,
    *,
    invariance_weight: ArrayLike = 25.0,
    variance_weight: ArrayLike = 25.0,
    covariance_weight: ArrayLike = 1.0,
    target_deviation: ArrayLike = 1.0,
    epsilon: float = 1e-4,
    axis_name: str | None = None,
) -> Array:
    """Views agree (invariance), no feature collapses (variance), no two say the same (covariance).

    `loss = λ mean_bk (x_bk - y_bk)² + μ/2 [v(x) + v(y)] + ν [c(x) + c(y)]`, with
    `v(z) = mean_k max(0, γ - sqrt(Var z_k + ε))`, `c(z) = (1/D) Σ_{k≠l} Cov(z)_kl²`, variances divided by B - 1.

    The paper's text sums the squared distance over features and does not halve v; its weights 25, 25, 1 belong to the
    means and the half used here, which are those of its released code.

    Args:
      first, second: [B, D] expander outputs of two views of B ≥ 2 examples, of any norm.
      invariance_weight, variance_weight, covariance_weight: λ, μ, ν. target_deviation: γ.
      epsilon: ε, keeps the root differentiable. axis_name: statistics are of the whole batch.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, or a batch of one example, which has no variance.

    Example:
      >>> loss = vicreg(z[0], z[1])

    Reference: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
      Learning", 2022, eq. 1 to 6.
    """
    same_shape("first", first, "second", second)
    count = global_size(first.shape[0], axis_name)
    if count < 2:
        raise InputError("first and second hold one example: a variance needs two.")
    dtype = accumulator(first)
    x, y = first.astype(dtype), second.astype(dtype)
    loss = jnp.asarray(invariance_weight, dtype) * batch_mean(jnp.square(x - y).mean(1), axis_name)
    for z in (x, y):
        centred = z - _row(batch_mean(z, axis_name), z)
        covariance = all_devices(centred.T @ centred, axis_name) / (count - 1)
        variance = jnp.diagonal(covariance)
        hinge = jax.nn.relu(jnp.asarray(target_deviation, dtype) - jnp.sqrt(variance + epsilon)).mean()
        off = (jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(variance))) / z.shape[1]
        loss = loss + jnp.asarray(variance_weight, dtype) / 2 * hinge + jnp.asarray(covariance_weight, dtype) * off
    return loss


def _standardized(z: Array, epsilon: float, axis_name: str | None, wanted: bool) -> Array:
    if not wanted:
        return z
    centred = z - _row(batch_mean(z, axis_name), z)
    return centred * _row(jax.lax.rsqrt(batch_mean(jnp.square(centred), axis_name) + epsilon), z)


def _row(values: Array, like: Array) -> Array:
    """[D] beside [B, D]."""
    return jnp.broadcast_to(values, like.shape)
