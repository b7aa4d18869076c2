"""Products with keys that every query picks for itself, a block of columns at a time.

Gathering the picked rows at once would take [B, N, D]; here no block of them exceeds `BLOCK` numbers, and the backward
pass gathers again instead of keeping them.

Shapes: B queries, K keys, D features, N picked keys of each query.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.ops.pairs import wide

BLOCK = 2**22  # numbers of a gathered block, of the whole batch


def picked_similarity(queries: Array, keys: Array, index: Array) -> Array:
    """`out_bn = q_b · k_{index_bn}`, in float32 (float64 stays); differentiable in queries and keys.

    Args:
      queries: [B, D]. keys: [K, D]. index: [B, N] rows of the keys; what lies outside is taken from the nearest row.

    Example:
      >>> hardest = top_k(q, queue, 16).indices
      >>> similarity = picked_similarity(q, queue, hardest)  # with a gradient, unlike that of `top_k`
    """

    def product(index: Array) -> Array:
        rows = jnp.take(keys, index, axis=0, mode="clip")
        return jnp.einsum("bd,bnd->bn", queries, rows, preferred_element_type=wide(queries.dtype))

    return _in_blocks(product, keys.shape[1], index)


def picked_pairs(keys: Array, first: Array, second: Array) -> Array:
    """`out_bn = k_{first_bn} · k_{second_bn}`, in float32 (float64 stays).

    Args:
      keys: [K, D]. first, second: [B, N] rows of the keys; what lies outside is taken from the nearest row.

    Example:
      >>> angle = picked_pairs(queue, hardest[:, :8], hardest[:, 8:])
    """

    def product(first: Array, second: Array) -> Array:
        a, b = (jnp.take(keys, index, axis=0, mode="clip") for index in (first, second))
        return jnp.einsum("bnd,bnd->bn", a, b, preferred_element_type=wide(keys.dtype))

    return _in_blocks(product, keys.shape[1], first, second)


def _in_blocks(product: Callable[..., Array], dim: int, *columns: Array) -> Array:
    """`product` of index matrices [B, N], some of their columns at a time."""
    batch, count = columns[0].shape
    block = min(max(BLOCK // max(batch * dim, 1), 1), count)
    if block == count:
        return product(*columns)
    blocks = -(-count // block)
    padding = [(0, 0), (0, blocks * block - count)]
    split = [jnp.pad(each, padding).reshape(batch, blocks, block).swapaxes(0, 1) for each in columns]
    out = lax.map(lambda each: jax.checkpoint(product)(*each), split)
    return out.swapaxes(0, 1).reshape(batch, -1)[:, :count]
