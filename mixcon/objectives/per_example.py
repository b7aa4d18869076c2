"""What an objective remembers of every training example: arrays [N] that are read and written by example id."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks

Memory = TypeVar("Memory")


def example_ids(name: str, ids: ArrayLike, batch: int, num_examples: int) -> Array:
    """Ids as int32 [B].

    Ids outside the memory and ids that occur twice are refused where they are known, that is outside jit. Inside, an
    id outside makes the loss NaN (`recall`), so that training stops instead of overwriting another example, and of
    equal ids the last is kept (`remember`); `checkify` reports both.

    Raises:
      InputError: not one integer for each example; ids outside 0..N-1; an id twice.
    """
    ids = jnp.asarray(ids)
    if ids.shape != (batch,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name} must be one integer for each of the {batch} examples, got {ids.dtype}{ids.shape}.")
    known = checks.concrete(ids)
    if known is None:
        checks.on_request(name, f"must lie in 0..{num_examples - 1}", ids, lambda i: (i >= 0) & (i < num_examples))
        checks.on_request(name, "must not name an example twice", ids, lambda i: jnp.diff(jnp.sort(i)) > 0)
        return ids.astype(jnp.int32)
    if known.min() < 0 or known.max() >= num_examples:
        raise InputError(
            f"{name} has ids {known.min()} .. {known.max()}, but the objective remembers {num_examples} examples "
            f"(0..{num_examples - 1}): set num_examples to the size of the training set."
        )
    seen, counts = np.unique(known, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{name} names example {seen[counts.argmax()]} more than once: draw without replacement.")
    return ids.astype(jnp.int32)


def recall(memory: Memory, ids: Array) -> Memory:
    """The rows of these examples, without gradient; NaN for an id outside the memory."""

    def rows(kept: Array) -> Array:
        return kept.at[_slots(ids, kept)].get(mode="fill", fill_value=jnp.nan)

    return lax.stop_gradient(jax.tree.map(rows, memory))


def remember(memory: Memory, ids: Array, rows: Memory, axis_name: str | None) -> Memory:
    """The memory with new rows for these examples, in its own dtype; no gradient flows into it.

    Of equal ids the last of the (global) batch is kept, on every backend. Under `axis_name` the rows of all devices
    are written on each, so that the memory stays the same everywhere.
    """
    ids, rows = lax.stop_gradient((ids, rows))
    if axis_name is not None:
        ids, rows = lax.all_gather((ids, rows), axis_name, tiled=True, to="invarying")
    order = jnp.argsort(ids, stable=True)
    in_order = ids[order]
    last = jnp.append(in_order[1:] != in_order[:-1], jnp.ones(1, bool))

    def written(kept: Array, new: Array) -> Array:
        slots = jnp.where(last, _slots(in_order, kept), kept.shape[0])  # what lies outside is dropped
        return kept.at[slots].set(new[order].astype(kept.dtype), mode="drop")

    return jax.tree.map(written, memory, rows)


def _slots(ids: Array, kept: Array) -> Array:
    """Negative ids, which would count from the end, moved outside."""
    return jnp.where(ids < 0, kept.shape[0], ids)
