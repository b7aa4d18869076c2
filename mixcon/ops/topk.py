"""The hardest keys of each query, without the matrix: forward only, for miners and synthetic negatives."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.pairs import Block, Pairs
from mixcon.ops.reference import Impl, similarity


class TopK(NamedTuple):
    """The k most similar keys of each query, in descending order."""

    similarity: Array  # [B, k] float32; -inf where a query has fewer than k candidates
    indices: Array  # [B, k] int32, position among the keys; -1 there


def top_k(
    queries: Array,
    keys: Array,
    k: int,
    *,
    included: Pairs | None = None,
    impl: Impl = "auto",
    tile_size: int | None = None,
    axis_name: str | None = None,
) -> TopK:
    """The k keys with the highest q·k of each query, among the `included` pairs.

    No gradient flows: gather the keys with `indices` and multiply again where one is wanted.

    Args:
      queries, keys: [B, D], [N, D]. k: at most N.
      included: yes/no pairs, e.g. `pairs.not_self()` or `~pairs.same_label(y)`; default all.
      impl, tile_size, axis_name: see `pair_reduce`; under `axis_name` the indices are global positions.

    Returns:
      `TopK(similarity [B, k], indices [B, k])`. Ties go to the lower index.

    Example:
      >>> hardest = top_k(q, queue, 16).indices  # [B, 16]
    """
    checks.features(queries, keys)
    if not 1 <= k <= keys.shape[0]:
        raise InputError(f"k must be between 1 and the number of keys {keys.shape[0]}, got {k}.")
    queries, keys = lax.stop_gradient((queries, keys))
    row = Block(jnp.arange(queries.shape[0], dtype=jnp.int32), () if included is None else included.rows)
    col = Block(jnp.arange(keys.shape[0], dtype=jnp.int32), () if included is None else included.cols)
    sim = similarity(queries, keys)
    if included is not None:
        sim = jnp.where(included.tile(row, col, included.shared), sim, -jnp.inf)
    value, index = lax.top_k(sim, k)
    return TopK(value, jnp.where(value == -jnp.inf, -1, index))
