"""Rates that follow the epoch, which counts from 0: for moving averages and for steps of temperatures."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError


def cosine_average(end: float, epochs: int = 0) -> Callable[[Array], Array]:
    """Share of the batch in a moving average: 1 in epoch 0, a half cosine from 1 to `end` over `epochs`, then `end`.

    Example:
      >>> float(cosine_average(0.2, 4)(2))
      0.6

    Reference: Wei et al., "FastCLIP", 2024, section 4.
    """
    if not 0 < end <= 1 or epochs < 0:
        raise InputError(f"end={end} must lie in (0, 1] and epochs={epochs} not be negative.")

    def weight(epoch: Array) -> Array:
        share = jnp.minimum(epoch / max(epochs, 1), 1.0)
        return jnp.where(epoch == 0, 1.0, end + (1 - end) * (1 + jnp.cos(jnp.pi * share)) / 2)

    return weight


def cosine_rate(start: float, epochs: int, end: float = 1e-4) -> Callable[[Array], Array]:
    """A quarter of a cosine from `start` down to `end`: `end + (start - end) cos(π/2 · epoch/epochs)`.

    Example:
      >>> float(cosine_rate(0.03, 30)(0))
      0.03
    """
    if epochs < 1 or not 0 <= end <= start:
        raise InputError(f"epochs={epochs} must be at least 1, and 0 <= end={end} <= start={start}.")
    return lambda epoch: end + (start - end) * jnp.cos(jnp.pi / 2 * jnp.minimum(epoch / epochs, 1.0))


def exponential_rate(start: float, decay: float = 0.8, end: float = 1e-4) -> Callable[[Array], Array]:
    """`end + (start - end) decay^epoch`.

    Example:
      >>> float(exponential_rate(0.03)(0))
      0.03
    """
    if not (0 < decay <= 1 and 0 <= end <= start):
        raise InputError(f"decay={decay} must lie in (0, 1], and 0 <= end={end} <= start={start}.")
    return lambda epoch: end + (start - end) * decay**epoch
