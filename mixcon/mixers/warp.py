"""Moves: what happens to one source before it is mixed.

Some methods shrink, crop or transport a picture, or align a feature map, before they average. Each is a linear map over
places, so it belongs to the plan. Three forms cover them all, from cheap to general.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Grid(NamedTuple):
    """Separable resampling: the place (i, j) reads the source at (rows_i, cols_j).

    rows: [B or 1, H]; cols: [B or 1, W], None for sequences. Integer coordinates gather, float ones interpolate.
    """

    rows: Array
    cols: Array | None = None


class Blocks(NamedTuple):
    """Square blocks change places: block j of the result is block `source[j]`. source: int32 [B, t·t]."""

    source: Array


class Transport(NamedTuple):
    """A dense map over places, `y_i = Σ_j matrix_ij x_j`. matrix: [B, r, r] with r = H·W or T."""

    matrix: Array


Move = Grid | Blocks | Transport


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """What sums are taken in: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def move(how: Move | None, x: Array) -> Array:
    """Apply one move to a source.

    Args:
        how: the move, or None for no move.
        x: [B, H, W, C]; [B, T, D] too for `Transport` and for a `Grid` of rows.
    Returns:
        The moved source, in the shape and dtype of x.
    Example:
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> move(Grid(jnp.array([[1, 0]]), jnp.array([[0, 1]])), x)[0, :, :, 0].tolist()
        [[2.0, 3.0], [0.0, 1.0]]
    """
    if how is None:
        return x
    if isinstance(how, Grid):
        x = _resample(x, how.rows, 1)
        return x if how.cols is None else _resample(x, how.cols, 2)
    if isinstance(how, Blocks):
        return _move_blocks(x, how.source)
    wide = wide_dtype(x.dtype)
    flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(wide)
    return jnp.einsum("bij,bjc->bic", how.matrix.astype(wide), flat).reshape(x.shape).astype(x.dtype)


def _gather(x: Array, index: Array, axis: int) -> Array:
    if index.shape[0] == 1:
        return jnp.take(x, index[0], axis=axis, mode="clip")
    shape = [index.shape[0]] + [1] * (x.ndim - 1)
    shape[axis] = index.shape[1]
    return jnp.take_along_axis(x, index.reshape(shape), axis=axis, mode="clip")


def _resample(x: Array, where: Array, axis: int) -> Array:
    if jnp.issubdtype(where.dtype, jnp.integer):
        return _gather(x, where, axis)
    wide = wide_dtype(x.dtype)
    low = jnp.floor(where).astype(jnp.int32)
    shape = [where.shape[0]] + [1] * (x.ndim - 1)
    shape[axis] = where.shape[1]
    part = (where - low.astype(where.dtype)).reshape(shape).astype(wide)
    last = x.shape[axis] - 1
    first, second = _gather(x, jnp.clip(low, 0, last), axis), _gather(x, jnp.clip(low + 1, 0, last), axis)
    return ((1.0 - part) * first.astype(wide) + part * second.astype(wide)).astype(x.dtype)


def _move_blocks(x: Array, index: Array) -> Array:
    batch, height, width, channels = x.shape
    t = round(index.shape[1] ** 0.5)
    bh, bw = height // t, width // t
    blocks = x.reshape(batch, t, bh, t, bw, channels).transpose(0, 1, 3, 2, 4, 5).reshape(batch, t * t, -1)
    moved = jnp.take_along_axis(blocks, index[:, :, None], axis=1)
    return moved.reshape(batch, t, t, bh, bw, channels).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def nearest_rows(low: Array, high: Array, size: int) -> Array:
    """Source index of each place when `size` rows are shrunk into [low, high), by `floor(t · size/n)`.

    low, high: int32 [n]; returns int32 [n, size]; places outside the target read the nearest edge (never shown).
    """
    length = jnp.maximum(high - low, 1)[:, None]
    place = jnp.clip(jnp.arange(size)[None, :] - low[:, None], 0, length - 1)
    scale = jnp.float32(size) / length.astype(jnp.float32)
    return jnp.minimum(jnp.floor(place.astype(jnp.float32) * scale).astype(jnp.int32), size - 1)


def bilinear_rows(low: Array, high: Array, size: int) -> Array:
    """As `nearest_rows`, half-pixel centres, float32 coordinates clamped at the edges."""
    length = jnp.maximum(high - low, 1)[:, None]
    place = jnp.clip(jnp.arange(size)[None, :] - low[:, None], 0, length - 1).astype(jnp.float32)
    scale = jnp.float32(size) / length.astype(jnp.float32)
    return jnp.clip((place + 0.5) * scale - 0.5, 0.0, float(size - 1))


def corner_rows(low: Array, high: Array, source_low: Array, source_high: Array, size: int) -> Array:
    """Rows of [source_low, source_high) stretched over [low, high) with corners aligned; float32 [n, size]."""
    length = jnp.maximum(high - low, 1)[:, None]
    place = jnp.clip(jnp.arange(size)[None, :] - low[:, None], 0, length - 1).astype(jnp.float32)
    span = jnp.maximum(source_high - source_low - 1, 0).astype(jnp.float32)[:, None]
    step = jnp.where(length > 1, span / jnp.maximum(length - 1, 1).astype(jnp.float32), 0.0)
    return jnp.clip(source_low[:, None].astype(jnp.float32) + place * step, 0.0, float(size - 1))
