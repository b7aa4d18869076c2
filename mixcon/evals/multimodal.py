"""What a classifier of several modalities is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from sklearn import metrics

from mixcon.errors import InputError


def label_scores(logits_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Accuracy and F1 of the likeliest class; of two classes F1 of class 1 and the area under its ROC curve.

    Args:
      logits_NK: scores before the softmax.
      labels_N: classes in 0 .. K-1.

    Returns:
      `accuracy`, `f1_weighted`, `f1_macro` (means over the classes, by their frequency or evenly); of two classes also
      `f1` and, when both are there, `auc` from the softmax. All in [0, 1].

    Raises:
      InputError: shapes that do not fit, labels outside the classes, logits that are not finite.

    Example:
      >>> label_scores(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))["f1"]
      1.0
    """
    logits, labels = np.asarray(logits_NK, np.float64), np.asarray(labels_N)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise InputError(f"want logits [N, K] and labels [N]; got {logits.shape} and {labels.shape}.")
    classes = logits.shape[1]
    if not 0 <= labels.min() <= labels.max() < classes or not np.isfinite(logits).all():
        raise InputError(f"labels must lie in 0 .. {classes - 1} and logits must be finite.")
    found = logits.argmax(axis=1)
    scores = {"accuracy": metrics.accuracy_score(labels, found)}
    for average in ("weighted", "macro"):
        scores[f"f1_{average}"] = metrics.f1_score(labels, found, average=average, zero_division=0)
    if classes == 2:
        scores["f1"] = metrics.f1_score(labels, found, zero_division=0)
        if len(np.unique(labels)) == 2:
            scores["auc"] = metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0])  # the softmax is monotone in it
    return {name: float(value) for name, value in scores.items()}


def multimodal_report(logits: Mapping[str, np.ndarray], labels_N: np.ndarray) -> Iterator[tuple[str, float]]:
    """Scores of the "fusion" logits, and the accuracy of every other head as `<head>/accuracy`."""
    yield from label_scores(logits["fusion"], labels_N).items()
    for name, rows in logits.items():
        if name != "fusion":
            yield f"{name}/accuracy", float((rows.argmax(axis=1) == labels_N).mean())
