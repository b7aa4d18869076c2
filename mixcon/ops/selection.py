"""Order statistics of each query's similarities, without the matrix and without a list of k.

A list of the k best costs B·k numbers, which is B·N when k is a share of the keys. Here the k-th largest value is found
digit by digit: each pass over the tiles counts, for every query, how many similarities reach each of a few candidates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.ops import engine, pairs, reference, streaming
from mixcon.ops.pairs import Block, Pairs, wide
from mixcon.ops.placement import place
from mixcon.ops.reference import Impl, Reduce, Side, TileSize
from mixcon.ops.schedules import Gather, Local, Ring

DIGIT = 2  # bits that one pass settles


class Kth(NamedTuple):
    """Where the k largest similarities of each query end; see `weights`."""

    value: Array  # [B] the k-th largest; -inf where a query has fewer than k candidates
    low: Array  # [B] half way to the next smaller similarity
    high: Array  # [B] half way to the next larger one
    share: Array  # [B] weight of each that equals the k-th, so that all weights sum to k; 1 without ties

    @staticmethod
    def weights(similarity: Array, low: Array, high: Array, share: Array) -> Array:
        """Weights of a tile [R, C] from entries of its rows: 1 for the k largest, and what is left for ties."""
        last = jnp.where(similarity > low[:, None], share[:, None], 0)
        return jnp.where(similarity > high[:, None], 1, last)


def kth_largest(
    queries: Array,
    keys: Array,
    k: int,
    *,
    included: Pairs | None = None,
    impl: Impl = "auto",
    tile_size: TileSize = None,
    axis_name: str | None = None,
) -> Kth:
    """The k-th largest q·k of each query, among the `included` pairs, in memory that does not grow with k.

    Exact: similarities are ordered by their bits. 18 passes over the tiles for float32, 34 for float64; no gradient.

    Args:
      queries, keys: [B, D], [N, D]. k: at least 1.
      included: yes/no pairs, e.g. `pairs.not_self()`; default all.
      impl, tile_size, axis_name: see `pair_reduce`.

    Returns:
      `Kth(value, low, high, share)`, each [B]. `low` and `high` lie between similarities, so that a comparison with
      them does not hang on the last bit of a product that is computed again.

    Raises:
      InputError: k below 1, or shapes that do not fit.

    Example:
      >>> threshold = kth_largest(q, bank, 4095).value
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}.")
    queries, keys = lax.stop_gradient((queries, keys))
    kept = pairs.everything() if included is None else included

    def dense(row: Side, col: Side, shared: Any) -> dict[str, Array]:
        def run(tile: Any, reductions: Any, own: Any, extra: Any = ()) -> dict[str, Array]:
            return reference.dense(tile, reductions, _knowing(row, own), col, (extra, shared))

        return _select(run, row, k, kept.rule)

    def streamed(schedule: Local | Ring | Gather, row: Side, col: Side, shared: Any) -> dict[str, Array]:
        if isinstance(schedule, Gather):  # once, and not in every pass
            col, schedule = schedule.gather(col), Local(schedule.tile_size)

        def run(tile: Any, reductions: Any, own: Any, extra: Any = ()) -> dict[str, Array]:
            return engine.streamed(schedule, tile, reductions, _knowing(row, own), col, (extra, shared))

        return _select(run, row, k, kept.rule)

    per: Any = dict.fromkeys(Kth._fields, "row")
    arrays = (queries, keys, kept.rows, kept.cols, kept.shared)
    return Kth(**place(dense, streamed, per, *arrays, impl=impl, tile_size=tile_size, axis_name=axis_name))


Pass = Callable[..., dict[str, Array]]  # (tile, reductions, what a tile knows of its queries, and of everything)


def _knowing(row: Side, own: Any) -> Side:
    return row._replace(block=Block(row.block.position, (own, row.block.data)))


def _select(run: Pass, row: Side, k: int, included: Any) -> dict[str, Array]:
    """The fields of `Kth`, from passes over the tiles."""
    dtype = wide(row.features.dtype)
    word = jnp.uint64 if dtype == jnp.float64 else jnp.uint32
    bits = np.dtype(word).itemsize * 8
    counts = {str(digit): Reduce(str(digit), "sum") for digit in range(1, 2**DIGIT)}

    def settle(turn: Array, prefix: Array) -> Array:
        shift = jnp.asarray(bits - DIGIT, word) - (turn * DIGIT).astype(word)
        found = run(_Reached(included), counts, prefix, shift)
        reached = sum((found[name] >= k).astype(word) for name in counts)
        return prefix | (jnp.asarray(reached) << shift)

    start = streaming.vary(jnp.zeros(row.features.shape[0], word), like=row)
    value = _from_ordered(lax.fori_loop(0, bits // DIGIT, settle, start), dtype)
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)  # no candidate was reached by k similarities

    beside = run(_Beside(included), {"below": Reduce("below", "max"), "above": Reduce("above", "max")}, value)
    below, above = beside["below"], -beside["above"]
    middle = (value + below) / 2
    low = jnp.where(middle < value, middle, below)  # nothing lies between neighbours in the last bit
    middle = (value + above) / 2
    high = jnp.where(middle < above, middle, value)
    number = run(_Between(included), {"more": Reduce("more", "sum"), "ties": Reduce("ties", "sum")}, (low, high))
    share = (k - number["more"]) / jnp.maximum(number["ties"], 1)
    return {"value": value, "low": low, "high": high, "share": jnp.clip(share, 0, 1)}


def _ordered(x: Array) -> Array:
    """Unsigned integers in the order of the floats."""
    word = jnp.uint64 if x.dtype == jnp.float64 else jnp.uint32
    bits = lax.bitcast_convert_type(x, word)
    sign = jnp.asarray(1, word) << (np.dtype(word).itemsize * 8 - 1)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _from_ordered(bits: Array, dtype: Any) -> Array:
    """The floats that `_ordered` gave these integers."""
    sign = jnp.asarray(1, bits.dtype) << (bits.dtype.itemsize * 8 - 1)
    return lax.bitcast_convert_type(jnp.where(bits & sign, bits ^ sign, ~bits), dtype)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """`row.data` is (what a pass knows of its queries, what `included` needs of them); static, hence hashable."""

    included: Any

    def kept(self, row: Block, col: Block, shared: Any) -> Array:
        return self.included(Block(row.position, row.data[1]), col, shared[1])


class _Reached(_Tile):
    """1 where a similarity reaches the prefix followed by a digit."""

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        kept, rank = self.kept(row, col, shared), _ordered(sim)
        out = {}
        for digit in range(1, 2**DIGIT):
            candidate = row.data[0] | (jnp.asarray(digit, rank.dtype) << shared[0])
            out[str(digit)] = (kept & (rank >= candidate[:, None])).astype(sim.dtype)
        return out


class _Beside(_Tile):
    """Similarities below the k-th, and those above it with their sign turned."""

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        kept, value = self.kept(row, col, shared), row.data[0][:, None]
        return {
            "below": jnp.where(kept & (sim < value), sim, -jnp.inf),
            "above": jnp.where(kept & (sim > value), -sim, -jnp.inf),
        }


class _Between(_Tile):
    """1 where a similarity is above the k-th, and where it equals it."""

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        low, high = row.data[0]
        kept, more = self.kept(row, col, shared), sim > high[:, None]
        return {
            "more": (kept & more).astype(sim.dtype),
            "ties": (kept & ~more & (sim > low[:, None])).astype(sim.dtype),
        }
