"""One device's share: sweep the pair matrix tile by tile, forward into accumulators, backward into gradients.

Forward, each tile is a product of a block of queries with a block of keys, reduced at once. Backward, the tile is built
again, the gradient of every channel follows from the finished vectors, and its product with the keys (queries) is added
to the gradient of the queries (keys). 8·B·N·D operations for both directions of a symmetric loss.

Tiles need not divide the batch: the last one is moved back to end with it, and pairs seen before are masked ("stale").
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.ops import accumulate
from mixcon.ops.accumulate import Accumulator, Cotangent
from mixcon.ops.pairs import Block, wide
from mixcon.ops.reference import Reduce, Side, Tile, similarity


class Grid(NamedTuple):
    """How the pair matrix is cut. Static."""

    rows: int
    cols: int
    tile_rows: int
    tile_cols: int

    @property
    def across(self) -> int:
        return -(-self.cols // self.tile_cols)

    @property
    def steps(self) -> int:
        return -(-self.rows // self.tile_rows) * self.across


class Window(NamedTuple):
    """Where tile `t` begins, and which of its rows and columns no earlier tile has seen (None: all)."""

    row: Array
    col: Array
    fresh_rows: Array | None
    fresh_cols: Array | None


def over_tiles(grid: Grid, step: Callable[[Any, Array], tuple[Any, None]], start: Any) -> Any:
    """Carry `start` through `step(carry, t)` for every tile; a single tile needs no loop."""
    if grid.steps == 1:
        return step(start, jnp.int32(0))[0]
    return lax.scan(step, start, jnp.arange(grid.steps, dtype=jnp.int32))[0]


def window(grid: Grid, t: Array, valid_rows: Array | None, valid_cols: Array | None) -> Window:
    row, fresh_rows = _start(t // grid.across, grid.rows, grid.tile_rows, valid_rows)
    col, fresh_cols = _start(t % grid.across, grid.cols, grid.tile_cols, valid_cols)
    return Window(row, col, fresh_rows, fresh_cols)


def _start(i: Array, size: int, tile: int, valid: Array | None) -> tuple[Array, Array | None]:
    start = jnp.minimum(i * tile, size - tile)
    here = None if valid is None else take(valid, start, tile)
    if size % tile == 0:
        return start, here
    unseen = start + jnp.arange(tile, dtype=jnp.int32) >= i * tile
    return start, unseen if here is None else unseen & here


def take(tree: Any, start: Array, size: int) -> Any:
    """Rows [start, start + size) of every leaf."""
    return jax.tree.map(lambda x: x if x.shape[0] == size else lax.dynamic_slice_in_dim(x, start, size), tree)


def put(tree: Any, start: Array, update: Any) -> Any:
    """`tree` with the rows from `start` replaced."""
    return jax.tree.map(
        lambda x, u: u if x.shape == u.shape else lax.dynamic_update_slice_in_dim(x, u, start, 0), tree, update
    )


def forward(
    tile: Tile, reductions: Mapping[str, Reduce], grid: Grid, queries: Side, keys: Side, shared: Any
) -> dict[str, Accumulator]:
    """Accumulators of every reduction over all pairs of `queries` and `keys`."""

    def step(carry: dict[str, Accumulator], t: Array) -> tuple[dict[str, Accumulator], None]:
        at = window(grid, t, queries.valid, keys.valid)
        q, k = take(queries, at.row, grid.tile_rows), take(keys, at.col, grid.tile_cols)
        channels = tile(similarity(q.features, k.features), q.block, k.block, shared)
        new = {}
        for name, part in reduce_tile(reductions, channels, at, q.block.position, k.block.position).items():
            r = reductions[name]
            begin, size = (at.row, grid.tile_rows) if r.per == "row" else (at.col, grid.tile_cols)
            seen = take(carry[name], begin, size)
            new[name] = put(carry[name], begin, accumulate.merge(r.kind, seen, part))
        return new, None

    start = nothing(reductions, queries, keys)
    return over_tiles(grid, step, start)


def nothing(reductions: Mapping[str, Reduce], queries: Side, keys: Side) -> dict[str, Accumulator]:
    """Accumulators before the first tile."""
    dtype = wide(jax.tree.leaves(queries.features)[0].dtype)
    size = {"row": queries.block.position.shape[0], "col": keys.block.position.shape[0]}
    start = {name: accumulate.empty(r.kind, size[r.per], dtype) for name, r in reductions.items()}
    return vary(start, like=(queries, keys))


def reduce_tile(
    reductions: Mapping[str, Reduce], channels: Mapping[str, Array], at: Window, row_at: Array, col_at: Array
) -> dict[str, Accumulator]:
    """Accumulators of one tile."""
    out = {}
    for name, r in reductions.items():
        channel = fresh(channels[r.channel], at, 0 if r.kind == "sum" else -jnp.inf)
        axis, position = (1, col_at) if r.per == "row" else (0, row_at)
        out[name] = accumulate.of_tile(r.kind, channel, axis, position)
    return out


def fresh(channel: Array, at: Window, fill: float) -> Array:
    """The channel with the pairs that an earlier tile has seen replaced by `fill`."""
    if at.fresh_rows is not None:
        channel = jnp.where(at.fresh_rows[:, None], channel, fill)
    if at.fresh_cols is not None:
        channel = jnp.where(at.fresh_cols[None, :], channel, fill)
    return channel


class Gradients(NamedTuple):
    """Accumulated in float32; features, float leaves of the row (column) data."""

    query_features: Any
    query_data: list[Array]
    key_features: Any
    key_data: list[Array]
    shared: list[Array]


def backward(
    tile: Tile,
    reductions: Mapping[str, Reduce],
    grid: Grid,
    queries: Side,
    keys: Side,
    shared: Any,
    cotangents: Mapping[str, Cotangent],
) -> Gradients:
    """Gradients with respect to every float leaf, one recomputation of each tile."""
    row_leaves, row_build = split_floats(queries.block.data)
    col_leaves, col_build = split_floats(keys.block.data)
    shared_leaves, shared_build = split_floats(shared)
    by_row = {name: c for name, c in cotangents.items() if reductions[name].per == "row"}
    by_col = {name: c for name, c in cotangents.items() if reductions[name].per == "col"}

    def step(carry: Gradients, t: Array) -> tuple[Gradients, None]:
        at = window(grid, t, queries.valid, keys.valid)
        (q, row_floats, row_cot) = take((queries, row_leaves, by_row), at.row, grid.tile_rows)
        (k, col_floats, col_cot) = take((keys, col_leaves, by_col), at.col, grid.tile_cols)
        sim = similarity(q.features, k.features)

        def channels_of(sim: Any, rows: list[Array], cols: list[Array], rest: list[Array]) -> Mapping[str, Array]:
            row = Block(q.block.position, row_build(q.block.data, rows))
            col = Block(k.block.position, col_build(k.block.data, cols))
            out = tile(sim, row, col, shared_build(shared, rest))
            # A channel of constants is the same on every device, but its slope is not.
            return vary({name: out[name] for name in {r.channel for r in reductions.values()}}, like=(q, k))

        channels, pullback = jax.vjp(channels_of, sim, row_floats, col_floats, shared_leaves)
        slopes = {
            name: fresh(_slope(reductions, name, channel, row_cot, col_cot, q.block.position, k.block.position), at, 0)
            for name, channel in channels.items()
        }
        d_sim, d_rows, d_cols, d_shared = pullback(slopes)
        d_queries = jax.tree.map(lambda d, x: _product(d, x, 1), d_sim, k.features)
        d_keys = jax.tree.map(lambda d, x: _product(d, x, 0), d_sim, q.features)
        own, other = (carry.query_features, carry.query_data), (carry.key_features, carry.key_data)
        own = put(own, at.row, add(take(own, at.row, grid.tile_rows), (d_queries, d_rows)))
        other = put(other, at.col, add(take(other, at.col, grid.tile_cols), (d_keys, d_cols)))
        return Gradients(own[0], own[1], other[0], other[1], add(carry.shared, d_shared)), None

    start = no_gradients(queries, keys, shared)
    return over_tiles(grid, step, start)


def no_gradients(queries: Side, keys: Side, shared: Any) -> Gradients:
    """Gradients before the first tile."""
    floats = Gradients(
        queries.features,
        split_floats(queries.block.data)[0],
        keys.features,
        split_floats(keys.block.data)[0],
        split_floats(shared)[0],
    )
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), floats)
    return vary(start, like=(queries, keys))


def _slope(
    reductions: Mapping[str, Reduce],
    channel_name: str,
    channel: Array,
    row_cot: Mapping[str, Cotangent],
    col_cot: Mapping[str, Cotangent],
    row_at: Array,
    col_at: Array,
) -> Array:
    """Gradient of the loss with respect to one channel of a tile."""
    total = jnp.zeros_like(channel)
    for name, r in reductions.items():
        if r.channel != channel_name:
            continue
        if r.per == "row":
            cot, position = jax.tree.map(lambda x: x[:, None], row_cot[name]), col_at[None, :]
        else:
            cot, position = jax.tree.map(lambda x: x[None, :], col_cot[name]), row_at[:, None]
        if r.kind == "sum":
            total += cot.gradient
        elif r.kind == "max":
            total += jnp.where(position == cot.pivot, cot.gradient, 0)
        else:
            total += cot.gradient * jnp.exp(channel - cot.pivot)
    return total


def _product(slope: Array, features: Array, contract: int) -> Array:
    """slope · features over the tile's columns (1) or rows (0), in the features' precision with float32 sums."""
    return lax.dot_general(
        slope.astype(features.dtype), features, (((contract,), (0,)), ((), ())), preferred_element_type=slope.dtype
    )


def vary(tree: Any, like: Any, axes: tuple[str, ...] = ()) -> Any:
    """Mark arrays as different on each device wherever `like` is (and along `axes`), as `shard_map` wants to know."""
    wanted = set(axes).union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(like)))

    def mark(x: Array) -> Array:
        missing = tuple(sorted(wanted - jax.typeof(x).manual_axis_type.varying))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)


def add(total: Any, update: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, update)


def split_floats(tree: Any) -> tuple[list[Array], Callable[[Any, list[Array]], Any]]:
    """The float leaves of a tree, and a function that puts others in their place in a tree of the same structure."""
    leaves, structure = jax.tree.flatten(tree)
    chosen = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def build(like: Any, floats: list[Array]) -> Any:
        out = jax.tree.leaves(like)
        for i, x in zip(chosen, floats, strict=True):
            out[i] = x
        return jax.tree.unflatten(structure, out)

    return [leaves[i] for i in chosen], build
