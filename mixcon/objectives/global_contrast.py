"""Contrast with the whole data set from small batches: a moving average of every anchor's denominator.

For an anchor i with similarities S_ij to its candidates, margins `d_ij = S_ij - own_i` and temperature τ_i,

    g_i = (1/K) Σ_j exp(d_ij/τ_i)               what the batch shows of E exp(d/τ_i)
    s_i ← (1-γ) s_i + γ g_i                     remembered of every example
    V_i = (1/K) Σ_j exp(d_ij/τ_i)/s_i · d_ij    weights constant: its gradient is that of τ_i log E exp(d/τ_i)

`s` is kept as its logarithm, so that no temperature overflows and no bound has to be remembered beside it. Two sweeps
of the engine: one for g, without gradient, and one for V.

Shapes: B anchors in the batch, N examples in all, K candidates of an anchor.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon import ops
from mixcon.errors import InputError
from mixcon.ops import Block, Impl, Reduce
from mixcon.ops.reference import Tile

FirstVisit = Literal["example", "batch", "decay"]
Rate = float | Callable[[Array], Array]  # a number, or a function of the epoch (a float that counts from 0)


class Memory(NamedTuple):
    """What is kept of every example of one modality; a field that a method has no use for is ()."""

    log_average: Array  # [N] log s, -inf before the first visit
    temperature: Any = ()  # [N] τ
    slope: Any = ()  # [N] moving average of the temperature's gradient
    square: Any = ()  # [N] moving average of its square (Adam)


class Individual(NamedTuple):
    """A temperature for every example, the minimiser of `τ log E exp(d/τ) + τ ρ` between bounds.

    The gradient is `log s + ρ - V/τ = ρ - KL(softmax(d/τ) ‖ uniform)` once s = g: at the minimum the divergence is ρ.
    With `second=None` τ follows its moving average (momentum), else it takes a step of Adam.
    """

    init: float
    low: float
    high: float
    radius: float  # ρ
    rate: Rate  # η
    momentum: float  # of the gradient: u ← momentum·u + (1-momentum)·gradient
    clip: float | None  # largest absolute gradient
    second: float | None = None

    def memory(self, average: Array) -> Memory:
        """Of examples that were not seen yet."""
        zeros = jnp.zeros_like(average)
        return Memory(average, jnp.full_like(average, self.init), zeros, () if self.second is None else zeros)

    def move(self, rows: Memory, gradient: Array, epoch: Array) -> Memory:
        """The rows with their temperatures one step further down."""
        rate, square = at_epoch(self.rate, epoch).astype(gradient.dtype), rows.square
        if self.second is None:
            slope = self.momentum * rows.slope + (1 - self.momentum) * gradient
            step = slope
        else:  # no memory of gradients in epoch 0; bias correction counts epochs
            first, second = (jnp.where(epoch == 0, 0.0, b).astype(gradient.dtype) for b in (self.momentum, self.second))
            slope = first * rows.slope + (1 - first) * gradient
            square = second * rows.square + (1 - second) * jnp.square(gradient)
            visits = epoch.astype(gradient.dtype) + 1
            step = slope / (1 - first**visits) / (jnp.sqrt(square / (1 - second**visits)) + 1e-8)
        return rows._replace(
            temperature=jnp.clip(rows.temperature - rate * step, self.low, self.high), slope=slope, square=square
        )

    def at_bounds(self, rows: Memory) -> Array:
        """[B] bool: temperatures that their bounds hold."""
        low, high = (jnp.asarray(x, rows.temperature.dtype) for x in (self.low, self.high))  # as the memory holds them
        return (rows.temperature <= low) | (rows.temperature >= high)


class Average(NamedTuple):
    """How the denominators are averaged.

    first_visit: what an example starts from: its own g ("example"); g where nothing of the batch was seen before
    ("batch", SogCLR); or 0 ("decay", the code of iSogCLR: the first weights are 1/γ times too large).
    """

    weight: Rate  # γ
    first_visit: FirstVisit = "example"

    def move(self, log_old: Array, log_now: Array, epoch: Array, axis_name: str | None) -> Array:
        """log((1-γ) s + γ g)."""
        weight = jnp.broadcast_to(at_epoch(self.weight, epoch).astype(log_now.dtype), log_now.shape)
        new = jnp.isneginf(log_old)
        if self.first_visit == "batch":
            every = new.all()
            every = every if axis_name is None else lax.pmin(every.astype(jnp.int32), axis_name) > 0
            new = jnp.broadcast_to(every, new.shape)
        if self.first_visit != "decay":
            weight = jnp.where(new, 1, weight)
        return jnp.logaddexp(jnp.log1p(-weight) + log_old, jnp.log(weight) + log_now)


def individual(
    temperature: float,
    bounds: tuple[float, float],
    radius: float,
    rate: Rate,
    momentum: float,
    clip: float | None,
    second: float | None = None,
) -> Individual:
    """The rule with these numbers, if they make one."""
    low, high = bounds
    if not 0 < low <= temperature <= high:
        raise InputError(f"bounds=({low}, {high}) must be above zero and hold the first temperature, {temperature}.")
    if radius < 0 or (clip is not None and clip <= 0) or not 0 <= momentum < 1 or (not callable(rate) and rate < 0):
        raise InputError(
            f"radius={radius} and rate={rate} must not be negative, clip={clip} above zero (None: no clip), "
            f"momentum={momentum} in [0, 1)."
        )
    return Individual(temperature, low, high, radius, rate, momentum, clip, second)


def average_of(weight: Rate, first_visit: FirstVisit) -> Average:
    """The average with this weight and first visit, if there is one."""
    if not callable(weight) and not 0 < weight <= 1:
        raise InputError(f"average={weight}, the share of the batch in the moving average, must lie in (0, 1].")
    if first_visit not in get_args(FirstVisit):
        raise InputError(f"first_visit must be one of {', '.join(get_args(FirstVisit))}; got {first_visit!r}.")
    return Average(weight, first_visit)


def at_epoch(rate: Rate, epoch: Array) -> Array:
    """A rate at an epoch."""
    return jnp.asarray(rate(epoch) if callable(rate) else rate)


class Anchors(NamedTuple):
    """Of the anchors of one direction: [B] each."""

    scale: Array  # 1/τ
    own: Array  # similarity that margins are taken from
    log_average: Array  # log s; zero while it is not known


Side = Literal["row", "col"]
Sides = Mapping[Side, Anchors]


class Sweep(NamedTuple):
    """How the pairs of a batch are gone through."""

    views: int  # consecutive rows that are one example, and no candidates of one another
    candidates: int  # K
    impl: Impl
    axis_name: str | None

    def log_means(self, queries: Array, keys: Array, sides: Sides, *, positive: bool) -> dict[Side, Array]:
        """log g of the anchors of each direction, no gradient; `positive` adds exp(0) for the pair itself."""
        queries, keys, sides = lax.stop_gradient((queries, keys, dict(sides)))
        found = self._reduce(_Exponents(self.views, positive), "logsumexp", queries, keys, sides)
        return {name: total - jnp.log(jnp.asarray(self.candidates, total.dtype)) for name, total in found.items()}

    def margins(self, queries: Array, keys: Array, sides: Sides) -> dict[Side, Array]:
        """V of the anchors of each direction; gradients reach the features through d alone."""
        found = self._reduce(_Margins(self.views), "sum", queries, keys, sides)
        return {name: total / self.candidates for name, total in found.items()}

    def _reduce(
        self, tile: Tile, kind: Literal["sum", "logsumexp"], queries: Array, keys: Array, sides: Sides
    ) -> dict[Side, Array]:
        found = ops.pair_reduce(
            tile,
            queries,
            keys,
            {name: Reduce(name, kind, name) for name in sides},
            rows=sides["row"],
            cols=sides.get("col", ()),
            impl=self.impl,
            axis_name=self.axis_name,
        )
        return {name: found[name] for name in sides}


@dataclasses.dataclass(frozen=True)
class _Exponents:
    views: int
    positive: bool

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        itself, own = _itself(row, col, self.views), 0 if self.positive else -jnp.inf
        return {
            name: jnp.where(itself, own, (sim - anchors.own) * anchors.scale) for name, anchors in _facing(row, col)
        }


@dataclasses.dataclass(frozen=True)
class _Margins:
    views: int

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        itself, out = _itself(row, col, self.views), {}
        for name, anchors in _facing(row, col):
            margin = sim - anchors.own
            exponent = jnp.where(itself, -jnp.inf, margin * anchors.scale - anchors.log_average)
            out[name] = lax.stop_gradient(jnp.exp(exponent)) * margin
        return out


def _itself(row: Block, col: Block, views: int) -> Array:
    return row.position[:, None] // views == col.position[None, :] // views


def _facing(row: Block, col: Block) -> list[tuple[str, Anchors]]:
    """The anchors of each direction, spread along their axis of the tile."""
    sides = [("row", jax.tree.map(lambda x: x[:, None], row.data))]
    return [*sides, ("col", jax.tree.map(lambda x: x[None, :], col.data))] if col.data else sides
