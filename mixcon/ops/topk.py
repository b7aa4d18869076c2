"""The hardest keys of each query, without the matrix: forward only, for miners and synthetic negatives."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.ops import streaming
from mixcon.ops.accumulate import NOWHERE
from mixcon.ops.pairs import Block, Pairs, wide
from mixcon.ops.placement import place
from mixcon.ops.reference import Impl, Side, TileSize, similarity
from mixcon.ops.schedules import Gather, Local, Ring, grid, pass_on


class TopK(NamedTuple):
    """The k most similar keys of each query, in descending order."""

    similarity: Array  # [B, k] float32; -inf where a query has fewer than k candidates
    indices: Array  # [B, k] int32, position among the keys; -1 there


def top_k(
    queries: Array,
    keys: Array,
    k: int,
    *,
    included: Pairs | None = None,
    impl: Impl = "auto",
    tile_size: TileSize = None,
    axis_name: str | None = None,
) -> TopK:
    """The k keys with the highest q·k of each query, among the `included` pairs.

    No gradient flows: gather the keys with `indices` and multiply again where one is wanted.

    Args:
      queries, keys: [B, D], [N, D]. k: at least 1.
      included: yes/no pairs, e.g. `pairs.not_self()` or `~pairs.same_label(y)`; default all.
      impl, tile_size, axis_name: see `pair_reduce`; under `axis_name` the indices are global positions.

    Returns:
      `TopK(similarity [B, k], indices [B, k])`. Ties go to the lower index.

    Example:
      >>> hardest = top_k(q, queue, 16).indices  # [B, 16]
    """
    rows, cols, shared = ((), (), ()) if included is None else (included.rows, included.cols, included.shared)
    return best_keys(
        _Similarity(None if included is None else included.rule),
        queries,
        keys,
        k,
        rows=rows,
        cols=cols,
        shared=shared,
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )


@dataclasses.dataclass(frozen=True)
class _Similarity:
    included: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> Array:
        return sim if self.included is None else jnp.where(self.included(row, col, shared), sim, -jnp.inf)


Score = Callable[[Array, Block, Block, Any], Array]  # (similarity [R, C], row, col, shared) -> [R, C]


def best_keys(
    score: Score,
    queries: Array,
    keys: Array,
    k: int,
    *,
    rows: Any = (),
    cols: Any = (),
    shared: Any = (),
    impl: Impl = "auto",
    tile_size: TileSize = None,
    axis_name: str | None = None,
) -> TopK:
    """The k keys of each query with the highest score, a function of the similarity and of what belongs to the pair.

    Args:
      score: as the `tile` of `pair_reduce`, but gives one array; -inf leaves a pair out.
      For the others see `top_k` and `pair_reduce`. No gradient flows.

    Returns:
      `TopK`, with scores in place of similarities.

    Example:
      >>> nearest_other = best_keys(lambda s, row, col, _: jnp.where(row.data[:, None] != col.data[None], s, -jnp.inf),
      ...                           q, q, 1, rows=labels, cols=labels).indices[:, 0]
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}.")
    queries, keys, rows, cols, shared = lax.stop_gradient((queries, keys, rows, cols, shared))

    def candidates(row: Side, col: Side, shared: Any) -> Array:
        return score(similarity(row.features, col.features), row.block, col.block, shared)

    def dense(row: Side, col: Side, shared: Any) -> dict[str, Array]:
        return _best(candidates(row, col, shared), jnp.broadcast_to(col.block.position, (_size(row), _size(col))), k)

    def sweep(row: Side, col: Side, shared: Any, tile_size: TileSize, found: dict[str, Array]) -> dict[str, Array]:
        cut = grid(row, col, tile_size)

        def step(found: dict[str, Array], t: Array) -> tuple[dict[str, Array], None]:
            at = streaming.window(cut, t, row.valid, col.valid)
            q, c = streaming.take(row, at.row, cut.tile_rows), streaming.take(col, at.col, cut.tile_cols)
            sim = candidates(q, c, shared)
            if at.fresh_cols is not None:
                sim = jnp.where(at.fresh_cols[None, :], sim, -jnp.inf)
            best = _best(sim, jnp.broadcast_to(c.block.position, sim.shape), k)
            before = streaming.take(found, at.row, cut.tile_rows)
            after = _merge(before, best)
            fresh_rows = at.fresh_rows
            if fresh_rows is not None:
                after = jax.tree.map(lambda a, b: jnp.where(fresh_rows[:, None], a, b), after, before)
            return streaming.put(found, at.row, after), None

        return streaming.over_tiles(cut, step, found)

    def streamed(schedule: Local | Ring | Gather, row: Side, col: Side, shared: Any) -> dict[str, Array]:
        dtype = wide(row.features.dtype)
        found = {
            "similarity": jnp.full((_size(row), k), -jnp.inf, dtype),
            "indices": jnp.full((_size(row), k), NOWHERE, jnp.int32),
        }
        found = streaming.vary(found, like=(row, col))
        if isinstance(schedule, Local):
            return sweep(row, col, shared, schedule.tile_size, found)

        def turn(carry: Any, _: None) -> tuple[Any, None]:
            col, found = carry
            return (pass_on(col, schedule.axis), sweep(row, col, shared, schedule.tile_size, found)), None

        return lax.scan(turn, (col, found), length=lax.axis_size(schedule.axis))[0][1]

    per: Any = {"similarity": "row", "indices": "row"}
    out = place(
        dense, streamed, per, queries, keys, rows, cols, shared, impl=impl, tile_size=tile_size, axis_name=axis_name
    )
    return TopK(out["similarity"], jnp.where(out["similarity"] == -jnp.inf, -1, out["indices"]))


def _best(sim: Array, position: Array, k: int) -> dict[str, Array]:
    """The best k of a tile [R, C], filled up with nothing if it has fewer columns."""
    value, where = lax.top_k(sim, min(k, sim.shape[1]))
    index = jnp.take_along_axis(position, where, axis=1)
    fill = [(0, 0), (0, k - value.shape[1])]
    return {
        "similarity": jnp.pad(value, fill, constant_values=-jnp.inf),
        "indices": jnp.pad(index, fill, constant_values=NOWHERE),
    }


def _merge(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """The best k of two lists; equal similarities by index, whatever the order in which blocks arrive."""
    k = a["indices"].shape[1]
    value, index = (jnp.concatenate([a[name], b[name]], axis=1) for name in ("similarity", "indices"))
    down, index = lax.sort((-value, index), dimension=1, num_keys=2)
    return {"similarity": -down[:, :k], "indices": index[:, :k]}


def _size(side: Side) -> int:
    return side.block.position.shape[0]
