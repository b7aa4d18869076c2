"""Who meets whom, when: on one device, around a ring of devices, or after gathering the keys.

A schedule has `forward`, which returns the accumulators of every reduction (of this device's queries and keys), and
`backward`, which returns the gradients of this device's arrays. In a ring, device r holds the keys of device r + t at
step t. Their features and data travel one place per step, beside the accumulators (backward: the gradients) that belong
to them, which trail one step behind: so neither transfer waits for the step's arithmetic, nor the arithmetic for it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from mixcon.ops import streaming
from mixcon.ops.accumulate import Accumulator, Cotangent, merge_all
from mixcon.ops.reference import Reductions, Side, Tile, TileSize
from mixcon.ops.streaming import Gradients, Grid

Axis = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Local:
    """Everything is here."""

    tile_size: TileSize = None

    def forward(
        self, tile: Tile, reductions: Reductions, queries: Side, keys: Side, shared: Any
    ) -> dict[str, Accumulator]:
        return streaming.forward(tile, reductions, grid(queries, keys, self.tile_size), queries, keys, shared)

    def backward(
        self,
        tile: Tile,
        reductions: Reductions,
        queries: Side,
        keys: Side,
        shared: Any,
        cotangents: Mapping[str, Cotangent],
    ) -> Gradients:
        cut = grid(queries, keys, self.tile_size)
        return streaming.backward(tile, reductions, cut, queries, keys, shared, cotangents)


@dataclasses.dataclass(frozen=True)
class Ring:
    """Keys travel around the axis."""

    axis: Axis
    tile_size: TileSize = None

    def forward(
        self, tile: Tile, reductions: Reductions, queries: Side, keys: Side, shared: Any
    ) -> dict[str, Accumulator]:
        local = Local(self.tile_size)
        resident, travelling = _split(reductions)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            keys, trailing, kept = carry
            next_keys, trailing = self._pass_on(keys), self._pass_on(trailing)
            part = local.forward(tile, reductions, queries, keys, shared)
            kept = merge_all(reductions, kept, {name: part[name] for name in resident})
            trailing = merge_all(reductions, trailing, {name: part[name] for name in travelling})
            return (next_keys, trailing, kept), None

        nothing = streaming.nothing(reductions, queries, keys)
        start = (keys, {name: nothing[name] for name in travelling}, {name: nothing[name] for name in resident})
        _, trailing, kept = lax.scan(step, start, length=lax.axis_size(self.axis))[0]
        return {**self._pass_on(trailing), **kept}

    def backward(
        self,
        tile: Tile,
        reductions: Reductions,
        queries: Side,
        keys: Side,
        shared: Any,
        cotangents: Mapping[str, Cotangent],
    ) -> Gradients:
        local = Local(self.tile_size)
        resident, travelling = _split(reductions)
        own_cotangents = {name: cotangents[name] for name in resident}

        def step(carry: Any, _: None) -> tuple[Any, None]:
            (keys, key_cotangents), trailing, kept = carry
            arriving, trailing = self._pass_on((keys, key_cotangents)), self._pass_on(trailing)
            part = local.backward(tile, reductions, queries, keys, shared, {**own_cotangents, **key_cotangents})
            kept = streaming.add(kept, (part.query_features, part.query_data, part.shared))
            trailing = streaming.add(trailing, (part.key_features, part.key_data))
            return (arriving, trailing, kept), None

        zero = streaming.no_gradients(queries, keys, shared)
        start = (
            (keys, {name: cotangents[name] for name in travelling}),
            (zero.key_features, zero.key_data),
            (zero.query_features, zero.query_data, zero.shared),
        )
        _, trailing, (features, data, rest) = lax.scan(step, start, length=lax.axis_size(self.axis))[0]
        key_features, key_data = self._pass_on(trailing)
        return Gradients(features, data, key_features, key_data, rest)

    def _pass_on(self, tree: Any) -> Any:
        return pass_on(tree, self.axis)


@dataclasses.dataclass(frozen=True)
class Gather:
    """Every device sees all keys at once: fewer, larger transfers, for batches small enough to be held whole."""

    axis: Axis
    tile_size: TileSize = None

    def forward(
        self, tile: Tile, reductions: Reductions, queries: Side, keys: Side, shared: Any
    ) -> dict[str, Accumulator]:
        out = Local(self.tile_size).forward(tile, reductions, queries, self.gather(keys), shared)
        _, travelling = _split(reductions)
        if not travelling:
            return out
        parts = jax.tree.map(self._to_owners, {name: out[name] for name in travelling})
        first = jax.tree.map(lambda x: x[0], parts)
        rest = jax.tree.map(lambda x: x[1:], parts)
        merged = lax.scan(lambda total, part: (merge_all(reductions, total, part), None), first, rest)[0]
        return {**out, **merged}

    def backward(
        self,
        tile: Tile,
        reductions: Reductions,
        queries: Side,
        keys: Side,
        shared: Any,
        cotangents: Mapping[str, Cotangent],
    ) -> Gradients:
        _, travelling = _split(reductions)
        cotangents = {**cotangents, **self.gather({name: cotangents[name] for name in travelling})}
        out = Local(self.tile_size).backward(tile, reductions, queries, self.gather(keys), shared, cotangents)
        features, data = jax.tree.map(
            lambda x: lax.psum_scatter(x, self.axis, tiled=True), (out.key_features, out.key_data)
        )
        return out._replace(key_features=features, key_data=data)

    def gather(self, tree: Any) -> Any:
        """The rows of all devices, in order."""
        return jax.tree.map(lambda x: lax.all_gather(x, self.axis, tiled=True), tree)

    def _to_owners(self, x: jax.Array) -> jax.Array:
        parts = x.reshape(lax.axis_size(self.axis), -1)
        return lax.all_to_all(parts, self.axis, 0, 0)


def pass_on(tree: Any, axis: Axis) -> Any:
    """Everything to the device before this one; so what arrives comes from the one after it."""
    size = lax.axis_size(axis)
    return lax.ppermute(tree, axis, [(i, (i - 1) % size) for i in range(size)])


def _split(reductions: Reductions) -> tuple[list[str], list[str]]:
    by_row = [name for name, r in reductions.items() if r.per == "row"]
    return by_row, [name for name in reductions if name not in by_row]


def grid(queries: Side, keys: Side, tile_size: TileSize) -> Grid:
    """The cut of the pair matrix into tiles: square, and small enough for a cache (CPU) or a scratch buffer."""
    rows, cols = queries.block.position.shape[0], keys.block.position.shape[0]
    if tile_size is None:
        # Measured (docs/engine.md): squares keep the two products' operands in cache; an accelerator wants more work
        # per step than a CPU. Narrow matrices get longer tiles.
        side = 1024 if platform() == "cpu" else 4096
        area = side * side
        tile_rows = min(rows, max(side, area // min(cols, side)))
        tile_size = tile_rows, min(cols, max(side, area // tile_rows))
    elif isinstance(tile_size, int):
        tile_size = tile_size, tile_size
    return Grid(rows, cols, _even(rows, tile_size[0]), _even(cols, tile_size[1]))


def platform() -> str:
    """Of the mesh in context, whose devices need not be here; else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def _even(size: int, tile: int) -> int:
    """At most `tile`, such that equal tiles cover `size` with the least overlap."""
    tile = min(size, tile)
    return -(-size // -(-size // tile))
