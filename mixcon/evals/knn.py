"""Classification by nearest neighbours in embedding space.

Shapes: N reference rows, Q queries, D features, C classes, k neighbours.
"""

from typing import Any

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import labels_of, normalized, top_k
from mixcon.evals.zero_shot import accuracy


def knn_predict(
    train: Any, train_labels: Any, query: Any, *, k: int = 200, temperature: float | None = 0.07, classes: int,
    exclude_self: bool = False,
) -> np.ndarray:
    """Classes in order of the votes of the k nearest (cosine) reference rows.

    `votes_c = Σ_{i among the k nearest} [y_i = c] exp(s_i / temperature)`; with `temperature=None` every neighbour has
    one vote. Equal votes go to the lower class.

    Args:
      train: [N, D]; normalised here.
      train_labels: [N] integers in 0..classes-1.
      query: [Q, D]; normalised here.
      k: Neighbours, at most N.
      temperature: > 0, or None for a plain majority.
      classes: C.
      exclude_self: Leave-one-out: `query` is `train`, and a row does not vote for itself.

    Returns:
      Classes [Q, min(5, C)] int64, best first.

    Raises:
      InputError: k above the number of candidates, temperature not above 0, labels or shapes that do not fit.

    Example:
      >>> knn_predict([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1]], k=1, classes=2)[0, 0].item()
      0

    Reference:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, section 3.4; used
      with k = 20 and temperature 0.07 by Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
      2021.
    """
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature must be above 0, or None for a plain majority; got {temperature}.")
    train_ND = normalized(train)
    label_N = labels_of("train_labels", train_labels, len(train_ND), classes)
    scores_Qk, index_Qk = top_k(normalized(query), train_ND, k, exclude_self=exclude_self)
    if temperature is None:
        weight_Qk = np.ones(scores_Qk.shape)
    else:  # the largest weight is 1: nothing overflows at a small temperature
        weight_Qk = np.exp((scores_Qk - scores_Qk[:, :1]).astype(np.float64) / temperature)
    votes_QC = np.zeros((len(scores_Qk), classes))
    np.add.at(votes_QC, (np.arange(len(scores_Qk))[:, None], label_N[index_Qk]), weight_Qk)
    return np.argsort(-votes_QC, axis=1, kind="stable")[:, : min(5, classes)]


def knn(
    train: Any, train_labels: Any, test: Any, test_labels: Any, *, k: int = 200, temperature: float | None = 0.07,
    classes: int | None = None,
) -> dict[str, float]:
    """Accuracy of `knn_predict` on a test set; k is reduced to the number of reference rows if they are fewer.

    Args:
      train: [N, D].
      train_labels: [N].
      test: [Q, D].
      test_labels: [Q].
      k, temperature: See `knn_predict`.
      classes: C; None takes the largest label + 1.

    Returns:
      See `mixcon.evals.accuracy`.

    Example:
      >>> knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1]], [0], k=1)["top1"]
      1.0
    """
    if classes is None:
        classes = int(max(np.max(train_labels), np.max(test_labels))) + 1
    k = min(k, np.shape(train)[0])
    ranked = knn_predict(train, train_labels, test, k=k, temperature=temperature, classes=classes)
    return accuracy(ranked, test_labels, classes=classes)
