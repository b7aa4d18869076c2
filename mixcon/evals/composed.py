"""Search by an image and words: this emoji, but a woman. Shapes: Q queries, N images, D features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.retrieval import combined_query
from mixcon.evals.tiles import matrix

DELTA = 1e-6  # what rounding may move a cosine by: a tie


class Edit(NamedTuple):
    """Record `query` becomes record `target` when `attribute` changes from `old` to `new`."""

    query: int
    target: int
    old: str
    new: str


def edits(
    records: Sequence[Mapping[str, Any]],
    targets: Sequence[int],
    *,
    attribute: str,
    values: Sequence[str],
    same: Sequence[str],
) -> list[Edit]:
    """Every pair of records that differ in one attribute, the second of which is a target.

    Args:
        records: N of them.
        targets: indices of the records to be found, such as the held-out ones.
        attribute: field that changes.
        values: what it may be on either side; others are left alone.
        same: fields that do not change.

    Returns:
        One `Edit` for each target and each record that it can be reached from, in order.

    Raises:
        InputError: no such pair.

    Example:
        >>> people = [{"job": "pilot", "who": who} for who in ("man", "woman")]
        >>> edits(people, [1], attribute="who", values=("man", "woman"), same=("job",))
        [Edit(query=0, target=1, old='man', new='woman')]
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, record in enumerate(records):
        if record[attribute] in values:
            groups.setdefault(tuple(record[field] for field in same), []).append(index)
    found = [
        Edit(query, int(target), records[query][attribute], records[target][attribute])
        for target in targets
        for query in groups.get(tuple(records[target][field] for field in same), ())
        if records[target][attribute] in values and records[query][attribute] != records[target][attribute]
    ]
    if not found:
        raise InputError(f"no two records differ in {attribute!r} alone, with values among {', '.join(values)}.")
    return found


def composed_retrieval(
    image: Any,
    wanted: Sequence[Edit],
    words: Mapping[str, Any],
    *,
    groups: Sequence[Any],
    weight: float = 1.0,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """How often `image + weight · (new - old)` finds the image it describes, among all images but the query's own.

    Three baselines that do not combine: the image alone (`weight=0`), the words alone, and one that knows the class:
    it puts the query's own group first, in random order, and misses what is not in it.

    Args:
        image: unit rows [N, D], of all records.
        wanted: what is looked for, from `edits`.
        words: unit row [D] of each attribute value.
        groups: [N], what an edit does not change, such as a profession.
        weight: of the words.
        ks: cut-offs.

    Returns:
        `R@k`, `median_rank` and, for `image`, `words` and `class`, `<baseline>/R@k`. Ties count against.

    Raises:
        InputError: a value without words; edits that are not of these rows.

    Example:
        >>> found = composed_retrieval([[1.0, 0.0], [0.0, 1.0]], [Edit(0, 1, "a", "b")],
        ...                            {"a": [1.0, 0.0], "b": [0.0, 1.0]}, groups=[0, 0], ks=(1,))
        >>> found["R@1"], found["class/R@1"]
        (1.0, 1.0)

    Reference: Jia et al., "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision",
        2021, section 7 (image and text queries).
    """
    image_ND = matrix("image", image)
    if missing := {value for edit in wanted for value in (edit.old, edit.new)} - set(words):
        raise InputError(f"words has no row for {', '.join(sorted(missing))}.")
    if not wanted or max(max(edit.query, edit.target) for edit in wanted) >= len(image_ND):
        raise InputError(f"edits must be one or more, of the {len(image_ND)} rows of image.")
    start_QD = image_ND[[edit.query for edit in wanted]]
    change_QD = np.stack([np.asarray(words[e.new], np.float32) - np.asarray(words[e.old], np.float32) for e in wanted])
    queries = {
        "": combined_query(start_QD, change_QD, weight=weight),
        "image/": start_QD,
        "words/": change_QD,
    }
    result: dict[str, float] = {}
    for name, query_QD in queries.items():
        rank_Q = _ranks(query_QD, image_ND, wanted)
        result |= {f"{name}R@{k}": float(np.mean(rank_Q <= k)) for k in ks}
        if not name:
            result["median_rank"] = float(np.median(rank_Q))
    _, code_N, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    others_Q = np.asarray([size[code_N[edit.query]] - 1 for edit in wanted])
    inside_Q = np.asarray([code_N[edit.query] == code_N[edit.target] for edit in wanted])
    return result | {f"class/R@{k}": float(np.mean(inside_Q * np.minimum(k / np.maximum(others_Q, 1), 1))) for k in ks}


def composed_report(
    image_ND: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    targets: Sequence[int],
    words: Mapping[str, np.ndarray],
    *,
    attribute: str,
    same: Sequence[str],
    weight: float = 1.0,
) -> Iterator[tuple[str, float]]:
    """`composed_retrieval` of every edit of an attribute that reaches a target.

    Args:
        image_ND: unit rows of all records.
        records: N of them.
        targets: indices of what is to be found.
        words: unit row [D] of each value of the attribute; records with other values take no part.
        attribute: what changes. same: what does not; its first field is the class of the baseline.
        weight: of the words.

    Yields:
        `(metric, float)`, `queries` (how many) among them.
    """
    wanted = edits(records, targets, attribute=attribute, values=tuple(words), same=same)
    yield "queries", float(len(wanted))
    groups = [record[same[0]] for record in records]
    yield from composed_retrieval(image_ND, wanted, words, groups=groups, weight=weight).items()


def _ranks(query_QD: np.ndarray, image_ND: np.ndarray, wanted: Sequence[Edit]) -> np.ndarray:
    """Rank of each target among all images but the query's own, every tie counted against it."""
    rows = np.arange(len(wanted))
    scores_QN = query_QD @ image_ND.T  # few queries: no need for tiles
    bar_Q = scores_QN[rows, [edit.target for edit in wanted]] - DELTA * np.linalg.norm(query_QD, axis=1)
    ahead_QN = scores_QN >= bar_Q[:, None]
    ahead_QN[rows, [edit.query for edit in wanted]] = False
    ahead_QN[rows, [edit.target for edit in wanted]] = False
    return 1 + ahead_QN.sum(1)
