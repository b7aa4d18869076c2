"""Inner products of many rows with many rows, one tile at a time.

Every pairwise evaluation of the package (ranks, nearest neighbours, uniformity) runs through here, so that none
of them ever holds queries × corpus on the device. Inputs are moved explicitly (`device_put`/`device_get`): the
training loop runs its evaluators under a transfer guard.

Shapes: Q queries, C corpus rows, D features; q, c the tile's share of Q and C; T corpus tiles; P positives per query.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixcon.errors import InputError

QUERY_TILE = 1024
CORPUS_TILE = 4096
UNIT_TOLERANCE = 1e-3
PADDING = -1  # position of a corpus row that is not there


def matrix(name: str, x: Any, *, columns: int | None = None) -> np.ndarray:
    """`x` on the host as a finite float32 matrix [N, D]; refuses anything else by name."""
    array = np.asarray(jax.device_get(x))
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} must be a matrix of at least one row [N, D]; its shape is {array.shape}.")
    if columns is not None and array.shape[1] != columns:
        raise InputError(f"{name} has {array.shape[1]} columns where {columns} are needed: embeddings that are "
                         "compared must have the same width.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        raise InputError(f"{name} holds non-finite values in {bad.size} of {len(array)} rows (first: row {bad[0]}).")
    return array


def labels_of(name: str, labels: Any, count: int, classes: int | None = None) -> np.ndarray:
    """`labels` on the host as [count] integers, below `classes` where that is given."""
    array = np.asarray(jax.device_get(labels))
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be {count} integers, one per row; got shape {array.shape}, {array.dtype}.")
    if count and (array.min() < 0 or (classes is not None and array.max() >= classes)):
        raise InputError(f"{name} must lie in 0..{'' if classes is None else classes - 1}; "
                         f"they span {array.min()}..{array.max()}.")
    return array


def normalized(x: Any, *, eps: float = 1e-12) -> np.ndarray:
    """Rows of `x` [N, D] divided by `max(‖x‖₂, eps)`, float32 on the host."""
    rows = matrix("x", x)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), eps)


def unit_rows(name: str, x: Any, *, like: np.ndarray | None = None, rows: int = 1) -> np.ndarray:
    """`x` as `matrix` gives it; refuses rows whose norm is off by more than `UNIT_TOLERANCE`."""
    array = matrix(name, x)
    if like is not None and array.shape != like.shape:
        raise InputError(f"{name} must have the shape {like.shape} of its partner; it has {array.shape}.")
    if len(array) < rows:
        raise InputError(f"{name} has {len(array)} rows; this measure is over pairs and needs at least {rows}.")
    off = np.abs(np.linalg.norm(array, axis=1) - 1).max()
    if off > UNIT_TOLERANCE:
        raise InputError(f"{name} must have unit rows; a norm is off by {off:.3g}. Pass normalized({name}).")
    return array


def _padded(x: np.ndarray, rows: int, fill: float) -> np.ndarray:
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


def _tile_rows(count: int, most: int) -> int:
    """Rows per tile: a power of two for small inputs, so that few shapes are ever compiled."""
    return min(most, 1 << max(count - 1, 0).bit_length())


def stacked(x: np.ndarray, tile: int, fill: float = 0) -> jax.Array:
    """Rows of `x` [C, ...] as device tiles [T, c, ...], the last one padded with `fill`."""
    count = -(-len(x) // tile)
    return jax.device_put(_padded(x, count * tile, fill).reshape(count, tile, *x.shape[1:]))


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Leave whatever mesh is set: host arrays would be copied to, and computed on, every device of it.

    With several processes each of them evaluates by itself, on its own first device, without communication.
    """
    with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ("rows",))):
        yield


