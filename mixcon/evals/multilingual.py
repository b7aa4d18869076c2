"""Retrieval in several languages: how well in each, and how differently the same item ranks in them.

Ranks here count from 0, as in CCRK's tables; `mixcon.evals.ranks` counts from 1. Ties are pessimistic in both: a
candidate that scores as high as the right one stands before it.
Shapes: N items, K languages, D features, Q queries, C candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from mixcon.errors import InputError
from mixcon.evals.retrieval import ranks
from mixcon.evals.tiles import top_k

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows of queries [n], rows of candidates [n] -> scores [n]


def ranks_of_scores(scores: Any, *, relevant: Any = None) -> np.ndarray:
    """Rank of each query's best positive in a matrix of scores, 0 being first; ties are pessimistic.

    `rank_i = #{j not positive : s_ij ≥ max_{p positive} s_ip}`.

    Args:
      scores: [Q, C].
      relevant: [Q, C] bool; None pairs query i with candidate i.

    Returns:
      [Q] int.

    Raises:
      InputError: scores that are not finite or no matrix, a query without a positive.

    Example:
      >>> ranks_of_scores([[0.9, 0.1], [0.8, 0.8]]).tolist()
      [0, 1]
    """
    matrix = np.asarray(scores, np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise InputError(f"scores must be a finite matrix [Q, C], got shape {matrix.shape}.")
    if relevant is None and matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"relevant=None pairs query i with candidate i, but scores are {matrix.shape}.")
    wanted = np.eye(len(matrix), dtype=bool) if relevant is None else np.asarray(relevant, bool)
    if wanted.shape != matrix.shape or not wanted.any(1).all():
        raise InputError(f"relevant must be booleans {matrix.shape} with a positive for every query.")
    best = np.where(wanted, matrix, -np.inf).max(1, keepdims=True)
    return (~wanted & (matrix >= best)).sum(1)


def recall_at_k(ranks: Any, k: int) -> float:
    """Share of queries whose best positive is among the first k: `mean [rank < k]`, ranks from 0.

    Example:
      >>> recall_at_k([0, 3, 7], 5)
      0.6666666666666666
    """
    return float(np.mean(np.asarray(ranks) < k))


def mean_rank_variance(ranks: Any, kind: Literal["std", "variance"] = "std") -> float:
    """How differently an item ranks in K languages (MRV): 0 if it stands at the same place in all.

    `mean_n sqrt(mean_k (R_nk - mean_k R_nk)²)`: the population standard deviation, as the published code computes what
    its tables show. kind="variance", the formula of the paper: without the root.

    Args:
      ranks: [N, K], of K evaluations over the same N items. kind: see above.

    Returns:
      A number ≥ 0, in ranks (or their square).

    Raises:
      InputError: fewer than two languages, an unknown kind.

    Example:
      >>> mean_rank_variance([[0, 2], [5, 5]]), mean_rank_variance([[0, 2], [5, 5]], kind="variance")
      (0.5, 0.5)

    Reference: Nie et al., "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive
      Learning", 2024.
    """
    matrix = np.asarray(ranks, np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 2 or not len(matrix):
        raise InputError(f"ranks must be [N, K], the ranks of N items in at least two languages, got {matrix.shape}.")
    if kind not in ("std", "variance"):
        raise InputError(f"kind must be 'std' or 'variance', got {kind!r}.")
    variance = matrix.var(axis=1)
    return float(np.mean(np.sqrt(variance) if kind == "std" else variance))


def reranked(query: Any, corpus: Any, score: Score, *, k: int, relevant: tuple | None = None) -> np.ndarray:
    """Ranks (from 0) after a second look: of each query the k most similar candidates are put in the order of `score`.

    The others keep their order behind them, so that a positive which the first stage missed keeps its first rank; the
    published code gives all of them the score -100. R@j for j ≤ k is the same.

    Args:
      query, corpus: [Q, D] and [C, D] unit rows.
      score: of pairs, `score(query_rows [n], corpus_rows [n]) -> [n]`, such as a matching head's "yes".
      k: at most C.
      relevant: `(query_ids [Q], corpus_ids [C])`, equal ids being positives, the best of which counts; None pairs
        query i with candidate i.

    Returns:
      [Q] int.

    Raises:
      InputError: shapes that do not fit, k outside 1..C, scores that are not finite.

    Example:
      >>> reranked(image, text, lambda images, texts: match(images, texts), k=128)

    Reference: Li et al., "Align before Fuse", 2021, section 4; Nie et al., 2024.
    """
    first = ranks(query, corpus, relevant=relevant) - 1
    _, candidates = top_k(query, corpus, k)
    rows = np.repeat(np.arange(len(candidates)), k)
    scores = np.asarray(score(rows, candidates.reshape(-1)), np.float64)
    if scores.shape != rows.shape or not np.isfinite(scores).all():
        raise InputError(f"score must give {rows.shape} finite numbers, one a pair, got shape {scores.shape}.")
    scores = scores.reshape(-1, k)
    query_ids, corpus_ids = map(np.asarray, relevant or (np.arange(len(first)),) * 2)
    own = corpus_ids[candidates] == query_ids[:, None]
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    return np.where(own.any(1), (~own & (scores >= best)).sum(1), first)


def multilingual_report(
    image: Any,
    texts: Mapping[str, Any],
    *,
    ids: Any = None,
    there: Mapping[str, Any] | None = None,
    score: Callable[[str, bool], Score] | None = None,
    k: int = 0,
    over: tuple[str, ...] = (),
) -> Iterator[tuple[str, float]]:
    """What is logged of one image set and its captions: recall in each language and direction, and their consistency.

    A caption is looked for among all images, each of them once; an image that has a caption in a language among all
    captions of that language, any of its own being right. Consistency is over the items that have a caption in every
    language that it is over, and images look for their captions among those of these items alone: each language then
    ranks the same items among as many.

    Args:
      image: [N, D] unit rows. texts: language -> [N, D] unit rows in the same order.
      ids: [N] integers or strings, equal in rows of the same image; None takes every row for another one.
      there: language -> [N] bool, False where a row has no caption in it; None: there are all. A language without any
        is left out.
      score: `score(language, images_ask) -> Score` of the second stage, of rows of the set; None has none.
      k: of the second stage.
      over: languages that the rank variance is over; () for all.

    Yields:
      `<direction>/<language>/R@{1,5,10}` for the directions text_to_image and image_to_text; `<direction>/R@1` (mean),
      `worst_R@1`, `rank_std`, `rank_variance` (MRV, over at least two languages); `R_mean`, of all recalls. The same
      under `reranked/` with a second stage.

    Raises:
      InputError: ids or there that do not fit the rows, no captions at all, a language in `over` that is not in texts.

    Example:
      >>> dict(multilingual_report(image, {"en": english, "de": german}))["text_to_image/rank_std"]
    """
    image, texts = np.asarray(jax.device_get(image)), {name: np.asarray(jax.device_get(x)) for name, x in texts.items()}
    ids = np.arange(len(image)) if ids is None else np.asarray(ids)
    if ids.shape != (len(image),):
        raise InputError(f"ids must be [{len(image)}], one for each row, got shape {ids.shape}.")
    masks = {name: _mask(name, there, len(image)) for name in texts}
    if missing := [name for name in over if name not in texts]:
        raise InputError(f"over: there is no language {missing[0]!r}; there are {', '.join(texts)}.")
    if not (spoken := [name for name, mask in masks.items() if mask.any()]):
        raise InputError("there is no caption in any language.")
    compared = over or tuple(texts)
    common = np.flatnonzero(np.all([masks[name] for name in compared], axis=0))
    _, gallery = np.unique(ids, return_index=True)

    def found(language: str, images_ask: bool, rows: np.ndarray, second: Score | None) -> np.ndarray:
        """Ranks of the captions of these rows, or of their images."""
        asked = rows[np.sort(np.unique(ids[rows], return_index=True)[1])] if images_ask else rows
        among = rows if images_ask else gallery
        query, corpus = (image, texts[language]) if images_ask else (texts[language], image)
        pair, relevant = (query[asked], corpus[among]), (ids[asked], ids[among])
        if second is None:
            return ranks(*pair, relevant=relevant) - 1
        return reranked(*pair, lambda q, c: second(asked[q], among[c]), k=min(k, len(among)), relevant=relevant)

    stages = [("", None)] if score is None else [("", None), ("reranked/", score)]
    for prefix, scored in stages:
        means = []
        for direction, images_ask in (("text_to_image", False), ("image_to_text", True)):
            second = {name: scored and scored(name, images_ask) for name in texts}
            own = {name: found(name, images_ask, np.flatnonzero(masks[name]), second[name]) for name in spoken}
            recalls = {language: [recall_at_k(rank, j) for j in (1, 5, 10)] for language, rank in own.items()}
            for language, values in recalls.items():
                for j, value in zip((1, 5, 10), values, strict=True):
                    yield f"{prefix}{direction}/{language}/R@{j}", value
            first = [values[0] for values in recalls.values()]
            yield f"{prefix}{direction}/R@1", float(np.mean(first))
            yield f"{prefix}{direction}/worst_R@1", min(first)
            if len(compared) > 1 and len(common):
                table = [
                    own[name] if masks[name].sum() == len(common) else found(name, images_ask, common, second[name])
                    for name in compared
                ]
                matrix = np.stack(table, axis=1)
                yield f"{prefix}{direction}/rank_std", mean_rank_variance(matrix)
                yield f"{prefix}{direction}/rank_variance", mean_rank_variance(matrix, "variance")
            means.append(np.mean(list(recalls.values())))
        yield f"{prefix}R_mean", float(np.mean(means))


def _mask(language: str, there: Mapping[str, Any] | None, rows: int) -> np.ndarray:
    if there is None:
        return np.ones(rows, bool)
    mask = np.asarray(there.get(language, ()))
    if mask.shape != (rows,) or mask.dtype != bool:
        raise InputError(f"there must have [{rows}] booleans for {language!r}, got shape {mask.shape}, {mask.dtype}.")
    return mask
