"""One primitive: reductions over the rows and columns of a matrix of pairs that is never formed.

`pair_reduce` takes queries [B, D] and keys [N, D], a `tile` function that turns a block of similarities into named
channels, and a set of reductions (sum, logsumexp, max; per row or per column). Every contrastive loss of the library is
an ordinary function of the vectors that come out, so autodiff composes; the gradient through the reductions recomputes
each tile once.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.pairs import Block

Impl = Literal["auto", "dense", "tiled", "ring", "gather"]
Tile = Callable[[Any, Block, Block, Any], Mapping[str, Array]]


class Reduce(NamedTuple):
    """A reduction of one channel: `per="row"` gives one value for each query [B], `per="col"` for each key [N]."""

    channel: str
    kind: Literal["sum", "logsumexp", "max"]
    per: Literal["row", "col"] = "row"


def pair_reduce(
    tile: Tile,
    queries: Any,
    keys: Any,
    reductions: Mapping[str, Reduce],
    *,
    rows: Any = (),
    cols: Any = (),
    shared: Any = (),
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> dict[str, Array]:
    """Reduce channels of the pair matrix over its rows and columns, in memory linear in B and N.

    `out[name]_i = reduce_j channel(S_ij, row_i, col_j, shared)` with `S = queries keysᵀ`, exact in value and gradient.

    Args:
      tile: pure function `(similarity [R, C], row: Block, col: Block, shared) -> {channel: [R, C]}`, elementwise in the
        pairs. `row.position`, `col.position` are global positions, `row.data`, `col.data` the blocks of `rows` and `cols`. It
        must not close over traced arrays: pass them through `rows`, `cols` or `shared`. -inf leaves a pair out of a
        logsumexp or max.
      queries, keys: features [B, D] and [N, D] (float32 or bfloat16; similarities are float32), or equal-length tuples
        of them: `tile` then sees a tuple of similarities.
      reductions: name -> `Reduce(channel, kind, per)`.
      rows, cols: pytrees of arrays with leading axis B and N. shared: pytree of anything smaller.
      impl: "dense" forms the matrix (the reference); "tiled" streams it on one device; "ring" and "gather" spread it
        over the `data` axis of the mesh in context, or over `axis_name` inside `shard_map`; "auto" chooses.
      tile_size: rows (or rows, columns) of a tile; chosen from the shapes when None.
      axis_name: the mapped axis when called inside `shard_map` or `pmap`; the arrays are then this device's shares.

    Returns:
      name -> float32 vector, [B] for per="row" and [N] for per="col". An empty logsumexp or max is -inf.

    Raises:
      InputError: shapes or dtypes that do not fit, naming the argument.

    Example:
      >>> out = pair_reduce(lambda s, row, col, shared: {"logits": s / 0.1}, q, k,
      ...                   {"log_denominator": Reduce("logits", "logsumexp")})
    """
    checks.features(queries, keys)
    num_rows, num_cols = jax.tree.leaves(queries)[0].shape[0], jax.tree.leaves(keys)[0].shape[0]
    checks.leading("queries", queries, num_rows, "queries")
    checks.leading("keys", keys, num_cols, "keys")
    checks.leading("rows", rows, num_rows, "queries")
    checks.leading("cols", cols, num_cols, "keys")
    if impl not in ("auto", "dense", "tiled", "ring", "gather"):
        raise InputError(f"impl must be auto, dense, tiled, ring or gather, got {impl!r}.")
    row = Block(jnp.arange(num_rows, dtype=jnp.int32), rows)
    col = Block(jnp.arange(num_cols, dtype=jnp.int32), cols)
    return _dense(tile, queries, keys, dict(reductions), row, col, shared)


def similarity(queries: Any, keys: Any) -> Any:
    """q kᵀ, accumulated in float32 (float64 stays float64); tuples give tuples."""
    return jax.tree.map(
        lambda q, k: lax.dot_general(
            q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.promote_types(q.dtype, jnp.float32)
        ),
        queries,
        keys,
    )


def _dense(
    tile: Tile, queries: Any, keys: Any, reductions: dict[str, Reduce], row: Block, col: Block, shared: Any
) -> dict[str, Array]:
    """The reference: the whole matrix, and ordinary autodiff."""
    channels = tile(similarity(queries, keys), row, col, shared)
    return {name: _reduce(channels[r.channel], r.kind, 1 if r.per == "row" else 0) for name, r in reductions.items()}


def _reduce(values: Array, kind: str, axis: int) -> Array:
    if kind == "sum":
        return values.sum(axis)
    if kind == "max":
        return values.max(axis)
    top = lax.stop_gradient(values.max(axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.exp(values - top).sum(axis)
    empty = total == 0  # every pair left out: -inf, with a zero gradient instead of 0/0
    return jnp.where(empty, -jnp.inf, jnp.squeeze(top, axis) + jnp.log(jnp.where(empty, 1, total)))
