"""Weights: how much of each example is kept, per batch, per pair or per example."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import check_unit

Per = Literal["batch", "pair", "example"]


def sample_weight(
    key: Array,
    batch: int,
    *,
    alpha: float | Array = 1.0,
    beta: float | Array | None = None,
    low: float = 0.0,
    high: float = 1.0,
    major: bool = False,
    per: Per = "batch",
    tries: int = 16,
) -> Array:
    """Draw own shares, `w ~ Beta(alpha, beta)` restricted to [low, high].

    `alpha=1` with bounds is the uniform law on [low, high]; `low == high` is a fixed weight. A restricted Beta takes
    the
    first of `tries` draws that falls inside, else a uniform one (`tries=1` is ResizeMix's law).

    Args:
        key: PRNG key.
        batch: B.
        alpha, beta: Beta parameters, > 0; `beta=None` means `beta = alpha`.
        low, high: bounds, 0 ≤ low ≤ high ≤ 1.
        major: fold to `max(w, 1 - w)`, so that the example itself dominates.
        per: one draw per "batch", per "pair" (i and B-1-i share it; B even) or per "example".
        tries: draws made for a restricted Beta.
    Returns:
        float32 [B].
    Raises:
        InputError: alpha or beta ≤ 0, bounds outside [0, 1], an odd batch for `per="pair"`.
    Example:
        >>> sample_weight(jax.random.key(0), 3, low=0.25, high=0.25).tolist()
        [0.25, 0.25, 0.25]
    """
    beta = alpha if beta is None else beta
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    if not 0.0 <= low <= high <= 1.0:
        raise InputError(f"the bounds must satisfy 0 ≤ low ≤ high ≤ 1; got low={low}, high={high}.")
    n = draws(batch, per)
    if isinstance(alpha, (int, float)) and isinstance(beta, (int, float)) and alpha == 1 and beta == 1:
        weight = jax.random.uniform(key, (n,), minval=low, maxval=high)
    elif (low, high) == (0.0, 1.0):
        weight = jax.random.beta(key, alpha, beta, (n,), jnp.float32)
    else:
        key_beta, key_uniform = jax.random.split(key)
        many = jax.random.beta(key_beta, alpha, beta, (n, tries), jnp.float32)
        inside = (many >= low) & (many <= high)
        first = jnp.take_along_axis(many, jnp.argmax(inside, axis=1)[:, None], axis=1)[:, 0]
        weight = jnp.where(inside.any(axis=1), first, jax.random.uniform(key_uniform, (n,), minval=low, maxval=high))
    if major:
        weight = jnp.maximum(weight, 1.0 - weight)
    return spread(weight, batch, per)


def own_weight(key: Array, batch: int, alpha: float | Array, weight: float | Array | None, per: Per) -> Array:
    """Own shares [n] before spreading: the given ones, or a draw of Beta(alpha, alpha)."""
    n = draws(batch, per)
    if weight is None:
        return sample_weight(key, batch, alpha=alpha, per=per)[jnp.arange(n)]
    check_unit("weight", weight)
    weight = jnp.asarray(weight, jnp.float32)
    if weight.shape not in ((), (n,), (batch,)):
        raise InputError(f"weight must be a scalar or [{n}] for per={per!r}; got {list(weight.shape)}.")
    return jnp.broadcast_to(weight, (n,)) if weight.ndim == 0 else weight[:n]


def draws(batch: int, per: Per) -> int:
    """How many independent draws a batch needs."""
    if per not in ("batch", "pair", "example"):
        raise InputError(f"per must be 'batch', 'pair' or 'example'; got {per!r}.")
    if batch < 1:
        raise InputError("the batch is empty.")
    if per == "pair" and batch % 2:
        raise InputError(f"per='pair' needs an even batch; got {batch}. Drop one example or use per='example'.")
    return {"batch": 1, "pair": batch // 2, "example": batch}[per]


def spread(values: Array, batch: int, per: Per) -> Array:
    """Independent draws [n, ...] to one value per example [B, ...]; a pair is (i, B-1-i)."""
    if per == "batch":
        return jnp.broadcast_to(values, (batch, *values.shape[1:]))
    return values if per == "example" else jnp.concatenate([values, values[::-1]])


def spread_mask(mask: Array, batch: int, per: Per) -> Array:
    """As `spread`, but a mask shared by the batch stays [1, ...] and broadcasts for free."""
    return mask if per == "batch" else spread(mask, batch, per)


def mask_weight(mask: Array, batch: int) -> Array:
    """Own shares [B]: the mask's mean over its places."""
    mean = mask.astype(jnp.float32).mean(axis=tuple(range(1, mask.ndim)))
    return jnp.broadcast_to(mean, (batch,))


def check_positive(name: str, value: float | Array) -> None:
    """Refuse a known value ≤ 0; traced values pass."""
    if not isinstance(value, jax.core.Tracer) and not bool((np.asarray(value) > 0).all()):
        raise InputError(f"{name} must be > 0; got {value}.")


def image_size(x: Array, square: bool = False) -> tuple[int, int, int]:
    """(B, H, W) of an image batch, checked."""
    if x.ndim != 4:
        raise InputError(f"x must be images [B, H, W, C]; got {list(x.shape)}.")
    batch, height, width = x.shape[:3]
    if square and height != width:
        raise InputError(f"this mixer needs square images; got {height}×{width}.")
    return batch, height, width
