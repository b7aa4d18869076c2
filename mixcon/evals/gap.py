"""The gap between two modalities in one embedding space.

Shapes: N pairs, D features; row i of x belongs to row i of y. Means over pairs of rows come from sums: none is formed.
"""

from typing import Any

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.geometry import cross_uniformity, relative_alignment, uniformity
from mixcon.evals.tiles import unit_rows


def modality_gap(x: Any, y: Any) -> dict[str, float]:
    """Where two modalities lie relative to each other.

    Args:
      x, y: Unit rows [N, D], N ≥ 2.

    Returns:
      - `centroid_distance` `‖mean x − mean y‖₂` (centroids not normalised) and `centroid_cosine`;
      - `pair_cosine`, `nonpair_cosine` (i ≠ j across modalities), `x_cosine`, `y_cosine` (i ≠ j within): means;
      - `pair_distance` `mean ‖x_i − y_i‖₂`;
      - `relative_gap` `p / (p + (d_x + d_y)/2)` with cosine dissimilarities `d = 1 − cos` of pairs (p) and within a
        modality: 0 without a gap, 1/2 when partners are as far apart as strangers of one modality.

    Raises:
      InputError: Shapes differ, rows are not unit, or fewer than two.

    Example:
      >>> gap = modality_gap([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
      >>> gap["centroid_distance"], gap["relative_gap"]
      (0.0, 0.0)

    Reference:
      Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning",
      2022, section 2; Schrodi et al., "Two Effects, One Trigger: On the Modality Gap, Object Bias, and Information
      Imbalance in Contrastive Vision-Language Models", 2025, section 4 (relative gap).
    """
    x_ND = unit_rows("x", x, rows=2).astype(np.float64)
    y_ND = unit_rows("y", y, like=x_ND).astype(np.float64)
    count = len(x_ND)
    ordered = count * (count - 1)
    sum_x, sum_y = x_ND.sum(0), y_ND.sum(0)
    paired = np.sum(x_ND * y_ND)
    pair, cross = paired / count, (sum_x @ sum_y - paired) / ordered
    within_x = (sum_x @ sum_x - np.sum(x_ND**2)) / ordered
    within_y = (sum_y @ sum_y - np.sum(y_ND**2)) / ordered
    centroids = np.linalg.norm(sum_x) * np.linalg.norm(sum_y)
    spread = (1 - within_x + 1 - within_y) / 2
    return {
        "centroid_distance": float(np.linalg.norm(sum_x - sum_y) / count),
        "centroid_cosine": float(sum_x @ sum_y / centroids) if centroids > 0 else 0.0,
        "pair_cosine": float(pair),
        "nonpair_cosine": float(cross),
        "x_cosine": float(within_x),
        "y_cosine": float(within_y),
        "pair_distance": float(np.mean(np.linalg.norm(x_ND - y_ND, axis=1))),
        "relative_gap": float((1 - pair) / max(1 - pair + spread, 1e-12)),
    }


def linear_separability(x: Any, y: Any, *, train_index: Any = None, test_index: Any = None, seed: int = 0) -> float:
    """Accuracy of a linear classifier that tells the modalities apart: 1 = disjoint, 1/2 = no gap.

    Logistic regression (L2, C = 1, with intercept) on the raw unit rows of 80 % of the *pairs*, scored on both rows of
    the other 20 %.

    Args:
      x, y: Unit rows [N, D].
      train_index, test_index: Pair indices; None draws a split from `seed`, which needs N ≥ 10.
      seed: Of the split.

    Returns:
      A share in 0..1.

    Raises:
      InputError: Shapes differ, rows are not unit, fewer than ten pairs without a given split, or a split
        with an empty part.

    Example:
      >>> import numpy as np
      >>> rows = np.tile([[1.0, 0.0]], (20, 1))
      >>> linear_separability(rows, -rows)
      1.0

    Reference:
      Fahim et al., "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap", 2024, section 3.
    """
    from sklearn.linear_model import LogisticRegression  # here, so that `import mixcon.evals` stays cheap

    x_ND = unit_rows("x", x)
    y_ND = unit_rows("y", y, like=x_ND)
    if (train_index is None) != (test_index is None):
        raise InputError("train_index and test_index belong together: pass both or neither.")
    if train_index is None:
        if len(x_ND) < 10:
            raise InputError(f"linear_separability needs at least 10 pairs to split 80/20; got {len(x_ND)}.")
        order = np.random.default_rng(seed).permutation(len(x_ND))
        test_index, train_index = np.split(order, [max(1, len(order) // 5)])

    if not len(train_index) or not len(test_index):
        raise InputError(f"train_index and test_index need pairs; got {len(train_index)} and {len(test_index)}.")

    def both(index: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([x_ND[index], y_ND[index]]), np.repeat([0, 1], len(index))

    return float(LogisticRegression(C=1.0, max_iter=1000).fit(*both(train_index)).score(*both(test_index)))


def explained_variance(x: Any) -> np.ndarray:
    """Share of the variance along each principal axis, falling: [min(N, D)] floats that sum to one.

    Args:
      x: Rows [N, D], N ≥ 2; centred here. A spectrum that falls at once is a collapsed space.

    Raises:
      InputError: Rows that are not unit, fewer than two, or all equal.

    Example:
      >>> explained_variance([[1.0, 0.0], [-1.0, 0.0]]).round(6).tolist()
      [1.0, 0.0]
    """
    x_ND = unit_rows("x", x, rows=2).astype(np.float64)
    power = np.linalg.svd(x_ND - x_ND.mean(0), compute_uv=False) ** 2
    if power.sum() <= 1e-12:
        raise InputError("All rows are equal: there is no variance to explain.")
    return power / power.sum()


def gap_report(x: Any, y: Any) -> dict[str, float]:
    """Everything that is said of a gap: `modality_gap`, `linear_separability`, uniformities, and how many axes it uses.

    Args:
      x, y: Unit rows [N, D], N ≥ 2; row i of each a pair.

    Returns:
      The floats of `modality_gap`; `separability` (from N = 10 on); `uniformity`, the mean of both modalities, and
      `cross_uniformity`, and `union_uniformity` of all rows together; `relative_alignment` with y as anchors; `x_axes`
      and `y_axes`, the number of singular values of the rows above 1.

    Raises:
      InputError: As `modality_gap`.

    Example:
      >>> gap_report([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])["centroid_distance"]
      0.0

    Reference:
      Fahim et al., 2024, sections 3 and 5.
    """
    found = modality_gap(x, y)
    found |= {"separability": linear_separability(x, y)} if len(x) >= 10 else {}
    found["uniformity"] = (uniformity(x) + uniformity(y)) / 2
    found["cross_uniformity"] = cross_uniformity(x, y)
    found["union_uniformity"] = uniformity(np.concatenate([x, y]))
    found["relative_alignment"] = relative_alignment(y, x)
    for name, rows in (("x_axes", x), ("y_axes", y)):
        found[name] = float(np.sum(np.linalg.svd(unit_rows(name, rows).astype(np.float64), compute_uv=False) > 1))
    return found
