"""One primitive: reductions over the rows and columns of a matrix of pairs that is never formed.

Every contrastive loss of the library is an ordinary function of the vectors that `pair_reduce` returns, so autodiff
composes; the gradient through the reductions recomputes each tile once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mixcon.errors import InputError
from mixcon.ops import accumulate, checks, reference, streaming
from mixcon.ops.pairs import Block
from mixcon.ops.reference import Impl, Reduce, Reductions, Side, Tile, TileSize
from mixcon.ops.schedules import Gather, Local, Ring
from mixcon.ops.streaming import Cotangent

DATA_AXIS = "data"
DENSE_PAIRS = 2**20  # up to here the matrix costs less than the loop that avoids it
GATHER_BYTES = 2**26  # keys and their gradients that a device may hold whole


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
        over the `data` axis of the mesh in context (or of the queries' sharding), or over `axis_name` inside
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
    if impl not in ("auto", "dense", "tiled", "ring", "gather"):
        raise InputError(f"impl must be auto, dense, tiled, ring or gather, got {impl!r}.")
    queries, keys, rows, cols, shared = jax.tree.map(jnp.asarray, (queries, keys, rows, cols, shared))
    checks.features(queries, keys)
    num_rows, num_cols = jax.tree.leaves(queries)[0].shape[0], jax.tree.leaves(keys)[0].shape[0]
    for name, tree, size, what in (
        ("queries", queries, num_rows, "queries"),
        ("keys", keys, num_cols, "keys"),
        ("rows", rows, num_rows, "queries"),
        ("cols", cols, num_cols, "keys"),
    ):
        checks.leading(name, tree, size, what)
    if axis_name is not None:
        return _inside_map(tile, reductions, queries, keys, rows, cols, shared, impl, tile_size, axis_name)
    queries, keys = _side(queries, rows, 0), _side(keys, cols, 0)
    mesh = None if impl in ("dense", "tiled") else _data_mesh(queries.features)
    explicit = mesh is not None and AxisType.Explicit in mesh.axis_types  # then a plain product has no sharding
    if impl in ("ring", "gather") and mesh is None:
        raise InputError(
            f"impl={impl!r} needs a mesh with an axis {DATA_AXIS!r} of at least two devices: enter it with "
            "jax.set_mesh(mesh), or pass axis_name inside shard_map."
        )
    if impl == "dense" or (impl == "auto" and num_rows * num_cols <= DENSE_PAIRS and not explicit):
        return reference.dense(tile, reductions, queries, keys, shared)
    if mesh is None:
        return streamed(Local(tile_size), tile, reductions, queries, keys, shared)
    return _over_mesh(mesh, tile, reductions, queries, keys, shared, impl, tile_size)


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
        pivots = {name: _pivot(reductions[name].kind, found[name], values[name]) for name in found}
        return values, (floats, structure, pivots)

    def backward(kept: Any, gradients: dict[str, Array]) -> tuple[list[Array], None]:
        floats, structure, pivots = kept
        cotangents = {name: Cotangent(gradients[name], pivots[name]) for name in gradients}
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


def _pivot(kind: str, accumulator: accumulate.Accumulator, value: Array) -> Any:
    return {"sum": (), "max": accumulator[-1], "logsumexp": value}[kind]


def _side(features: Any, data: Any, offset: Any, valid: Array | None = None) -> Side:
    size = jax.tree.leaves(features)[0].shape[0]
    return Side(features, Block(offset + jnp.arange(size, dtype=jnp.int32), data), valid)


# --- over a mesh, seen whole -----------------------------------------------------------------------------------------


def _data_mesh(features: Any) -> Mesh | AbstractMesh | None:
    """The mesh in context, or else the one the features live on, if its data axis can be mapped over."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        first = jax.tree.leaves(features)[0]
        sharding = first.sharding if not isinstance(first, jax.core.Tracer) else jax.typeof(first).sharding
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else mesh
    if DATA_AXIS not in mesh.axis_names or mesh.shape[DATA_AXIS] == 1:
        return None
    return None if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[DATA_AXIS] == AxisType.Manual else mesh


