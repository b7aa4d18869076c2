"""Retrieval: the rank of the right answer, and what chance would give.

Scores are inner products of the rows as given: pass unit rows for cosine retrieval.
Shapes: Q queries, C corpus rows, P positives per query, D features.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import PADDING, dots, matrix, over_queries

# Scores closer than this share of |query|·max|corpus| are a tie: float32 inner products of equal rows differ by
# that much with the tiling, and a rank must not.
TIE = 1e-6


def _positives(relevant: Any, queries: int, corpus: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`relevant` as identities: wanted [Q, P] (-2 where unused), those of each corpus row [C, P'] (-3 where unused), of
    which one is enough, and the number of positives of each query.
    """
    if relevant is None:
        if queries != corpus:
            raise InputError(f"relevant=None pairs query i with corpus row i, but there are {queries} queries and "
                             f"{corpus} corpus rows. Pass each query's positive, or (query_ids, corpus_ids).")
        relevant = np.arange(queries)
    if isinstance(relevant, tuple):
        sides = [np.asarray(jax.device_get(ids)) for ids in relevant]
        shapes = [ids.shape for ids in sides]
        rows = [shape[:1] for shape in shapes]
        if rows != [(queries,), (corpus,)] or sorted(map(len, shapes)) not in ([1, 1], [1, 2]):
            raise InputError(f"relevant=(query_ids, corpus_ids) must have shapes ({queries},) and ({corpus},), or one "
                             f"of them a second axis, of several ids; they are {shapes[0]} and {shapes[1]}.")
        _, codes = np.unique(np.concatenate([ids.ravel() for ids in sides]), return_inverse=True)
        wanted, identity = (
            _each_once(code.reshape(len(ids), -1), padding=ids == PADDING if ids.ndim == 2 else False, unused=unused)
            for ids, code, unused in zip(sides, np.split(codes.ravel(), [sides[0].size]), (-2, -3), strict=True)
        )
        tally = np.bincount(identity[identity >= 0], minlength=codes.max() + 1)
        return wanted, identity, np.where(wanted >= 0, tally[wanted], 0).sum(1)
    index = np.asarray(jax.device_get(relevant))
    index = index[:, None] if index.ndim == 1 else index
    if index.ndim != 2 or len(index) != queries or not np.issubdtype(index.dtype, np.integer):
        raise InputError(f"relevant must be integers [{queries}] or [{queries}, P] (padded with -1), or a pair "
                         f"(query_ids, corpus_ids); got shape {index.shape}, {index.dtype}.")
    if index.max() >= corpus or index.min() < PADDING:
        raise InputError(f"relevant names corpus row {index.max() if index.max() >= corpus else index.min()}; "
                         f"rows are 0..{corpus - 1}, and -1 pads.")
    wanted = _each_once(index, padding=index < 0, unused=-2)
    return wanted, np.arange(corpus, dtype=np.int32)[:, None], (wanted >= 0).sum(1)


def _each_once(ids: np.ndarray, *, padding: np.ndarray | bool, unused: int) -> np.ndarray:
    """Rows of ids, sorted, with `unused` for padding and for what is named twice."""
    ids = np.sort(np.where(padding, -1, ids), axis=1)
    counted = (ids >= 0) & (np.diff(ids, axis=1, prepend=-1) != 0)
    return np.where(counted, ids, unused).astype(np.int32)


