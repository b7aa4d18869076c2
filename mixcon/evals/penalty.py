"""How a softmax over similarities treats its negatives: gradients, relative penalties, limits, and which are hard.

In float64 on the host, for analysis and pictures. Shapes: B anchors, N keys (one of them the anchor's), n negatives.
"""

from typing import Any

import jax
import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import labels_of
from mixcon.objectives.hardness import number_kept


def similarity_gradient(similarity: Any, positive_index: Any, *, temperature: float) -> np.ndarray:
    """Gradient of each anchor's softmax contrast along its similarities, in closed form.

    With `P_ij = exp(s_ij/τ) / Σ_k exp(s_ik/τ)`: `∂L_i/∂s_ij = P_ij/τ` for negatives and `-(1/τ) Σ_{k≠i} P_ik` for the
    positive, so that every row sums to zero.

    Args:
      similarity: [B, N]; -inf leaves a key out.
      positive_index: [B] column of each anchor's own key.
      temperature: τ > 0.

    Returns:
      [B, N] float64.

    Raises:
      InputError: τ not above 0, shapes that do not fit, a positive that is left out, no negatives.

    Example:
      >>> similarity_gradient([[1.0, 1.0]], [0], temperature=0.5).tolist()
      [[-1.0, 1.0]]

    Reference: Wang and Liu, "Understanding the Behaviour of Contrastive Loss", 2021, equation 4.
    """
    s_BN, own_B, rows = _anchors(similarity, positive_index, temperature)
    gradient_BN = _softmax(s_BN / temperature) / temperature
    gradient_BN[rows, own_B] = 0
    gradient_BN[rows, own_B] = -gradient_BN.sum(1)
    return gradient_BN


def relative_penalty(negatives: Any, *, temperature: float) -> np.ndarray:
    """Share of the push that each negative gets: `r_j = exp(s_j/τ) / Σ_k exp(s_k/τ)` over the negatives alone.

    Args:
      negatives: [..., n] similarities of negatives; -inf leaves one out (a hard loss keeps the nearest only).
      temperature: τ > 0. The smaller it is, the more of the push goes to the nearest.

    Returns:
      [..., n] float64, sums to one over the last axis.

    Raises:
      InputError: τ not above 0, no negatives.

    Example:
      >>> relative_penalty([1.0, 0.0], temperature=0.1).round(3).tolist()
      [1.0, 0.0]

    Reference: Wang and Liu, 2021, equations 5 and 8, figure 3.
    """
    return _softmax(_negatives(negatives, temperature) / temperature)


def penalty_entropy(negatives: Any, *, temperature: float) -> np.ndarray:
    """Entropy of the relative penalties, `-Σ_j r_j log r_j`: rises with τ to log n, which equal negatives always have.

    Args:
      negatives: [..., n]. temperature: τ > 0.

    Returns:
      [...] float64, in nats.

    Raises:
      InputError: as `relative_penalty`.

    Example:
      >>> bool(np.isclose(penalty_entropy([0.3, 0.3], temperature=0.07), np.log(2)))
      True

    Reference: Wang and Liu, 2021, section 3.2.
    """
    share = relative_penalty(negatives, temperature=temperature)
    return -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)


def zero_temperature_limit(similarity: Any, positive_index: Any, *, temperature: float) -> np.ndarray:
    """What the loss becomes as τ → 0: `(1/τ) max(max_{k≠i} s_ik - s_ii, 0)`, a triplet loss without margin.

    Args: as for `similarity_gradient`.

    Returns:
      [B] float64.

    Example:
      >>> zero_temperature_limit([[0.5, 1.0]], [0], temperature=0.1).tolist()
      [5.0]

    Reference: Wang and Liu, 2021, equation 6.
    """
    s_BN, own_B, rows = _anchors(similarity, positive_index, temperature)
    positive_B = s_BN[rows, own_B]
    s_BN[rows, own_B] = -np.inf
    return np.maximum(s_BN.max(1) - positive_B, 0) / temperature


def infinite_temperature_limit(similarity: Any, positive_index: Any, *, temperature: float) -> np.ndarray:
    """What the loss becomes as τ → ∞: `-((N-1)/(Nτ)) s_ii + (1/(Nτ)) Σ_{k≠i} s_ik + log N`, without hardness.

    Args: as for `similarity_gradient`, every key included.

    Returns:
      [B] float64.

    Example:
      >>> infinite_temperature_limit([[1.0, 1.0]], [0], temperature=10.0).round(4).tolist()
      [0.6931]

    Reference: Wang and Liu, 2021, equation 7.
    """
    s_BN, own_B, rows = _anchors(similarity, positive_index, temperature)
    count = s_BN.shape[1]
    positive_B = s_BN[rows, own_B]
    return (s_BN.sum(1) - count * positive_B) / (count * temperature) + np.log(count)


def hard_negatives(
    similarity: Any, positive_index: Any, *, top_k: int | None = None, alpha: float | None = None
) -> np.ndarray:
    """Which negatives are the nearest of each anchor: [B, N] bool, never the positive nor what is left out (-inf).

    Args:
      similarity: [B, N]. positive_index: [B].
      top_k: K, at most the number n of an anchor's negatives; ties go to the lower index. alpha: in (0, 1], instead of
        it: max(1, ⌊α n⌋), and all that are as near as the last of them.

    Raises:
      InputError: both or neither of top_k and alpha, or outside their range; an anchor without a negative; shapes that
        do not fit.

    Example:
      >>> hard_negatives([[0.9, 0.1, 0.5]], [0], top_k=1).tolist()
      [[False, False, True]]

    Reference: Wang and Liu, 2021, section 5 and equation 9.
    """
    s_BN, own_B, rows = _anchors(similarity, positive_index, 1.0)
    s_BN[rows, own_B] = -np.inf
    counts_B = np.isfinite(s_BN).sum(1)
    if not counts_B.all():
        raise InputError(f"anchor {counts_B.argmin()} has no negative.")
    kept_B = np.asarray([number_kept(top_k, alpha, int(count)) for count in counts_B])
    order_BN = np.argsort(-s_BN, axis=1, kind="stable")
    if alpha is not None:
        return s_BN >= s_BN[rows, order_BN[rows, kept_B - 1]][:, None]
    return np.argsort(order_BN, axis=1) < kept_B[:, None]


def _anchors(similarity: Any, positive_index: Any, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A copy of the similarities, the columns of the positives, and 0..B-1."""
    s_BN = np.array(_negatives(similarity, temperature))
    if s_BN.ndim != 2 or s_BN.shape[1] < 2:
        raise InputError(f"similarity must be [B, N] with at least one negative (N ≥ 2); its shape is {s_BN.shape}.")
    own_B, rows = labels_of("positive_index", positive_index, len(s_BN), s_BN.shape[1]), np.arange(len(s_BN))
    if not np.isfinite(s_BN[rows, own_B]).all():
        raise InputError("similarity leaves out (-inf) the positive of an anchor.")
    return s_BN, own_B, rows


def _negatives(similarity: Any, temperature: float) -> np.ndarray:
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature must be finite and above 0; got {temperature}.")
    s = np.asarray(jax.device_get(similarity), np.float64)
    if s.ndim < 1 or s.shape[-1] < 1 or np.isnan(s).any() or (s == np.inf).any() or (s == -np.inf).all(-1).any():
        raise InputError(f"similarities must be numbers, at least one of each anchor; got shape {s.shape}.")
    return s


def _softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)
