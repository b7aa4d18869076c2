"""The vocabulary of the engine, and its dense reference: the whole matrix, and ordinary autodiff."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.ops.pairs import Block, wide

Impl = Literal["auto", "dense", "tiled", "ring", "gather"]
Tile = Callable[[Any, Block, Block, Any], Mapping[str, Array]]
TileSize = int | tuple[int, int] | None


class Reduce(NamedTuple):
    """A reduction of one channel: `per="row"` gives one value for each query [B], `per="col"` for each key [N]."""

    channel: str
    kind: Literal["sum", "logsumexp", "max"]
    per: Literal["row", "col"] = "row"


Reductions = Mapping[str, Reduce]


class Side(NamedTuple):
    """The queries with their data, or the keys with theirs: everything with one leading axis."""

    features: Any  # [B, D], or a tuple of them
    block: Block
    valid: Array | None = None  # [B] False where rows were added to fill up the last device


def similarity(queries: Any, keys: Any) -> Any:
    """q kᵀ, accumulated in float32 (float64 stays float64); tuples give tuples."""
    return jax.tree.map(
        lambda q, k: lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=wide(q.dtype)),
        queries,
        keys,
    )


def dense(tile: Tile, reductions: Reductions, queries: Side, keys: Side, shared: Any) -> dict[str, Array]:
    """Every reduction, from the whole matrix of every channel."""
    channels = tile(similarity(queries.features, keys.features), queries.block, keys.block, shared)
    return {name: _reduce(channels[r.channel], r.kind, 1 if r.per == "row" else 0) for name, r in reductions.items()}


def _reduce(values: Array, kind: str, axis: int) -> Array:
    if kind == "sum":
        return values.sum(axis)
    if kind == "max":  # the gradient goes to the first maximum
        first = jnp.expand_dims(values.argmax(axis), axis)
        return jnp.squeeze(jnp.take_along_axis(values, first, axis), axis)
    top = lax.stop_gradient(values.max(axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.exp(values - top).sum(axis)
    empty = total == 0  # every pair left out: -inf, with a zero gradient instead of 0/0
    return jnp.where(empty, -jnp.inf, jnp.squeeze(top, axis) + jnp.log(jnp.where(empty, 1, total)))