def _over_mesh(
    mesh: Mesh | AbstractMesh,
    tile: Tile,
    reductions: Reductions,
    queries: Side,
    keys: Side,
    shared: Any,
    impl: Impl,
    tile_size: TileSize,
) -> dict[str, Array]:
    """Global arrays: give each device its share of rows (filling up the last), and map the schedule over them."""
    devices = mesh.shape[DATA_AXIS]
    num_rows, num_cols = queries.block.position.shape[0], keys.block.position.shape[0]
    schedule = _choose(impl, keys.features, num_cols, DATA_AXIS, tile_size)
    share = PartitionSpec(DATA_AXIS)

    def body(queries: Side, keys: Side, shared: Any) -> dict[str, Array]:
        shared = streaming.vary(shared, like=(), axes=(DATA_AXIS,))
        return streamed(schedule, tile, reductions, queries, keys, shared)

    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(share, share, PartitionSpec()),
        out_specs=share,
        axis_names={a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual},
    )
    queries, keys = _fill(queries, devices), _fill(keys, devices)
    if AxisType.Explicit in mesh.axis_types:
        queries, keys = jax.reshard((queries, keys), NamedSharding(mesh, share))
        shared = jax.reshard(shared, NamedSharding(mesh, PartitionSpec()))
    out = mapped(queries, keys, shared)
    return {name: x[: num_rows if reductions[name].per == "row" else num_cols] for name, x in out.items()}


def _fill(side: Side, devices: int) -> Side:
    size = side.block.position.shape[0]
    extra = -size % devices
    if not extra:
        return side
    side = side._replace(valid=jnp.ones(size, bool))
    return jax.tree.map(lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), side)


def _choose(impl: Impl, keys: Any, num_keys: int, axis: str, tile_size: TileSize) -> Ring | Gather:
    held = sum(num_keys * x.shape[1] * (x.dtype.itemsize + 4) for x in jax.tree.leaves(keys))
    if impl == "gather" or (impl == "auto" and held <= GATHER_BYTES):
        return Gather(axis, tile_size)
    return Ring(axis, tile_size)


# --- inside shard_map or pmap ----------------------------------------------------------------------------------------


def _inside_map(
    tile: Tile,
    reductions: Reductions,
    queries: Any,
    keys: Any,
    rows: Any,
    cols: Any,
    shared: Any,
    impl: Impl,
    tile_size: TileSize,
    axis: str,
) -> dict[str, Array]:
    """This device's shares: its queries against everyone's keys."""
    if impl == "tiled":
        raise InputError(f"impl='tiled' is for one device; with axis_name={axis!r} use 'ring', 'gather' or 'auto'.")
    devices, place = lax.axis_size(axis), lax.axis_index(axis)
    num_rows, num_cols = (jax.tree.leaves(x)[0].shape[0] for x in (queries, keys))
    if max(num_rows, num_cols) * devices >= checks.MAX_INDEX:
        raise InputError(f"positions are 32-bit: {devices} devices of {num_rows} x {num_cols} are too many.")
    queries, keys, rows, cols, shared = streaming.vary(
        (queries, keys, rows, cols, shared), like=(queries, keys, rows, cols, shared), axes=(axis,)
    )
    own = _side(queries, rows, place * np.int32(num_rows)), _side(keys, cols, place * np.int32(num_cols))
    if impl == "dense":
        whole, whole_keys = jax.tree.map(lambda x: lax.all_gather(x, axis, tiled=True), own)
        out = reference.dense(tile, reductions, whole, whole_keys, shared)
        size = {"row": num_rows, "col": num_cols}
        return {
            name: lax.dynamic_slice_in_dim(x, place * np.int32(size[r.per]), size[r.per])
            for (name, x), r in ((item, reductions[item[0]]) for item in out.items())
        }
    schedule = _choose(impl, keys, num_cols * devices, axis, tile_size)
    return streamed(schedule, tile, reductions, *own, shared)
