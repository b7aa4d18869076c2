"""Where a computation over pairs runs: dense, on one device, over a mesh seen whole, or inside a mapped function."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.pairs import Block
from mixcon.ops.reference import Impl, Side, TileSize
from mixcon.ops.schedules import Axis, Gather, Local, Ring
from mixcon.ops.streaming import vary

DATA_AXIS = "data"
DENSE_PAIRS = 2**20  # up to here the matrix costs less than the loop that avoids it
GATHER_BYTES = 2**26  # keys and their gradients that a device may hold whole

Result = dict[str, Array]


def place(
    dense: Callable[[Side, Side, Any], Result],
    streamed: Callable[[Local | Ring | Gather, Side, Side, Any], Result],
    per: Mapping[str, Literal["row", "col"]],
    queries: Any,
    keys: Any,
    rows: Any,
    cols: Any,
    shared: Any,
    *,
    impl: Impl,
    tile_size: TileSize,
    axis_name: str | None,
) -> Result:
    """Check the arrays, choose a schedule, and run `dense` or `streamed` there; `per` says whose axis a result has."""
    if impl not in get_args(Impl):
        raise InputError(f"impl must be one of {', '.join(get_args(Impl))}; got {impl!r}.")
    if tile_size is not None and min(tile_size if isinstance(tile_size, tuple) else (tile_size,)) < 1:
        raise InputError(f"tile_size must be positive, got {tile_size}.")
    queries, keys, rows, cols, shared = jax.tree.map(jnp.asarray, (queries, keys, rows, cols, shared))
    checks.features(queries, keys)
    sizes = {"row": _size(queries), "col": _size(keys)}
    for name, tree, axis in (("queries", queries, "row"), ("keys", keys, "col"), ("rows", rows, "row"), ("cols", cols, "col")):  # fmt: skip  # noqa: E501
        checks.leading(name, tree, sizes[axis], "queries" if axis == "row" else "keys")
    if axis_name is not None:
        arrays = (queries, keys, rows, cols, shared)
        arrays = vary(arrays, like=arrays, axes=(axis_name,))
        return _inside_map(dense, streamed, per, arrays, sizes, impl, tile_size, axis_name)
    left, right = _side(queries, rows), _side(keys, cols)
    mesh = None if impl in ("dense", "tiled") else _mesh(queries)
    if impl in ("ring", "gather") and mesh is None:
        raise InputError(
            f"impl={impl!r} needs a mesh with an axis {DATA_AXIS!r} and at least two devices: enter it with "
            "jax.set_mesh(mesh), or pass axis_name inside shard_map."
        )
    # Where shardings are explicit a product of two sharded matrices has none, so a mesh is always mapped over.
    small = sizes["row"] * sizes["col"] <= DENSE_PAIRS and (mesh is None or AxisType.Explicit not in mesh.axis_types)
    if impl == "dense" or (impl == "auto" and small):
        return dense(left, right, shared)
    if mesh is None:
        return streamed(Local(tile_size), left, right, shared)
    return _over_mesh(mesh, streamed, per, left, right, shared, sizes, impl, tile_size)


def _side(features: Any, data: Any, offset: Any = 0) -> Side:
    return Side(features, Block(offset + jnp.arange(_size(features), dtype=jnp.int32), data))


def _size(features: Any) -> int:
    return jax.tree.leaves(features)[0].shape[0]


def _choose(impl: Impl, keys: Any, num_keys: int, axis: Axis, tile_size: TileSize) -> Ring | Gather:
    held = sum(num_keys * x.shape[1] * (x.dtype.itemsize + 4) for x in jax.tree.leaves(keys))
    if impl == "gather" or (impl == "auto" and held <= GATHER_BYTES):
        return Gather(axis, tile_size)
    return Ring(axis, tile_size)


# --- over a mesh, seen whole -----------------------------------------------------------------------------------------


def _mesh(features: Any) -> Mesh | AbstractMesh | None:
    """The mesh in context, or else the one the features live on, if its data axis can be mapped over."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        first = jax.tree.leaves(features)[0]
        sharding = jax.typeof(first).sharding if isinstance(first, jax.core.Tracer) else first.sharding
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else mesh
    if DATA_AXIS not in _free_axes(mesh):
        return None
    return mesh if any(mesh.shape[axis] > 1 for axis in _free_axes(mesh)) else None


