"""What mixing on the sphere is judged by: how hard its negatives are, and arithmetic of images and words (SIMAT).

Shapes: N images or pairs, Q queries, D features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import matrix, top_k, unit_rows

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0)  # of the words, in SIMAT


def negative_hardness(x: Any, y: Any, negatives: Any) -> dict[str, float]:
    """How near negatives are, beside those that the other modality has anyway.

    Args:
      x: Anchors, unit rows [N, D], N ≥ 2.
      y: Their partners.
      negatives: Row j is a negative for every anchor but j, such as pairs mixed along their geodesics.

    Returns:
      - `cosine`, `partner_cosine`: mean over i ≠ j of anchors with negatives, and with partners of others;
      - `hardest`, `partner_hardest`: the nearest of each anchor, on average;
      - `harder`: share of anchors whose nearest negative is nearer than every other partner.

    Raises:
      InputError: Shapes differ, rows are not unit, or fewer than two.

    Example:
      >>> negative_hardness([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]])["harder"]
      0.5

    Reference:
      Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", 2023, section 3.2.
    """
    x_ND = unit_rows("x", x, rows=2)
    sides = {"": unit_rows("negatives", negatives, like=x_ND), "partner_": unit_rows("y", y, like=x_ND)}
    count, found, hardest = len(x_ND), {}, {}
    for name, rows_ND in sides.items():
        wide_x, wide = x_ND.astype(np.float64), rows_ND.astype(np.float64)
        found[f"{name}cosine"] = float((wide_x.sum(0) @ wide.sum(0) - np.sum(wide_x * wide)) / (count * (count - 1)))
        hardest[name] = top_k(x_ND, rows_ND, 1, exclude_self=True)[0][:, 0]
        found[f"{name}hardest"] = float(hardest[name].mean(dtype=np.float64))
    return found | {"harder": float(np.mean(hardest[""] > hardest["partner_"]))}


def simat_score(
    image: Any,
    query: Any,
    old: Any,
    new: Any,
    oracle: Any,
    *,
    norm: Any,
    strengths: Sequence[float] = STRENGTHS,
    least: float = 0.5,
) -> dict[str, float]:
    """Image plus words: of `x + λ (new - old)`, how often the nearest other image shows what was asked for.

    `S(λ) = Σ_q w_q [oracle(q, nearest image but the query's own) > least]`, `w_q ∝ norm_q^-1/2`, `Σ w = 1`;
    what is reported is the greatest S over the strengths λ.

    Args:
      image: Unit rows [N, D].
      query: [Q] integers, which image each query starts from.
      old, new: Unit rows [Q, D], the word that is there and the one that is wanted.
      oracle: [Q, N], how well each image fits what the query asks for, in 0..1.
      norm: [Q] above 0, how frequent a query's kind is.
      strengths: Values of λ. least: What the oracle must exceed.

    Returns:
      `simat`, a share in 0..1, and the `strength` that reached it (the first of equals).

    Raises:
      InputError: Shapes that do not fit, rows that are not unit, a norm not above 0, no strength.

    Example:
      >>> rows = [[1.0, 0.0], [0.0, 1.0]]
      >>> simat_score(rows, [0], rows[:1], rows[1:], [[0.0, 1.0]], norm=[4.0])
      {'simat': 1.0, 'strength': 0.5}

    Reference:
      Couairon et al., "Embedding Arithmetic of Multimodal Queries for Image Retrieval", 2022, section 4.
    """
    image_ND = unit_rows("image", image, rows=2)
    old_QD, new_QD = matrix("old", old, columns=image_ND.shape[1]), matrix("new", new, columns=image_ND.shape[1])
    start_Q, fits_QN, norm_Q = np.asarray(query), matrix("oracle", oracle), np.asarray(norm, np.float64)
    size = len(start_Q)
    shapes = {"old": (len(old_QD),), "new": (len(new_QD),), "norm": norm_Q.shape, "oracle": (len(fits_QN),)}
    if wrong := [name for name, shape in shapes.items() if shape != (size,)]:
        raise InputError(f"{wrong[0]} must have a row for each of the {size} queries, not {shapes[wrong[0]]}.")
    if fits_QN.shape[1] != len(image_ND) or not size or not 0 <= start_Q.min() <= start_Q.max() < len(image_ND):
        raise InputError(f"oracle must be [{size}, {len(image_ND)}], and query places of the {len(image_ND)} images.")
    if not (np.isfinite(norm_Q).all() and (norm_Q > 0).all()) or not len(strengths):
        raise InputError("norm must be above 0, and strengths at least one.")
    weight_Q = norm_Q**-0.5 / np.sum(norm_Q**-0.5)
    scores = []
    for strength in strengths:
        moved_QD = image_ND[start_Q] + strength * (new_QD - old_QD)
        nearest_Q2 = top_k(matrix("moved", moved_QD), image_ND, 2)[1]
        own = nearest_Q2[:, 0] == start_Q
        nearest_Q = np.where(own, nearest_Q2[:, 1], nearest_Q2[:, 0])
        scores.append(float(np.sum(weight_Q * (fits_QN[np.arange(size), nearest_Q] > least))))
    best = int(np.argmax(scores))
    return {"simat": scores[best], "strength": float(strengths[best])}