@jax.jit
def _rank(query_qD, wanted_qP, skip_q, corpus_TcD, position_Tc, identity_TcP, longest):
    def tile_scores(corpus_cD, position_c, identity_cP):
        there_qc = (position_c[None] != PADDING) & (position_c[None] != skip_q[:, None])
        positive_qc = jnp.any(wanted_qP[:, :, None, None] == identity_cP.T[None, None], axis=(1, 2)) & there_qc
        return dots(query_qD, corpus_cD), positive_qc, there_qc & ~positive_qc

    def best_positive(best_q, tile):
        scores_qc, positive_qc, _ = tile_scores(*tile)
        return jnp.maximum(best_q, jnp.max(jnp.where(positive_qc, scores_qc, -jnp.inf), axis=1)), None

    def count_ahead(ahead_q, tile):
        scores_qc, _, negative_qc = tile_scores(*tile)
        return ahead_q + jnp.sum(negative_qc & (scores_qc >= bar_q[:, None]), axis=1, dtype=jnp.int32), None

    tiles = corpus_TcD, position_Tc, identity_TcP
    nothing_q = jnp.full(len(query_qD), -jnp.inf, jnp.float32)
    best_q = jax.lax.scan(best_positive, nothing_q, tiles)[0]
    bar_q = best_q - TIE * longest * jnp.linalg.norm(query_qD, axis=1)
    return 1 + jax.lax.scan(count_ahead, jnp.zeros(len(query_qD), jnp.int32), tiles)[0]


def ranks(query: Any, corpus: Any, *, relevant: Any = None, exclude_self: bool = False) -> np.ndarray:
    """Rank of each query's best positive, 1 being first.

    `rank_i = 1 + #{j not positive : s_ij ≥ max_{p positive} s_ip}`, `s_ij = query_i · corpus_j`: the position of the
    first positive, with every tie counted against it, so that a collapsed encoder ranks last rather than first.
    Scores within 1e-6 · |query| · max|corpus| are a tie. Computed by tiles: memory is linear in Q + C.

    Args:
      query: [Q, D].
      corpus: [C, D].
      relevant: What is a positive. None: corpus row i for query i. Integers [Q] or [Q, P] padded with -1: indices into
        the corpus. A pair `(query_ids [Q], corpus_ids [C])` of integers or strings: equal ids (images and captions of
        the same scene, or labels). One of the two may be [., P] integers padded with -1: one of them is enough.
      exclude_self: Query i is corpus row i and is left out of its own ranking.

    Returns:
      [Q] int32.

    Raises:
      InputError: A query without any positive, shapes that do not fit, non-finite embeddings.

    Example:
      >>> ranks([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.9, 0.1]]).tolist()
      [1, 1]

    Reference:
      Jia et al., "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision", 2021,
      section 5.1 (any of a query's positives counts).
    """
    corpus_CD = matrix("corpus", corpus)
    query_QD = matrix("query", query, columns=corpus_CD.shape[1])
    wanted, identity, counts = _positives(relevant, len(query_QD), len(corpus_CD))
    if exclude_self:
        if len(query_QD) != len(corpus_CD):
            raise InputError("exclude_self means that query and corpus are the same rows; they differ in number: "
                             f"{len(query_QD)} and {len(corpus_CD)}.")
        counts = counts - (wanted[:, :, None] == identity[:, None]).any((1, 2))
        skip = np.arange(len(query_QD), dtype=np.int32)
    else:
        skip = np.full(len(query_QD), -2, np.int32)
    if (counts == 0).any():
        without = np.flatnonzero(counts == 0)
        raise InputError(f"{without.size} of {len(counts)} queries have no positive in the corpus (first: query "
                         f"{without[0]}); leave them out or extend the corpus.")
    longest = jax.device_put(np.float32(np.linalg.norm(corpus_CD, axis=1).max()))
    kernel = partial(_rank, longest=longest)
    return over_queries(kernel, query_QD, corpus_CD, per_query=(wanted, skip), per_corpus=(identity,))


def chance_recall(positives: Any, corpus: int, k: int) -> float:
    """Expected recall@k of a random ranking: `mean_q 1 - C(C - P_q, k) / C(C, k)`.

    Args:
      positives: Number of positives per query, a scalar or [Q].
      corpus: Number of candidates C.
      k: Cut-off; above C it is taken as C.

    Returns:
      A share in 0..1.

    Example:
      >>> round(chance_recall(1, 100, 10), 6)
      0.1
    """
    counts = np.atleast_1d(np.asarray(positives, np.float64))
    drawn = np.arange(min(k, corpus))
    misses = np.clip((corpus - counts[:, None] - drawn) / (corpus - drawn), 0, None)
    return float(np.mean(1 - np.prod(misses, axis=1)))


