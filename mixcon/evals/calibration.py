"""Calibration: whether a classifier that says 0.8 is right eight times in ten.

Shapes: N examples, C classes, b bins. Logits are taken to the host and to float64; these are sums over a test set.
"""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize_scalar

from mixcon.errors import InputError
from mixcon.evals import artifacts
from mixcon.evals.tiles import labels_of

GRID = tuple(round(0.1 * step, 1) for step in range(1, 101))  # temperatures tried for the criterion "ece"


class Bins(NamedTuple):
    """Examples sorted by confidence into b bins; means of an empty bin are 0."""

    counts: np.ndarray  # [b]
    confidence: np.ndarray  # [b], mean
    accuracy: np.ndarray  # [b], share that was right
    total: int  # N; a confidence that lies in no bin counts here, too

    @property
    def gap(self) -> np.ndarray:
        """|accuracy - confidence| of each bin, [b]."""
        return np.abs(self.accuracy - self.confidence)

    @property
    def error(self) -> float:
        """The gaps, weighted by the share of all examples that each bin holds (counted or not)."""
        return float((self.counts * self.gap).sum() / self.total)


def log_probabilities(logits: Any) -> np.ndarray:
    """`log softmax(logits)` on the host, float64 [N, C]; refuses what is no matrix of finite numbers."""
    z_NC = np.asarray(jax.device_get(logits), np.float64)
    if z_NC.ndim != 2 or z_NC.shape[1] < 2 or not len(z_NC):
        raise InputError(f"logits must be [N, C] with at least one row and two classes; got {list(z_NC.shape)}.")
    if not np.isfinite(z_NC).all():
        raise InputError(f"logits hold non-finite values in {(~np.isfinite(z_NC)).any(1).sum()} of {len(z_NC)} rows.")
    shifted = z_NC - z_NC.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def bins_of(confidence: Any, correct: Any, *, bins: int = 15, equal_mass: bool = False) -> Bins:
    """Confidences in bins (lo, hi], of equal width over [0, 1] or holding equally many examples.

    Equal mass: the edges are `interp(linspace(0, N, b + 1), 0..N-1, sorted confidences)`; the smallest confidence is
    an edge itself, so that it falls in no bin, as in the code this law comes from.

    Args:
      confidence: [N] in [0, 1].
      correct: [N], whether the prediction was right.
      bins: b.
      equal_mass: edges at quantiles instead.

    Returns:
      `Bins`.

    Raises:
      InputError: fewer than one bin, shapes that differ, confidences outside [0, 1].

    Example:
      >>> bins_of([0.2, 0.9], [False, True], bins=2).counts.tolist()
      [1, 1]

    Reference:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, section 2.
    """
    p_N, right_N = (np.asarray(jax.device_get(v), np.float64) for v in (confidence, correct))
    if bins < 1 or p_N.ndim != 1 or p_N.shape != right_N.shape or not p_N.size:
        raise InputError(f"want bins ≥ 1, confidence and correct [N]; got {bins}, {p_N.shape}, {right_N.shape}.")
    if not ((p_N >= 0) & (p_N <= 1 + 1e-9)).all():
        raise InputError(f"confidence must lie in [0, 1]; it spans {p_N.min()}..{p_N.max()}.")
    if equal_mass:
        edges = np.interp(np.linspace(0, len(p_N), bins + 1), np.arange(len(p_N)), np.sort(p_N))
    else:
        edges = np.linspace(0, 1, bins + 1)
        edges[-1] = np.inf  # rounding may carry a certain prediction above 1
    index = np.searchsorted(edges, p_N, side="left") - 1  # (lo, hi]
    kept = (index >= 0) & (index < bins)
    sums = [np.bincount(index[kept], weights=v[kept], minlength=bins) for v in (np.ones_like(p_N), p_N, right_N)]
    count = sums[0]
    mean, accuracy = (np.divide(s, count, out=np.zeros(bins), where=count > 0) for s in sums[1:])
    return Bins(count.astype(np.int64), mean, accuracy, len(p_N))


