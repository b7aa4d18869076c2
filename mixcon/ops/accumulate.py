"""Running reductions: what is carried from tile to tile, merged around the ring, and turned into the result.

An accumulator is a tuple of vectors, one entry for each row (or column):
  sum        (total,)
  logsumexp  (top, total) with value top + log(total), top the running maximum
  max        (top, where) with the position of the first maximum, so that the gradient finds it again
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mixcon.ops.reference import Reduce

Accumulator = tuple[Array, ...]
NOWHERE = jnp.iinfo(jnp.int32).max


def empty(kind: str, size: int, dtype: jnp.dtype) -> Accumulator:
    """The accumulator of no pairs."""
    if kind == "sum":
        return (jnp.zeros(size, dtype),)
    if kind == "logsumexp":
        return jnp.full(size, -jnp.inf, dtype), jnp.zeros(size, dtype)
    return jnp.full(size, -jnp.inf, dtype), jnp.full(size, NOWHERE, jnp.int32)


def merge(kind: str, a: Accumulator, b: Accumulator) -> Accumulator:
    """The accumulator of the pairs of both."""
    if kind == "sum":
        return (a[0] + b[0],)
    top = jnp.maximum(a[0], b[0])
    if kind == "logsumexp":
        return top, a[1] * jnp.exp(a[0] - finite(top)) + b[1] * jnp.exp(b[0] - finite(top))
    first_a, first_b = jnp.where(a[0] == top, a[1], NOWHERE), jnp.where(b[0] == top, b[1], NOWHERE)
    return top, jnp.minimum(first_a, first_b)


def merge_all(
    reductions: Mapping[str, Reduce], a: dict[str, Accumulator], b: dict[str, Accumulator]
) -> dict[str, Accumulator]:
    """`merge` for every reduction by name."""
    return {name: merge(reductions[name].kind, a[name], b[name]) for name in a}


def value(kind: str, accumulator: Accumulator) -> Array:
    """The result of the reduction; -inf for an empty logsumexp or max."""
    if kind != "logsumexp":
        return accumulator[0]
    top, total = accumulator
    return jnp.where(total > 0, finite(top) + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)


def of_tile(kind: str, channel: Array, axis: int, position: Array) -> Accumulator:
    """The accumulator of one tile, reduced along `axis`; `position` are the global positions along that axis."""
    if kind == "sum":
        return (channel.sum(axis),)
    top = channel.max(axis)
    if kind == "max":
        return top, position[channel.argmax(axis)]
    top = lax.stop_gradient(top)  # the result does not depend on it, so neither do second derivatives
    return top, jnp.exp(channel - jnp.expand_dims(finite(top), axis)).sum(axis)


class Cotangent(NamedTuple):
    """What the backward pass knows of one reduction; the slope of a channel c is

    sum: gradient;  logsumexp: gradient · exp(c - pivot);  max: gradient where the position is the pivot.
    """

    gradient: Array
    pivot: Any


def cotangent(kind: str, accumulator: Accumulator, gradient: Array) -> Cotangent:
    """From the finished accumulator and the gradient of its value."""
    if kind == "sum":
        return Cotangent(gradient, ())
    if kind == "max":
        return Cotangent(gradient, accumulator[1])
    # Dividing by the total, instead of subtracting its log from every logit, keeps the softmax as exact as its sum.
    top, total = accumulator
    return Cotangent(jnp.where(total > 0, gradient / jnp.where(total > 0, total, 1), 0), finite(top))


def finite(top: Array) -> Array:
    """A running maximum that can be subtracted: 0 where nothing was seen, so that -inf - 0 stays -inf."""
    return jnp.where(top == -jnp.inf, 0, top)