def over_queries(
    kernel: Callable[..., Any],
    query_QD: np.ndarray,
    corpus_CD: np.ndarray,
    *,
    per_query: tuple[np.ndarray, ...] = (),
    per_corpus: tuple[np.ndarray, ...] = (),
    query_tile: int = QUERY_TILE,
    corpus_tile: int = CORPUS_TILE,
) -> Any:
    """Run `kernel(query_qD, *per_query, corpus_TcD, position_Tc, *per_corpus)` on each query tile and join its rows.

    `position` is each corpus row's index, `PADDING` where a tile was filled up. Extra arrays are padded with -2, which
    equals no index and no identity.
    """
    corpus_tile = _tile_rows(len(corpus_CD), corpus_tile)
    query_tile = _tile_rows(len(query_QD), query_tile)
    positions = np.arange(len(corpus_CD), dtype=np.int32)
    parts = []
    with on_one_device():
        corpus = [stacked(corpus_CD, corpus_tile), stacked(positions, corpus_tile, PADDING)]
        corpus += [stacked(x, corpus_tile, -2) for x in per_corpus]
        for start in range(0, len(query_QD), query_tile):
            rows = slice(start, start + query_tile)
            query = [_padded(query_QD[rows], query_tile, 0)] + [_padded(x[rows], query_tile, -2) for x in per_query]
            count = len(query_QD[rows])
            found = jax.device_get(kernel(*jax.device_put(query), *corpus))
            parts.append(jax.tree.map(lambda x, n=count: x[:n], found))
    return jax.tree.map(lambda *tiles: np.concatenate(tiles), *parts)


def dots(query_qD: jax.Array, corpus_cD: jax.Array) -> jax.Array:
    """Inner products [q, c] in full float32: accelerators would otherwise multiply in bfloat16, and reorder."""
    return jnp.einsum("qd,cd->qc", query_qD, corpus_cD, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="k")
def _top_k(query_qD, skip_q, corpus_TcD, position_Tc, *, k):
    def merge(best, tile):
        corpus_cD, position_c = tile
        scores_qc = dots(query_qD, corpus_cD)
        hidden_qc = (position_c[None] == PADDING) | (position_c[None] == skip_q[:, None])
        scores_qc = jnp.where(hidden_qc, -jnp.inf, scores_qc)
        index_qc = jnp.broadcast_to(position_c[None], scores_qc.shape)
        # Earlier rows come first and top_k is stable, so the lowest index wins a tie.
        scores = jnp.concatenate([best[0], scores_qc], axis=1)
        index = jnp.concatenate([best[1], index_qc], axis=1)
        scores, chosen = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(index, chosen, axis=1)), None

    rows = len(query_qD)
    nothing = jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.full((rows, k), PADDING, jnp.int32)
    return jax.lax.scan(merge, nothing, (corpus_TcD, position_Tc))[0]


def top_k(query: Any, corpus: Any, k: int, *, exclude_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows with the largest inner products, best first; equal scores in order of index.

    Args:
      query: [Q, D].
      corpus: [C, D].
      k: How many, at most C (C - 1 with `exclude_self`).
      exclude_self: Query i is corpus row i, and must not find itself.

    Returns:
      Scores [Q, k] float32 and corpus indices [Q, k] int32.

    Raises:
      InputError: Widths differ, or there are fewer than `k` candidates.

    Example:
      >>> scores, index = top_k([[1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], 1)
      >>> index.tolist()
      [[1]]
    """
    corpus_CD = matrix("corpus", corpus)
    query_QD = matrix("query", query, columns=corpus_CD.shape[1])
    if exclude_self and len(query_QD) != len(corpus_CD):
        raise InputError("exclude_self means that query and corpus are the same rows; they differ in number: "
                         f"{len(query_QD)} and {len(corpus_CD)}.")
    if not 1 <= k <= len(corpus_CD) - exclude_self:
        raise InputError(f"k={k} neighbours were asked of {len(corpus_CD) - exclude_self} candidates.")
    skip = np.arange(len(query_QD), dtype=np.int32) if exclude_self else np.full(len(query_QD), -2, np.int32)
    return over_queries(partial(_top_k, k=k), query_QD, corpus_CD, per_query=(skip,))