def _predicted(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities [N, C], labels [N], and whether the first of the largest is the label [N]."""
    log_p = log_probabilities(logits)
    label_N = labels_of("labels", labels, len(log_p), log_p.shape[1])
    return log_p, label_N, log_p.argmax(1) == label_N


def ece(logits: Any, labels: Any, *, bins: int = 15) -> float:
    """Expected calibration error: `Σ_b n_b/N |acc_b - conf_b|` over bins (lo, hi] of equal width.

    Args:
      logits: [N, C].
      labels: int [N].
      bins: b.

    Returns:
      In [0, 1].

    Raises:
      InputError: logits not [N, C] and finite; labels that do not fit; fewer than one bin.

    Example:
      >>> round(ece([[0.0, 0.0], [0.0, 0.0]], [0, 0]), 3)
      0.5

    Reference:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, equation 3.
    """
    log_p, _, right = _predicted(logits, labels)
    return bins_of(np.exp(log_p.max(1)), right, bins=bins).error


def adaptive_ece(logits: Any, labels: Any, *, bins: int = 15) -> float:
    """ECE over bins that hold equally many examples.

    Args, Raises: as `ece`.

    Returns:
      In [0, 1].

    Example:
      >>> adaptive_ece([[5.0, 0.0], [0.0, 4.0], [3.0, 0.0]], [0, 1, 0], bins=2) < 0.1
      True

    Reference:
      Nguyen, O'Connor, "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models", 2015;
      the edges as `bins_of` says.
    """
    log_p, _, right = _predicted(logits, labels)
    return bins_of(np.exp(log_p.max(1)), right, bins=bins, equal_mass=True).error


def classwise_ece(logits: Any, labels: Any, *, bins: int = 15) -> float:
    """The mean over classes of the calibration error of "it is class c", binned by p(c).

    Args, Raises: as `ece`. Classes are 0 to the largest label.

    Returns:
      In [0, 1].

    Example:
      >>> round(classwise_ece([[0.0, 0.0]], [1]), 3)
      0.5

    Reference:
      Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
      calibration", 2019, section 2.
    """
    log_p, label_N, _ = _predicted(logits, labels)
    p_NC = np.exp(log_p)
    return float(np.mean([bins_of(p_NC[:, c], label_N == c, bins=bins).error for c in range(label_N.max() + 1)]))


def nll(logits: Any, labels: Any) -> float:
    """Negative log-likelihood, `-mean_i log p(y_i)`, in nats.

    Example:
      >>> round(nll([[0.0, 0.0]], [0]), 4)
      0.6931
    """
    log_p, label_N, _ = _predicted(logits, labels)
    return float(-log_p[np.arange(len(label_N)), label_N].mean())


def brier(logits: Any, labels: Any) -> float:
    """Brier score, `mean_i Σ_c (p_ic - [y_i = c])²`, in [0, 2].

    Example:
      >>> brier([[0.0, 0.0]], [0])
      0.5

    Reference:
      Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950, equation 2.
    """
    log_p, label_N, _ = _predicted(logits, labels)
    return float(np.square(np.exp(log_p) - np.eye(log_p.shape[1])[label_N]).sum(1).mean())


def calibration_report(logits: Any, labels: Any, *, bins: int = 15) -> dict[str, float]:
    """All of it at once.

    Args, Raises: as `ece`.

    Returns:
      `nll`, `brier`, `ece`, `adaptive_ece`, `classwise_ece`, `max_ce` (the largest gap), `mean_ce` (the mean gap of
      the bins that are not empty), and with g_b = conf_b - acc_b `over` = Σ n_b/N conf_b max(g_b, 0) and
      `under` = Σ n_b/N conf_b max(-g_b, 0).

    Example:
      >>> round(calibration_report([[0.0, 0.0], [0.0, 0.0]], [0, 0])["under"], 3)
      0.25

    Reference:
      Thulasidasan et al., "On Mixup Training: Improved Calibration and Predictive Uncertainty for Deep Neural
      Networks", 2019, section 3 (over); Noh et al., "RankMixup", 2023 (under).
    """
    log_p, _, right = _predicted(logits, labels)
    found = bins_of(np.exp(log_p.max(1)), right, bins=bins)
    signed, weight = found.confidence - found.accuracy, found.counts * found.confidence / found.total
    return {
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": found.error,
        "adaptive_ece": adaptive_ece(logits, labels, bins=bins),
        "classwise_ece": classwise_ece(logits, labels, bins=bins),
        "max_ce": float(found.gap.max()),
        "mean_ce": float(found.gap.sum() / (found.counts > 0).sum()),
        "over": float((weight * np.maximum(signed, 0)).sum()),
        "under": float((weight * np.maximum(-signed, 0)).sum()),
    }


def temperature_scale(logits: Any, labels: Any, *, criterion: Literal["nll", "ece"] = "nll", bins: int = 15) -> float:
    """The temperature T that makes `softmax(logits / T)` fit held-out labels best; accuracy stays as it is.

    "nll" is convex in 1/T and solved by a bounded line search over T in [0.01, 100]; "ece" takes the first best of
    0.1, 0.2, …, 10.

    Args:
      logits: of held-out examples, [N, C].
      labels: int [N].
      criterion: what to minimise.
      bins: b, for "ece".

    Returns:
      T; divide other logits of the same network by it.

    Raises:
      InputError: as `ece`; an unknown criterion.

    Example:
      >>> round(temperature_scale([[2.0, 0.0]] * 3 + [[0.0, 2.0]], [0, 0, 0, 0]), 2)
      1.82

    Reference:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, section 4.2; criterion "ece":
      Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", 2020.
    """
    z_NC = log_probabilities(logits)  # a shift of the logits, which T leaves a shift
    if criterion == "ece":
        return GRID[int(np.argmin([ece(z_NC / t, labels, bins=bins) for t in GRID]))]
    if criterion != "nll":
        raise InputError(f"criterion must be 'nll' or 'ece'; got {criterion!r}.")
    label_N = labels_of("labels", labels, len(z_NC), z_NC.shape[1])
    found = minimize_scalar(
        lambda log_t: nll(z_NC / np.exp(log_t), label_N),
        bounds=(np.log(0.01), np.log(100.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def reliability(
    logits: Any, labels: Any, *, bins: int = 15, title: str = "", caption: str = ""
) -> dict[str, np.ndarray]:
    """The bins of `ece` as a picture for the report: accuracy over confidence.

    Args, Raises: as `ece`; title and caption of the picture.

    Returns:
      An artifact of kind `reliability`.

    Example:
      >>> str(reliability([[1.0, 0.0]], [0])["kind"])
      'reliability'

    Reference:
      Niculescu-Mizil, Caruana, "Predicting Good Probabilities with Supervised Learning", 2005, section 4.
    """
    log_p, _, right = _predicted(logits, labels)
    found = bins_of(np.exp(log_p.max(1)), right, bins=bins)
    return artifacts.reliability(
        found.counts, found.confidence, found.accuracy, error=found.error, title=title, caption=caption
    )
