"""What every objective does with its batch: unit rows, pairs of views, and sums over all devices.

Under `axis_name` (inside `jax.shard_map` or `jax.pmap`) arrays are this device's rows, and the loss that comes out is
the loss of the whole batch, the same on every device. Its gradient inside `shard_map` is then the full-batch gradient
of this device's rows; inside `pmap` (or with `check_vma=False`) it is that times the number of devices, so that
averaging parameter gradients over the axis, as one does there, gives the full-batch gradient again.

Shape suffixes: B rows, V views, D features.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks

Metrics = dict[str, Array]
LossOrAux = Any  # the loss, or (loss, metrics) with has_aux=True

EPS = 1e-12  # smallest norm that is divided by: a zero row stays zero


def unit_rows(name: str, x: Array, normalize: bool) -> Array:
    """Rows of unit length: made so, or (outside jit, where the values are known) refused when they are not."""
    if x.ndim != 2:
        raise InputError(f"{name} must be [B, D], got shape {x.shape}.")
    if normalize:
        return l2_normalize(x)
    try:
        checks.unit_norm(name, x)
    except InputError as error:
        raise InputError(f"{error} Pass normalize=True to divide by the norm.") from None
    return x


def accumulator(x: Array) -> Any:
    """The dtype that losses are computed in: float32, or float64 for float64 features."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def l2_normalize(x: Array) -> Array:
    """x / max(‖x‖, 1e-12) over the last axis, computed in float32; a zero row stays zero and has a finite gradient."""
    wide = x.astype(accumulator(x))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(square, EPS**2))).astype(x.dtype)


def same_shape(first: str, a: Array, second: str, b: Array) -> None:
    """Refuse two halves of a batch of pairs that differ in number or size."""
    if a.shape != b.shape:
        raise InputError(f"{first} and {second} are pairs and must have one shape [B, D], got {a.shape} and {b.shape}.")


def own_places(positive_index: ArrayLike, batch: int, keys: int) -> Array:
    """Places of the queries' own keys as int32 [B]; refuses others where they are known."""
    index = jnp.asarray(positive_index)
    if index.shape != (batch,) or not jnp.issubdtype(index.dtype, jnp.integer):
        what = f"{index.dtype}{index.shape}"
        raise InputError(f"positive_index must be one integer for each of the {batch} queries, got {what}.")
    known = checks.concrete(index)
    if known is not None and known.size and not 0 <= known.min() <= known.max() < keys:
        raise InputError(f"positive_index has {known.min()} .. {known.max()}, but there are {keys} keys.")
    return index.astype(jnp.int32)


def inverse_temperature(temperature: ArrayLike, name: str = "temperature") -> Array:
    """1/temperature, refusing what is not above zero."""
    checks.positive(name, temperature)
    wide = jnp.asarray(temperature)
    return 1 / wide.astype(accumulator(wide))


def interleave(views: Sequence[Array]) -> Array:
    """V arrays [B, D] → [BV, D], the views of one example beside each other: row i belongs to example i // V.

    A batch split over devices by its rows stays split by examples, which concatenation would not keep.
    """
    return jnp.stack(list(views), axis=1).reshape(len(views) * views[0].shape[0], *views[0].shape[1:])


def all_devices(total: Array, axis_name: str | None) -> Array:
    """Sum of every device's value."""
    return total if axis_name is None else lax.psum(total, axis_name)


def batch_sum(values: Array, axis_name: str | None) -> Array:
    """Sum over the first axis, of all devices."""
    return all_devices(values.sum(0), axis_name)


def batch_mean(values: Array, axis_name: str | None, where: Array | None = None) -> Array:
    """Mean over the first axis, of all devices and, when given, of the rows in `where` (0 if there are none)."""
    if where is None:
        mean = values.mean(0)
        return mean if axis_name is None else lax.pmean(mean, axis_name)
    keep = where.reshape(where.shape + (1,) * (values.ndim - 1))
    count = batch_sum(where.astype(values.dtype), axis_name)
    return batch_sum(jnp.where(keep, values, 0), axis_name) / jnp.maximum(count, 1)


def batch_logsumexp(values: Array, axis_name: str | None) -> Array:
    """log Σ exp over the first axis, of all devices; -inf (with a zero gradient) when every value is."""
    top = lax.stop_gradient(values.max(0))
    top = top if axis_name is None else lax.pmax(top, axis_name)
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = batch_sum(jnp.exp(values - jnp.broadcast_to(top, values.shape)), axis_name)
    return jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)


def global_size(local: int, axis_name: str | None) -> int:
    """Rows of the whole batch."""
    return local if axis_name is None else local * lax.axis_size(axis_name)


def gather(x: Array, axis_name: str | None) -> Array:
    """The rows of all devices, in order; the gradient goes back to where they came from."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def row_dot(a: Array, b: Array) -> Array:
    """[B] a_i·b_i, accumulated in float32 (float64 stays)."""
    return jnp.einsum("bd,bd->b", a, b, preferred_element_type=accumulator(a))


def with_aux(loss: Array, metrics: Metrics) -> tuple[Array, Metrics]:
    """What an objective returns when asked for more than its loss: metrics carry no gradient."""
    return loss, lax.stop_gradient(metrics)