def retrieval(
    query: Any, corpus: Any, *, relevant: Any = None, exclude_self: bool = False, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k with its chance level, median and mean rank.

    `R@k = mean_q [rank_q ≤ k]`: a query counts once if any of its positives is among its top k.

    Args:
      query: [Q, D].
      corpus: [C, D].
      relevant: See `ranks`.
      exclude_self: See `ranks`.
      ks: Cut-offs; one that the corpus does not exceed is always 1 and is left out.

    Returns:
      `R@k` and `R@k/chance` as shares for each k, `median_rank`, `mean_rank` (1 is best).

    Raises:
      InputError: See `ranks`.

    Example:
      >>> import numpy as np
      >>> retrieval(np.eye(20), np.eye(20))["R@10/chance"]
      0.5

    Reference:
      Jia et al., 2021, section 5.1.
    """
    rank = ranks(query, corpus, relevant=relevant, exclude_self=exclude_self)
    queries, candidates = np.shape(query)[0], np.shape(corpus)[0] - exclude_self
    wanted, identity, positives = _positives(relevant, queries, np.shape(corpus)[0])
    if exclude_self:
        positives = positives - (wanted[:, :, None] == identity[:, None]).any((1, 2))
    result: dict[str, float] = {}
    for k in ks:
        if k < candidates:
            result[f"R@{k}"] = float(np.mean(rank <= k))
            result[f"R@{k}/chance"] = chance_recall(positives, candidates, k)
    return result | {"median_rank": float(np.median(rank)), "mean_rank": float(np.mean(rank))}


def image_text_retrieval(
    image: Any, text: Any, *, image_ids: Any = None, text_ids: Any = None, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """`retrieval` in both directions: keys `image_to_text/R@1`, `text_to_image/R@1`, ...

    Args:
      image: Unit rows [N, D].
      text: Unit rows [M, D].
      image_ids, text_ids: [N] and [M]; equal ids are positives. Both None: row i with row i. One may be several
        ids a row, see `ranks`.
      ks: Cut-offs.

    Returns:
      The metrics of both directions.

    Raises:
      InputError: See `ranks`; or only one of the two ids was given.

    Example:
      >>> import numpy as np
      >>> image_text_retrieval(np.eye(12), np.eye(12))["text_to_image/R@1"]
      1.0
    """
    if (image_ids is None) != (text_ids is None):
        raise InputError("image_ids and text_ids belong together: pass both, or neither for rows in the same order.")
    forward = None if image_ids is None else (image_ids, text_ids)
    backward = None if image_ids is None else (text_ids, image_ids)
    there = retrieval(image, text, relevant=forward, ks=ks)
    back = retrieval(text, image, relevant=backward, ks=ks)
    return {f"image_to_text/{k}": v for k, v in there.items()} | {f"text_to_image/{k}": v for k, v in back.items()}


def combined_query(image: Any, text: Any, *, weight: float = 1.0) -> np.ndarray:
    """An image with a concept added or taken away: `q = image + weight · text`.

    Args:
      image: Unit rows [N, D].
      text: Unit rows [N, D], or one row [D] for all.
      weight: 1 adds the concept, -1 removes it.

    Returns:
      [N, D] float32, not normalised: the length of a query does not change its ranking.

    Example:
      >>> combined_query([[1.0, 0.0]], [0.0, 1.0]).tolist()
      [[1.0, 1.0]]

    Reference:
      Jia et al., 2021, section 7 (image + text queries).
    """
    image_ND = matrix("image", image)
    text_ND = matrix("text", np.atleast_2d(np.asarray(jax.device_get(text))), columns=image_ND.shape[1])
    if len(text_ND) not in (1, len(image_ND)):
        raise InputError(f"text must be one row or {len(image_ND)}, one per image; it has {len(text_ND)}.")
    return image_ND + np.float32(weight) * text_ND
