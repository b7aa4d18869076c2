"""Exact minimisation of convex label energies on a grid, as one min-cut, inside jit.

The energy `Σ_p D_p(l_p) + Σ_{pq} w_pq (l_p - l_q)²` over labels 0..L-1 equals, with bits t_i = [l ≥ i], a cut of a
graph
with B²(L-1) nodes. Its maximum flow is found by synchronous push-relabel: every arc kind is one array operation, and
distances to the sink are recomputed by breadth-first relaxation every few rounds. Integers throughout, so it is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError

FAR = 1 << 28  # more than any path; also the capacity of an arc that must not be cut
ROUNDS = 8  # pushes and relabels between two exact distances
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # index ^ 1 is the opposite direction


class Flow(NamedTuple):
    excess: Array  # [K, B, B]
    height: Array  # [K, B, B]
    sink: Array  # [K, B, B] residual capacity to the sink
    side: Array  # [4, K, K, B, B] residual capacity from level i of a cell to level j of its neighbour
    down: Array  # [K - 1, B, B] residual capacity from level i + 1 to level i
    up: Array  # [K - 1, B, B] and back


def convex_label_mincut(unary: Array, vertical: Array, horizontal: Array) -> Array:
    """Labels of least energy, `Σ unary[l] + Σ w (l - l')² / (L-1)²`.

    Args:
        unary: int32 [n, B, B, L].
        vertical: int32 ≥ 0 [n, B-1, B], weight between a cell and the one below it.
        horizontal: int32 ≥ 0 [n, B, B-1], weight between a cell and the one to its right.
    Returns:
        int32 labels [n, B, B]; of several minima, the one with the largest labels.
    Raises:
        InputError: shapes that do not fit, or other than integers.
    Example:
        >>> unary = jnp.array([[[[0, 5, 9], [9, 5, 0]], [[0, 5, 9], [9, 5, 0]]]])
        >>> convex_label_mincut(unary, jnp.zeros((1, 1, 2), int), jnp.zeros((1, 2, 1), int))[0].tolist()
        [[0, 2], [0, 2]]
    """
    n, rows, cols, labels = unary.shape
    if vertical.shape != (n, rows - 1, cols) or horizontal.shape != (n, rows, cols - 1) or labels < 2:
        raise InputError(
            f"unary {list(unary.shape)}, vertical {list(vertical.shape)} and horizontal {list(horizontal.shape)} "
            "are not the costs of one grid."
        )
    if any(not jnp.issubdtype(a.dtype, jnp.integer) for a in (unary, vertical, horizontal)):
        raise InputError("the costs must be integers (scale and truncate them first).")
    return jax.vmap(_solve)(unary.astype(jnp.int32), vertical.astype(jnp.int32), horizontal.astype(jnp.int32))


def label_energy(labels: Array, unary: Array, vertical: Array, horizontal: Array) -> Array:
    """The energy of given labels, float32 [n] (exact while it stays below 2^24)."""
    span = unary.shape[-1] - 1
    total = jnp.take_along_axis(unary, labels[..., None], axis=-1).sum(axis=(1, 2, 3)).astype(jnp.float32)
    for weight, a, b in ((vertical, labels[:, 1:], labels[:, :-1]), (horizontal, labels[:, :, 1:], labels[:, :, :-1])):
        total = total + (weight * jnp.square(a - b)).sum(axis=(1, 2)).astype(jnp.float32) / span**2
    return total


def _solve(unary: Array, vertical: Array, horizontal: Array) -> Array:
    rows, cols, labels = unary.shape
    levels = labels - 1
    edges = [
        jnp.pad(vertical, ((0, 1), (0, 0))),
        jnp.pad(vertical, ((1, 0), (0, 0))),
        jnp.pad(horizontal, ((0, 0), (0, 1))),
        jnp.pad(horizontal, ((0, 0), (1, 0))),
    ]
    # (l - l')² over bits: w on every pair of levels both ways, and w (l² - levels·l) on each end of each edge.
    label = jnp.arange(labels, dtype=jnp.int32).reshape(1, 1, labels)
    cost = unary * levels**2 + sum(edges, start=jnp.zeros_like(vertical, shape=(rows, cols)))[..., None] * (
        label * label - levels * label
    )
    step = jnp.moveaxis(cost[..., 1:] - cost[..., :-1], -1, 0)  # what raising bit i costs
    flow = Flow(
        excess=jnp.maximum(-step, 0),
        height=jnp.zeros_like(step),
        sink=jnp.maximum(step, 0),
        side=jnp.broadcast_to(jnp.stack(edges)[:, None, None], (4, levels, levels, rows, cols)),
        down=jnp.full((levels - 1, rows, cols), FAR),  # bit i + 1 without bit i is forbidden
        up=jnp.zeros((levels - 1, rows, cols), jnp.int32),
    )

    def unfinished(flow: Flow) -> Array:
        return ((flow.excess > 0) & (flow.height < FAR)).any()

    def improve(flow: Flow) -> Flow:
        flow = jax.lax.fori_loop(0, ROUNDS, lambda _, f: _relabel(_push(f)), flow)
        return flow._replace(height=_distance(flow))

    flow = jax.lax.while_loop(unfinished, improve, flow._replace(height=_distance(flow)))
    return (flow.height >= FAR).sum(axis=0).astype(jnp.int32)  # what cannot reach the sink has its bit set


def _seen(value: Array, direction: int) -> Array:
    """The neighbour's value at each cell (the edge wraps, where capacities are zero)."""
    dy, dx = DIRECTIONS[direction]
    return jnp.roll(value, (-dy, -dx), axis=(-2, -1))


