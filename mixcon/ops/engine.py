"""One primitive: reductions over the rows and columns of a matrix of pairs that is never formed.

Every contrastive loss of the library is an ordinary function of the vectors that `pair_reduce` returns, so autodiff
composes; the gradient through the reductions recomputes each tile once.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from mixcon.ops import accumulate, reference, streaming
from mixcon.ops.placement import place
from mixcon.ops.reference import Impl, Reduce, Reductions, Side, Tile, TileSize
from mixcon.ops.schedules import Gather, Local, Ring


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
    tile_size: TileSize = None,
    axis_name: str | None = None,
) -> dict[str, Array]:
    """Reduce channels of the pair matrix over its rows and columns, in memory linear in B and N.

    `out[name]_i = reduce_j channel(S_ij, row_i, col_j, shared)` with `S = queries keysᵀ`, exact in value and gradient.

    Args:
      tile: pure function `(similarity [R, C], row: Block, col: Block, shared) -> {channel: [R, C]}`, elementwise in the
        pairs. `row.position` and `col.position` are places in the global batch, `row.data` and `col.data` blocks of
        `rows` and `cols`. It must not close over traced arrays: pass them through `rows`, `cols` or `shared`. -inf
        leaves a pair out of a logsumexp or max.
      queries, keys: features [B, D] and [N, D] (float32 or bfloat16; similarities are float32), or equal-length tuples
        of them: `tile` then sees a tuple of similarities.
      reductions: name -> `Reduce(channel, kind, per)`.
      rows, cols: pytrees of arrays with leading axis B and N. shared: pytree of anything smaller.
      impl: "dense" forms the matrix (the reference); "tiled" streams it on one device; "ring" and "gather" spread it
        over the mesh in context (or of the queries' sharding) if it has a `data` axis, or over `axis_name` inside
        `shard_map`; "auto" chooses by size.
      tile_size: rows (or rows, columns) of a tile; chosen from the shapes when None.
      axis_name: the mapped axis when called inside `shard_map` or `pmap`; the arrays are then this device's shares.

    Returns:
      name -> float32 vector, [B] for per="row" and [N] for per="col". An empty logsumexp or max is -inf.

    Raises:
      InputError: shapes or dtypes that do not fit, or a schedule that this place does not allow.

    Example:
      >>> out = pair_reduce(lambda s, row, col, shared: {"logits": s / 0.1}, q, k,
      ...                   {"log_denominator": Reduce("logits", "logsumexp")})
    """
    return place(
        lambda queries, keys, shared: reference.dense(tile, reductions, queries, keys, shared),
        lambda schedule, queries, keys, shared: streamed(schedule, tile, reductions, queries, keys, shared),
        {name: r.per for name, r in reductions.items()},
        queries,
        keys,
        rows,
        cols,
        shared,
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )


def streamed(
    schedule: Local | Ring | Gather, tile: Tile, reductions: Reductions, queries: Side, keys: Side, shared: Any
) -> dict[str, Array]:
    """The reductions by a schedule, with its own derivative: the tiles are recomputed, never kept."""
    structure = (queries, keys, shared)
    floats, build = streaming.split_floats(structure)

    @jax.custom_vjp
    def run(floats: list[Array], structure: Any) -> dict[str, Array]:
        return forward(floats, structure)[0]

    def forward(floats: list[Array], structure: Any) -> tuple[dict[str, Array], Any]:
        found = schedule.forward(tile, reductions, *build(structure, floats))
        values = {name: accumulate.value(reductions[name].kind, a) for name, a in found.items()}
        return values, (floats, structure, found)

    def backward(kept: Any, gradients: dict[str, Array]) -> tuple[list[Array], None]:
        floats, structure, found = kept
        cotangents = {
            name: accumulate.cotangent(reductions[name].kind, found[name], g) for name, g in gradients.items()
        }
        queries, keys, shared = build(structure, floats)
        out = schedule.backward(tile, reductions, queries, keys, shared, cotangents)
        ordered = [
            *jax.tree.leaves(out.query_features),
            *out.query_data,
            *jax.tree.leaves(out.key_features),
            *out.key_data,
            *out.shared,
        ]
        return [g.astype(x.dtype) for g, x in zip(ordered, floats, strict=True)], None

    run.defvjp(forward, backward)
    return run(floats, structure)
