"""From moving averages and temperatures to objectives: of two views of an example, or of pairs of two modalities."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.objectives.batch import (
    Metrics,
    accumulator,
    batch_mean,
    global_size,
    interleave,
    row_dot,
    same_shape,
    unit_rows,
)
from mixcon.objectives.global_contrast import Anchors, Average, Individual, Memory, Side, Sweep
from mixcon.objectives.objective import Objective
from mixcon.objectives.per_example import example_ids, recall, remember
from mixcon.ops import Impl, checks

Temperature = float | Individual | None  # constant; one for each example; one for all, learned as `logit_scale`
SIDES: Mapping[str, Side] = {"image": "row", "text": "col"}


def of_views(
    num_examples: int,
    temperature: float | Individual,
    average: Average,
    *,
    views: Literal["mean", "sum"],
    dtype: Any,
    normalize: bool,
    impl: Impl,
    axis_name: str | None,
) -> Objective:
    """Both views of every example as anchors, with one memory; see `isogclr`."""
    start = empty(num_examples, temperature, dtype)
    if views not in ("mean", "sum"):
        raise InputError(f'views must be "mean" or "sum" (of the averages of both), got {views!r}.')

    def apply(
        memory: Memory, first: Array, second: Array, *, index: ArrayLike, epoch: ArrayLike = 0
    ) -> tuple[Array, Metrics, Memory]:
        same_shape("first", first, "second", second)
        size = several(first, axis_name)
        first, second = unit_rows("first", first, normalize), unit_rows("second", second, normalize)
        ids = example_ids("index", index, len(first), num_examples)
        wide = accumulator(first)
        old, now = recall(memory, ids), jnp.asarray(epoch).astype(wide)
        tau = temperature_of(temperature, old, None, len(first), wide)
        rows = interleave([first, second])
        nothing = jnp.zeros(len(rows), wide)
        anchors = Anchors(jnp.repeat(1 / tau, 2), nothing, nothing)
        sweep = Sweep(2, 2 * (size - 1), impl, axis_name)
        log_mean = sweep.log_means(rows, rows, {"row": anchors}, positive=False)["row"]
        log_average = average.move(jnp.repeat(old.log_average.astype(wide), 2), log_mean, now, axis_name)
        margin = sweep.margins(rows, rows, {"row": anchors._replace(log_average=log_average)})["row"]
        loss = batch_mean(margin.reshape(-1, 2).sum(1) - 2 * row_dot(first, second), axis_name)
        pair = log_average.reshape(-1, 2)
        kept = jnp.logaddexp(pair[:, 0], pair[:, 1]) - (jnp.log(2.0).astype(wide) if views == "mean" else 0)
        slope = (log_average - margin * anchors.scale).reshape(-1, 2).mean(1)
        new, aux = move(temperature, old, kept, slope, now, axis_name)
        return loss, aux, remember(memory, ids, new, axis_name)

    return Objective(start, apply)


class Direction(NamedTuple):
    """What one direction of a batch of pairs yields: [B] for each anchor; only `margin` has a gradient."""

    margin: Array  # V
    log_mean: Array  # log g
    log_average: Array  # log s
    log_divisor: Array  # log (s + ε)
    temperature: Array  # τ


Assemble = Callable[[Mapping[str, Direction], Callable[[Array], Array], Array | None], Array]


def margins_alone(found: Mapping[str, Direction], mean: Callable[[Array], Array], logit_scale: Array | None) -> Array:
    """`Σ_directions mean_i V_i`."""
    return mean(found["image"].margin + found["text"].margin)


def of_pairs(
    num_examples: int,
    temperature: Temperature,
    average: Average,
    assemble: Assemble,
    *,
    positive: bool,
    eps: float = 0.0,
    dtype: Any,
    normalize: bool,
    impl: Impl,
    axis_name: str | None,
) -> Objective:
    """Images over texts and texts over images, with a memory each; see `isogclr_clip` and `fastclip`.

    assemble: (directions, mean over the batch, logit_scale) -> loss. eps: added to s where it divides.
    """
    start = empty(num_examples, temperature, dtype)

    def apply(
        state: dict[str, Memory],
        image: Array,
        text: Array,
        *,
        index: ArrayLike,
        text_index: ArrayLike | None = None,
        epoch: ArrayLike = 0,
        logit_scale: ArrayLike | None = None,
        logit_bias: ArrayLike | None = None,
    ) -> tuple[Array, Metrics, dict[str, Memory]]:
        same_shape("image", image, "text", text)
        size, wide = several(image, axis_name), accumulator(image)
        image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
        given = {"image": ("index", index), "text": ("text_index", index if text_index is None else text_index)}
        ids = {name: example_ids(*ids, len(image), num_examples) for name, ids in given.items()}
        old, now = {name: recall(state[name], ids[name]) for name in SIDES}, jnp.asarray(epoch).astype(wide)
        scale = None if logit_scale is None else jnp.asarray(logit_scale, wide)
        tau = {name: temperature_of(temperature, old[name], scale, len(image), wide) for name in SIDES}
        own, nothing = row_dot(image, text), jnp.zeros(len(image), wide)
        anchors = {side: Anchors(1 / tau[name], own, nothing) for name, side in SIDES.items()}
        sweep = Sweep(1, size - 1, impl, axis_name)
        log_mean = sweep.log_means(image, text, anchors, positive=positive)
        log_average = {
            name: average.move(old[name].log_average.astype(wide), log_mean[side], now, axis_name)
            for name, side in SIDES.items()
        }
        divisor = {name: jnp.logaddexp(x, jnp.log(jnp.asarray(eps, wide))) for name, x in log_average.items()}
        sides = {side: anchors[side]._replace(log_average=divisor[name]) for name, side in SIDES.items()}
        margin = sweep.margins(image, text, sides)
        found = {
            name: Direction(margin[side], log_mean[side], log_average[name], divisor[name], tau[name])
            for name, side in SIDES.items()
        }
        loss = assemble(found, lambda x: batch_mean(x, axis_name), scale)
        new_state: dict[str, Memory] = {}
        metrics: Metrics = {}
        for name in SIDES:
            slope = divisor[name] - found[name].margin / tau[name]
            new, aux = move(temperature, old[name], log_average[name], slope, now, axis_name)
            new_state[name] = remember(state[name], ids[name], new, axis_name)
            metrics |= {f"{key}_{name}": value for key, value in aux.items()}
        return loss, metrics, new_state

    return Objective(lambda: {name: start() for name in SIDES}, apply)


def empty(num_examples: int, temperature: Temperature, dtype: Any) -> Callable[[], Memory]:
    """`init` of a memory of N examples that were not seen yet."""
    if num_examples < 2:
        raise InputError(f"num_examples={num_examples}: an example needs others to be told from, at least one.")
    if jnp.dtype(dtype).itemsize < 4:  # a 16-bit moving average loses its updates
        raise InputError(f"dtype of the memory must be float32 or float64, got {jnp.dtype(dtype).name}.")

    def start() -> Memory:
        unseen = jnp.full(num_examples, -jnp.inf, dtype)
        return temperature.memory(unseen) if isinstance(temperature, Individual) else Memory(unseen)

    return start


def several(features: Array, axis_name: str | None) -> int:
    """Size of the global batch; one example alone has no negatives."""
    size = global_size(len(features), axis_name)
    if size < 2:
        raise InputError(f"the batch has {size} example: each needs others to be told from, take at least 2.")
    return size


def temperature_of(temperature: Temperature, rows: Memory, scale: Array | None, size: int, dtype: Any) -> Array:
    """[B] τ of the anchors, constant."""
    if isinstance(temperature, Individual):
        return rows.temperature.astype(dtype)
    if temperature is None:
        if scale is None:
            raise InputError("this objective learns one temperature for all: pass it as logit_scale = 1/temperature.")
        checks.positive("logit_scale", scale)
        return jnp.broadcast_to(1 / lax.stop_gradient(scale), (size,))
    return jnp.full(size, temperature, dtype)


def move(
    temperature: Temperature, old: Memory, log_average: Array, slope: Array, epoch: Array, axis_name: str | None
) -> tuple[Memory, Metrics]:
    """The rows after this step, and what there is to say about them; `slope` lacks ρ."""
    log_average, slope = lax.stop_gradient((log_average, slope))
    aux = {"log_average": batch_mean(log_average, axis_name)}
    log_average = log_average.astype(old.log_average.dtype)
    rows = old._replace(log_average=log_average)
    if not isinstance(temperature, Individual):
        return rows, aux
    slope = slope + temperature.radius
    if temperature.clip is not None:
        slope = jnp.clip(slope, -temperature.clip, temperature.clip)
    new = temperature.move(rows, slope.astype(old.temperature.dtype), epoch)
    aux |= {
        "temperature": batch_mean(old.temperature, axis_name),
        "temperature_slope": batch_mean(slope, axis_name),
        "temperature_at_bounds": batch_mean(temperature.at_bounds(new).astype(slope.dtype), axis_name),
    }
    return new, aux