def _arrived(value: Array, direction: int) -> Array:
    """What each cell receives when every cell sends its value to its neighbour."""
    dy, dx = DIRECTIONS[direction]
    return jnp.roll(value, (dy, dx), axis=(-2, -1))


def _push(flow: Flow) -> Flow:
    excess, height, sink, side, down, up = flow
    amount = jnp.where(height == 1, jnp.minimum(excess, sink), 0)
    excess, sink = excess - amount, sink - amount
    levels = excess.shape[0]
    for d in range(4):
        for i in range(levels):
            for j in range(levels):
                downhill = height[i] == _seen(height[j], d) + 1
                amount = jnp.where(downhill, jnp.minimum(excess[i], side[d, i, j]), 0)
                moved = _arrived(amount, d)
                excess = excess.at[i].add(-amount).at[j].add(moved)
                side = side.at[d, i, j].add(-amount).at[d ^ 1, j, i].add(moved)
    for i in range(levels - 1):
        amount = jnp.where(height[i + 1] == height[i] + 1, jnp.minimum(excess[i + 1], down[i]), 0)
        amount = amount - jnp.where(height[i] == height[i + 1] + 1, jnp.minimum(excess[i], up[i]), 0)
        excess = excess.at[i + 1].add(-amount).at[i].add(amount)
        down, up = down.at[i].add(-amount), up.at[i].add(amount)
    return Flow(excess, height, sink, side, down, up)


def _lowest(flow: Flow) -> Array:
    """One more than the lowest height that residual arcs lead to, [K, B, B]."""
    height = flow.height
    best = jnp.where(flow.sink > 0, 0, FAR)
    for d in range(4):
        reach = jnp.where(flow.side[d] > 0, _seen(height, d)[None], FAR)
        best = jnp.minimum(best, reach.min(axis=1))
    if flow.down.shape[0]:
        best = best.at[1:].min(jnp.where(flow.down > 0, height[:-1], FAR))
        best = best.at[:-1].min(jnp.where(flow.up > 0, height[1:], FAR))
    return jnp.minimum(best + 1, FAR)


def _relabel(flow: Flow) -> Flow:
    raised = jnp.where(flow.excess > 0, jnp.maximum(flow.height, _lowest(flow)), flow.height)
    return flow._replace(height=raised)


def _distance(flow: Flow) -> Array:
    """Exact distances to the sink in the residual graph; FAR where it cannot be reached."""

    def relax(state: tuple[Array, Array]) -> tuple[Array, Array]:
        height, _ = state
        closer = jnp.minimum(height, _lowest(flow._replace(height=height)))
        return closer, (closer != height).any()

    start = jnp.full_like(flow.height, FAR)
    height, _ = jax.lax.while_loop(lambda s: s[1], relax, (start, jnp.bool_(True)))
    return height
