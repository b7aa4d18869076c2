"""Hiding tokens of a text for masked language modelling, on the device. Shapes: B texts, T tokens, M hidden at most."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError


class Hidden(NamedTuple):
    """Texts with some tokens hidden, and what they were."""

    tokens: Array  # [B, T]
    positions: Array  # [B, M] which are hidden
    targets: Array  # [B, M] what was there
    mask: Array  # [B, M] bool, False where fewer than M are hidden


def mask_tokens(
    key: Array,
    tokens: Array,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    share: float = 0.4,
    most: int = 12,
    span: int = 3,
    span_share: float = 0.2,
    kept: float = 0.1,
    random: float = 0.1,
) -> Hidden:
    """Hides a share of each text, single tokens and short spans.

    Of a text of n tokens that are not special `min(most, max(1, round(share · n)))` are hidden: tokens are visited in
    random order, and with probability `span_share` a visit hides `span` in a row. Of the hidden, a share `kept` stays
    as it is, a share `random` becomes any token below `vocab_size`, the rest becomes `mask_id`.

    Args:
        key: of the draws. tokens: int [B, T].
        mask_id: what stands for a hidden token. special_ids: tokens that are never hidden (padding, start, end).
        The others: see above.

    Returns:
        `Hidden` with M = most (or T, if that is less).

    Raises:
        InputError: shares outside [0, 1], or numbers below 1.

    Example:
        >>> hidden = mask_tokens(key, tokens, mask_id=4, vocab_size=1000, special_ids=(0, 1, 2))

    Reference: Devlin et al., "BERT", 2019, section 3.1; spans and shares: Nie et al., 2024 (CCRK).
    """
    if not all(0 <= x <= 1 for x in (share, span_share, kept, random, kept + random)) or min(most, span) < 1:
        raise InputError(
            f"share={share}, span_share={span_share}, kept={kept}, random={random} must be in [0, 1], "
            f"most={most} and span={span} at least 1."
        )
    length = tokens.shape[1]
    most = min(most, length)
    order_key, span_key, fate_key, token_key = jax.random.split(key, 4)
    allowed = jnp.ones(tokens.shape, bool)
    for special in special_ids:
        allowed &= tokens != special
    visited = jnp.where(allowed, jax.random.uniform(order_key, tokens.shape), jnp.inf)
    starts = jax.random.bernoulli(span_key, span_share, tokens.shape)
    when = visited  # a token is hidden when it is visited itself, or when a span reaches it
    for step in range(1, min(span, length)):
        reached = jnp.pad(jnp.where(starts, visited, jnp.inf)[:, :-step], ((0, 0), (step, 0)), constant_values=jnp.inf)
        when = jnp.minimum(when, reached)
    when = jnp.where(allowed, when, jnp.inf)
    positions = jnp.argsort(when, axis=1)[:, :most].astype(jnp.int32)
    number = allowed.sum(1)
    wanted = jnp.minimum(jnp.clip(jnp.round(share * number.astype(jnp.float32)), 1, most).astype(number.dtype), number)
    mask = jnp.arange(most)[None, :] < wanted[:, None]
    targets = jnp.take_along_axis(tokens, positions, axis=1)

    fate = jax.random.uniform(fate_key, targets.shape)
    anything = jax.random.randint(token_key, targets.shape, 0, vocab_size, tokens.dtype)
    shown = jnp.where(
        fate < kept, targets, jnp.where(fate < kept + random, anything, jnp.asarray(mask_id, tokens.dtype))
    )
    shown = jnp.where(mask, shown, targets)
    rows = jnp.arange(len(tokens))[:, None]
    return Hidden(tokens.at[rows, positions].set(shown), positions, targets, mask)
