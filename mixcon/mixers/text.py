"""Mixers on token sequences: spans and single tokens are selected, never averaged."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, draws, own_weight
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.region import masked_plan
from mixcon.mixers.salient import top_cells
from mixcon.mixers.warp import Grid


def ssmix(
    key: Array,
    x: Array,
    *,
    saliency: Array,
    valid: Array | None = None,
    share: float = 0.1,
    partner: How | Array = "permutation",
) -> Plan:
    """SSMix: the partner's most salient span takes the place of the example's least salient span of the same length.

    `n_i = max(min(⌊share · length_i⌋, length_j), 1)` tokens; `w = 1 - n_i / length_i`.

    Args:
        key: PRNG key.
        x: token ids [B, T] or embeddings [B, T, D]; only the shape is read.
        saliency: ≥ 0, [B, T]: norm of the loss's gradient at each token's embedding.
        valid: bool [B, T], tokens that are no padding (and may be replaced); all if None. Spans stay inside them.
        share: of the example's tokens that is replaced, in (0, 1].
        partner: a rule of `choose_partner`, or indices [B].
    Returns:
        Plan with a mask per example and a `Grid` that brings the partner's span to its place; examples without a span
        of that length stay whole.
    Raises:
        InputError: saliency or valid not [B, T]; share outside (0, 1]; x not a sequence.
    Example:
        >>> from mixcon.mixers.plan import mix
        >>> ids = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
        >>> s = jnp.array([[0.0, 9, 9, 9], [0, 0, 0, 1]])
        >>> mix(ssmix(jax.random.key(0), ids, saliency=s, share=0.25, partner="reverse"), ids).tolist()
        [[8, 2, 3, 4], [2, 6, 7, 8]]

    Reference:
        Yoon, Kim, Park, "SSMix: Saliency-Based Span Mixup for Text Classification", 2021
    """
    batch, length = _sequence(x)
    valid = jnp.ones((batch, length), bool) if valid is None else valid.astype(bool)
    for name, value in (("saliency", saliency), ("valid", valid)):
        if value.shape != (batch, length):
            raise InputError(f"{name} must be [{batch}, {length}]; got {list(value.shape)}.")
    if not 0.0 < share <= 1.0:
        raise InputError(f"share must lie in (0, 1]; got {share}.")
    partners = choose_partner(key, batch, partner)
    tokens = valid.sum(axis=1, dtype=jnp.int32)
    wanted = jnp.floor(share * tokens.astype(jnp.float32) + 1e-4).astype(jnp.int32)
    count = jnp.maximum(jnp.minimum(wanted, tokens[partners]), 1)
    low, fits_own = _window(saliency, valid, count, -1)
    high, fits_other = _window(saliency[partners], valid[partners], count, 1)
    whole = ~(fits_own & fits_other)[:, None]
    place = jnp.arange(length)[None, :]
    mask = ((place < low[:, None]) | (place >= (low + count)[:, None]) | whole).astype(jnp.float32)
    weight = 1.0 - (1.0 - mask).sum(axis=1) / jnp.maximum(tokens, 1).astype(jnp.float32)
    rows = jnp.clip(place + (high - low)[:, None], 0, length - 1)
    return Plan(partners, weight, mask[..., None], (None, Grid(rows)))


def _window(saliency: Array, valid: Array, count: Array, sign: int) -> tuple[Array, Array]:
    """Start of the valid window of `count` tokens with the largest `sign · Σ saliency`, and whether there is one."""
    start = jnp.arange(saliency.shape[1])[None, :]
    end = start + count[:, None]

    def sums(v: Array) -> Array:
        total = jnp.pad(jnp.cumsum(v, axis=1), ((0, 0), (1, 0)))
        return jnp.take_along_axis(total, jnp.minimum(end, v.shape[1]), axis=1) - total[:, :-1]

    fits = (sums(valid.astype(jnp.int32)) == count[:, None]) & (end <= saliency.shape[1])
    score = jnp.where(fits, sign * sums(jax.lax.stop_gradient(saliency).astype(jnp.float32)), -jnp.inf)
    return jnp.argmax(score, axis=1), fits.any(axis=1)


def _sequence(x: Array) -> tuple[int, int]:
    if x.ndim not in (2, 3):
        raise InputError(f"x must be sequences [B, T] or [B, T, D]; got {list(x.shape)}.")
    return x.shape[0], x.shape[1]


def spanmix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 1.0,
    mode: Literal["span", "token"] = "span",
    weight: float | Array | None = None,
    per: Per = "example",
    partner: How | Array = "permutation",
) -> Plan:
    """Mix token sequences by selection: a span (or random tokens) of the partner, `w` = share of own tokens.

    Works on token ids [B, T] (selected, never averaged) and on embeddings [B, T, D].

    Args:
        key: PRNG key.
        x: [B, T] or [B, T, D]; only the shape is read.
        alpha: Beta parameter of λ₀; ⌊(1-λ₀) T⌋ tokens come from the partner.
        mode: one "span", or single "token"s.
        weight, per, partner: as in `cutmix`.
    Returns:
        Plan with a mask [B or 1, T, 1].
    Raises:
        InputError: x not a sequence; alpha ≤ 0; unknown mode.
    Example:
        >>> ids = jnp.array([[1, 1, 1, 1], [2, 2, 2, 2]])
        >>> from mixcon.mixers.plan import mix
        >>> int(mix(spanmix(jax.random.key(0), ids, weight=0.5, partner="reverse"), ids).sum())
        12

    Reference:
        Yoon, Kim, Park, "SSMix: Saliency-Based Span Mixup for Text Classification", 2021 (without the saliency).
    """
    batch, length = _sequence(x)
    if mode not in ("span", "token"):
        raise InputError(f"mode must be 'span' or 'token'; got {mode!r}.")
    key_partner, key_weight, key_place = jax.random.split(key, 3)
    own = own_weight(key_weight, batch, alpha, weight, per)
    n = draws(batch, per)
    count = jnp.floor((1.0 - own) * length).astype(jnp.int32)
    if mode == "token":
        taken = top_cells(jax.random.uniform(key_place, (n, length)), count)
    else:
        unit = jax.random.uniform(key_place, (n,))
        start = jnp.floor(unit * (length - count + 1).astype(jnp.float32)).astype(jnp.int32)[:, None]
        place = jnp.arange(length)[None, :]
        taken = ((place >= start) & (place < start + count[:, None])).astype(jnp.float32)
    return masked_plan(choose_partner(key_partner, batch, partner, per), 1.0 - taken[..., None], per)


def union_mask(plan: Plan, mask: Array) -> Array:
    """Attention mask of a text mixup: a position is read if either source has a token there, `m ∨ m[partner]`.

    Args:
        plan: a two-source plan.
        mask: bool or 0/1 [B, T].
    Returns:
        mask in the same dtype.
    Example:
        >>> from mixcon.mixers.plan import Plan
        >>> union_mask(Plan(jnp.array([1, 0]), jnp.ones(2)), jnp.array([[1, 0], [1, 1]])).tolist()
        [[1, 1], [1, 1]]
    """
    return jnp.maximum(mask, mask[plan.partner])
