"""Geometry of embeddings on the unit sphere: alignment, uniformity, tolerance, the gap between two modalities.

All take unit rows (`mixcon.evals.normalized`) and refuse others: a norm that leaks into a cosine is not seen in the
number. Shapes: N rows, D features. Where a sum over pairs has a closed form, it costs N·D; the rest runs by tiles.

How a loss treats its negatives (`penalty`) is here under the same roof.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixcon.errors import InputError
from mixcon.evals.penalty import (
    hard_negatives,
    infinite_temperature_limit,
    penalty_entropy,
    relative_penalty,
    similarity_gradient,
    zero_temperature_limit,
)
from mixcon.evals.tiles import PADDING, dots, labels_of, over_queries, top_k, unit_rows

__all__ = [
    "alignment",
    "cross_uniformity",
    "hard_negatives",
    "infinite_temperature_limit",
    "neighbor_profile",
    "penalty_entropy",
    "relative_alignment",
    "relative_penalty",
    "similarity_gradient",
    "tolerance",
    "uniformity",
    "zero_temperature_limit",
]


def alignment(x: Any, y: Any, *, alpha: float = 2.0) -> float:
    """Mean distance of pairs, `mean_i ‖x_i − y_i‖₂^alpha`; 0 is perfect, and for alpha = 2 it is at most 4.

    Args:
      x, y: Unit rows [N, D]; row i with row i.
      alpha: Power.

    Returns:
      A float.

    Raises:
      InputError: Shapes differ, or rows are not unit.

    Example:
      >>> alignment([[1.0, 0.0]], [[0.0, 1.0]])
      2.0

    Reference:
      Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere", 2020, section 4.1.1.
    """
    x_ND = unit_rows("x", x).astype(np.float64)
    y_ND = unit_rows("y", y, like=x_ND)
    return float(np.mean(np.sum((x_ND - y_ND) ** 2, axis=1) ** (alpha / 2)))


@jax.jit
def _kernel_sums(query_qD, skip_q, corpus_TcD, position_Tc, t):
    def add(sum_q, tile):
        corpus_cD, position_c = tile
        squared_qc = jnp.maximum(2 - 2 * dots(query_qD, corpus_cD), 0)
        counted_qc = (position_c[None] != PADDING) & (position_c[None] != skip_q[:, None])
        return sum_q + jnp.sum(jnp.where(counted_qc, jnp.exp(-t * squared_qc), 0), axis=1), None

    return jax.lax.scan(add, jnp.zeros(len(query_qD), jnp.float32), (corpus_TcD, position_Tc))[0]


def _log_mean_kernel(x_ND: np.ndarray, y_ND: np.ndarray, t: float, include_diagonal: bool) -> float:
    if not (np.isfinite(t) and t > 0):
        raise InputError(f"t must be above 0; got {t}.")
    count = len(x_ND)
    skip = np.full(count, -2, np.int32) if include_diagonal else np.arange(count, dtype=np.int32)
    scale = jax.device_put(np.float32(t))
    sums = over_queries(lambda *tiles: _kernel_sums(*tiles, scale), x_ND, y_ND, per_query=(skip,))
    return float(np.log(np.sum(sums, dtype=np.float64) / (count * (count - (not include_diagonal)))))


def uniformity(x: Any, *, t: float = 2.0, include_self: bool = False) -> float:
    """How evenly rows fill the sphere: `log mean_{i≠j} exp(−t ‖x_i − x_j‖²)`, lower being more even.

    0 when all rows are equal; about −2t for an even spread in many dimensions. Exact over all pairs, by tiles. Papers
    that print larger-is-better negate it.

    Args:
      x: Unit rows [N, D], N ≥ 2.
      t: Sharpness, above 0.
      include_self: Count the pairs i = j too, as some papers do.

    Returns:
      A float ≤ 0.

    Raises:
      InputError: Rows are not unit, fewer than two, t not above 0.

    Example:
      >>> round(uniformity([[1.0, 0.0], [-1.0, 0.0]]), 4)
      -8.0

    Reference:
      Wang and Isola, 2020, section 4.1.2.
    """
    x_ND = unit_rows("x", x, rows=2)
    return _log_mean_kernel(x_ND, x_ND, t, include_self)


def cross_uniformity(x: Any, y: Any, *, t: float = 2.0) -> float:
    """Uniformity between modalities, positives left out: `log mean_{i≠j} exp(−t ‖x_i − y_j‖²)`.

    Args:
      x, y: Unit rows [N, D], N ≥ 2; row i is paired with row i.
      t: Sharpness, above 0.

    Returns:
      A float ≤ 0.

    Raises:
      InputError: As `uniformity`.

    Example:
      >>> round(cross_uniformity([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]), 4)
      -8.0

    Reference:
      Fahim et al., "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap", 2024, section 5.
    """
    x_ND = unit_rows("x", x, rows=2)
    return _log_mean_kernel(x_ND, unit_rows("y", y, like=x_ND), t, include_diagonal=False)


def tolerance(x: Any, labels: Any, *, literal: bool = False) -> float:
    """Mean cosine of different rows with the same label; the price that uniformity pays.

    `Σ_{i≠j} [l_i = l_j] x_i·x_j`, divided by the number of same-label pairs (`literal=False`, what published tables
    report) or of all pairs (the formula as printed). From class sums: no pair is formed.

    Args:
      x: Unit rows [N, D].
      labels: [N] integers.
      literal: See above.

    Returns:
      A float in −1..1.

    Raises:
      InputError: Rows are not unit, or no two rows share a label.

    Example:
      >>> tolerance([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 1])
      1.0

    Reference:
      Wang and Liu, "Understanding the Behaviour of Contrastive Loss", 2021, equation 11.
    """
    x_ND = unit_rows("x", x).astype(np.float64)
    _, code_N, count_C = np.unique(labels_of("labels", labels, len(x_ND)), return_inverse=True, return_counts=True)
    pairs = int(np.sum(count_C * (count_C - 1)))
    if not pairs:
        raise InputError("No two rows share a label: tolerance is a mean over same-label pairs.")
    sums_CD = np.zeros((len(count_C), x_ND.shape[1]))
    np.add.at(sums_CD, code_N, x_ND)
    within = np.sum(sums_CD**2) - np.sum(x_ND**2)
    return float(within / (len(x_ND) * (len(x_ND) - 1) if literal else pairs))


def neighbor_profile(x: Any, y: Any, *, top: int = 10) -> tuple[float, np.ndarray]:
    """Local separation: mean cosine of pairs, and of each anchor's 1st, 2nd, ... nearest non-partner.

    Args:
      x: Anchors, unit rows [N, D].
      y: Partners, unit rows [N, D]; row i with row i.
      top: How many neighbours, below N.

    Returns:
      Mean positive cosine, and [top] mean cosines in falling order.

    Raises:
      InputError: Shapes differ, rows are not unit, or `top` is too large.

    Example:
      >>> neighbor_profile([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], top=1)[0]
      1.0

    Reference:
      Wang and Liu, 2021, figure 8.
    """
    x_ND = unit_rows("x", x)
    y_ND = unit_rows("y", y, like=x_ND)
    scores_Nk, _ = top_k(x_ND, y_ND, top, exclude_self=True)
    return float(np.mean(np.sum(x_ND * y_ND, axis=1, dtype=np.float64))), scores_Nk.mean(0, dtype=np.float64)


def relative_alignment(x: Any, y: Any, *, ratio: bool = False) -> float:
    """How much nearer partners are than the nearest non-partner: `−mean_i [‖x_i−y_i‖² − min_{k≠i} ‖x_i−y_k‖²]`.

    Args:
      x: Anchors, unit rows [N, D], N ≥ 2.
      y: Partners, unit rows [N, D].
      ratio: `mean_i [‖x_i−y_i‖² / min_{k≠i} ‖x_i−y_k‖²]` instead, which the published code logs, too: 0 is best.

    Returns:
      A float; above 0 (a ratio: below 1) when partners are nearest on average.

    Raises:
      InputError: Shapes differ, rows are not unit, or fewer than two; a ratio to a non-partner that is equal to its
        anchor.

    Example:
      >>> relative_alignment([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
      2.0

    Reference:
      Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", 2023, section 5.
    """
    if not ratio:
        positive, nearest = neighbor_profile(x, y, top=1)
        return float(2 * (positive - nearest[0]))
    x_ND = unit_rows("x", x, rows=2)
    y_ND = unit_rows("y", y, like=x_ND)
    x_ND, other_ND = x_ND.astype(np.float64), y_ND[top_k(x_ND, y_ND, 1, exclude_self=True)[1][:, 0]]
    own_N, other_N = (np.sum((x_ND - rows) ** 2, axis=1) for rows in (y_ND, other_ND))
    if not other_N.all():
        raise InputError(f"anchor {other_N.argmin()} is equal to a non-partner: there is no ratio to its distance.")
    return float(np.mean(own_N / other_N))
