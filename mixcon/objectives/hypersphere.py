"""The two halves of contrast on the sphere: positives near each other, everything spread out."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    accumulator,
    batch_logsumexp,
    batch_mean,
    batch_sum,
    global_size,
    same_shape,
    unit_rows,
)
from mixcon.ops import Impl, checks, pairs


def alignment(
    first: Array, second: Array, *, alpha: float = 2.0, normalize: bool = False, axis_name: str | None = None
) -> Array:
    """How near positives are: `mean_i ‖x_i - y_i‖^α`.

    Args:
      first, second: [B, D] unit rows, row i of each a pair. alpha: α > 0, 2 for the squared distance.
      normalize: divide rows by their norm first. axis_name: the mean is of the whole batch.

    Returns:
      Scalar, in [0, 2^α].

    Raises:
      InputError: shapes that differ, α not above zero, rows not of unit length (outside jit).

    Example:
      >>> loss = alignment(x, y) + (uniformity(x) + uniformity(y)) / 2

    Reference: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere", 2020, section 4.1.1.
    """
    same_shape("first", first, "second", second)
    checks.positive("alpha", alpha)
    first, second = unit_rows("first", first, normalize), unit_rows("second", second, normalize)
    square = jnp.sum(jnp.square(first.astype(accumulator(first)) - second.astype(accumulator(second))), axis=1)
    if alpha == 2:
        return batch_mean(square, axis_name)
    apart = square > 0  # the power has no finite derivative at 0 for α < 2
    return batch_mean(jnp.where(apart, jnp.where(apart, square, 1) ** (alpha / 2), 0), axis_name)


def uniformity(
    first: Array,
    second: Array | None = None,
    *,
    t: ArrayLike = 2.0,
    include_self: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """How evenly rows cover the sphere: `log mean_{i≠j} exp(-t ‖x_i - y_j‖²)`, lower is more even.

    Args:
      first: [B, D] unit rows, B ≥ 2. second: [B, D], for the spread between two sets of pairs; default `first` itself.
      t: inverse bandwidth; for the form exp(-d²/2τ), t = 1/(2τ).
      include_self: average over the pairs (i, i) too. normalize, impl, axis_name: as for `info_nce`.

    Returns:
      Scalar, at most 0.

    Raises:
      InputError: shapes that differ, t not above zero, a single row, rows not of unit length (outside jit).

    Example:
      >>> spread = uniformity(x)
      >>> cross = uniformity(image, text)

    Reference: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere", 2020, section 4.1.2.
    """
    checks.positive("t", t)
    first = unit_rows("first", first, normalize)
    if second is not None:
        same_shape("first", first, "second", second)
        second = unit_rows("second", second, normalize)
    if global_size(first.shape[0], axis_name) < 2 and not include_self:
        raise InputError("first has a single row: uniformity is over pairs of rows.")
    value, weight = ops.gaussian_potential(
        first,
        second,
        t=t,
        included=None if include_self else pairs.not_self(),
        impl=impl,
        axis_name=axis_name,
    )
    return batch_logsumexp(value, axis_name) - jnp.log(batch_sum(weight, axis_name))