def _free_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=True)
    return tuple(axis for axis, kind in kinds if kind != AxisType.Manual)


def _over_mesh(
    mesh: Mesh | AbstractMesh,
    streamed: Callable[[Local | Ring | Gather, Side, Side, Any], Result],
    per: Mapping[str, Literal["row", "col"]],
    queries: Side,
    keys: Side,
    shared: Any,
    sizes: Mapping[str, int],
    impl: Impl,
    tile_size: TileSize,
) -> Result:
    """Global arrays: give each device its share of rows (filling up the last), and map the schedule over them.

    Every axis of the mesh shares the work, also those over which the features are replicated.
    """
    axes = _free_axes(mesh)
    axis: Axis = axes[0] if len(axes) == 1 else axes
    devices = int(np.prod([mesh.shape[a] for a in axes]))
    schedule = _choose(impl, keys.features, sizes["col"], axis, tile_size)
    share = PartitionSpec(axis)

    def body(queries: Side, keys: Side, shared: Any) -> Result:
        return streamed(schedule, queries, keys, vary(shared, like=(), axes=axes))

    queries, keys = _fill(queries, devices), _fill(keys, devices)
    if AxisType.Explicit in mesh.axis_types:
        queries, keys = jax.reshard((queries, keys), NamedSharding(mesh, share))
        shared = jax.reshard(shared, NamedSharding(mesh, PartitionSpec()))
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(share, share, PartitionSpec()), out_specs=share, axis_names=set(axes)
    )
    return {name: x[: sizes[per[name]]] for name, x in mapped(queries, keys, shared).items()}


def _fill(side: Side, devices: int) -> Side:
    """Rows added until the devices divide them, and marked as not valid."""
    size = side.block.position.shape[0]
    extra = -size % devices
    if not extra:
        return side
    side = side._replace(valid=jnp.ones(size, bool))
    return jax.tree.map(lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)), side)


# --- inside shard_map or pmap ----------------------------------------------------------------------------------------


def _inside_map(
    dense: Callable[[Side, Side, Any], Result],
    streamed: Callable[[Local | Ring | Gather, Side, Side, Any], Result],
    per: Mapping[str, Literal["row", "col"]],
    arrays: Any,
    sizes: Mapping[str, int],
    impl: Impl,
    tile_size: TileSize,
    axis: str,
) -> Result:
    """This device's shares: its queries against everyone's keys."""
    if impl == "tiled":
        raise InputError(f"impl='tiled' is for one device; with axis_name={axis!r} use 'ring', 'gather' or 'auto'.")
    queries, keys, rows, cols, shared = arrays
    devices, here = lax.axis_size(axis), lax.axis_index(axis)
    if max(sizes.values()) * devices >= checks.MAX_INDEX:
        raise InputError(f"positions are 32-bit: {devices} devices of {sizes['row']} x {sizes['col']} are too many.")
    left = _side(queries, rows, here * np.int32(sizes["row"]))
    right = _side(keys, cols, here * np.int32(sizes["col"]))
    if impl != "dense":
        return streamed(_choose(impl, keys, sizes["col"] * devices, axis, tile_size), left, right, shared)
    left, right = jax.tree.map(lambda x: lax.all_gather(x, axis, tiled=True), (left, right))
    out = {}
    for name, x in dense(left, right, shared).items():
        size = sizes[per[name]]
        out[name] = lax.dynamic_slice_in_dim(x, here * np.int32(size), size)
    return out
