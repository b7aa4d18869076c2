"""Linear probes: how much a linear map can read off frozen features.

Every `fit_*` returns the same thing, a `LinearProbe` on raw features: standardisation is folded into its weights.
Shapes: N rows, D features, C classes or targets. scikit-learn is imported where it is used, so that
`import mixcon.evals` stays cheap.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixcon.errors import InputError
from mixcon.evals.tiles import labels_of, matrix, on_one_device
from mixcon.evals.zero_shot import accuracy

ALPHAS = tuple(10.0**e for e in range(-3, 7))


class LinearProbe(NamedTuple):
    """`scores = x weight + bias`."""

    weight: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]
    regularization: float  # what was used or chosen: ridge's alpha, logistic regression's l2

    def scores(self, x: Any) -> np.ndarray:
        """Scores or regression values [N, C] of features [N, D]."""
        return matrix("x", x, columns=len(self.weight)) @ self.weight + self.bias


def _scaling(x_ND: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    if not standardize:
        return np.zeros(x_ND.shape[1], np.float32), np.ones(x_ND.shape[1], np.float32)
    deviation = x_ND.std(0)
    return x_ND.mean(0), np.where(deviation > 1e-8, deviation, 1)  # a constant feature stays constant: zero


def _folded(weight_DC: np.ndarray, bias_C: np.ndarray, mean: np.ndarray, scale: np.ndarray, reg: float) -> LinearProbe:
    raw = weight_DC / scale[:, None]
    return LinearProbe(raw.astype(np.float32), (bias_C - mean @ raw).astype(np.float32), float(reg))


def fit_ridge(x: Any, y: Any, *, alphas: float | Sequence[float] = ALPHAS, standardize: bool = True) -> LinearProbe:
    """Ridge regression in closed form, its strength chosen by leave-one-out where several are given.

    `min_W ‖xW + b − y‖² + alpha ‖W‖²`, the bias not penalised. For classification pass one-hot or ±1 targets, or let
    `linear_probe` do so.

    Args:
      x: [N, D].
      y: Targets [N] or [N, C].
      alphas: One strength, or candidates for exact leave-one-out.
      standardize: Centre features and scale them to unit variance first.

    Returns:
      A probe with C outputs.

    Raises:
      InputError: Shapes that do not fit, non-finite values, alpha not above 0.

    Example:
      >>> probe = fit_ridge([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0], alphas=1e-6)
      >>> probe.weight.round(3).tolist()
      [[2.0]]

    Reference:
      Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970.
    """
    from sklearn.linear_model import Ridge, RidgeCV

    x_ND = matrix("x", x)
    y_NC = np.asarray(jax.device_get(y), np.float64)
    y_NC = matrix("y", y_NC[:, None] if y_NC.ndim == 1 else y_NC)
    if len(y_NC) != len(x_ND):
        raise InputError(f"x has {len(x_ND)} rows and y {len(y_NC)}.")
    candidates = np.atleast_1d(np.asarray(alphas, np.float64))
    if not (candidates.size and (candidates > 0).all()):
        raise InputError(f"alphas must be above 0; got {alphas}.")
    mean, scale = _scaling(x_ND, standardize)
    data = ((x_ND - mean) / scale).astype(np.float64), y_NC.astype(np.float64)
    if candidates.size == 1 or len(x_ND) < 3:
        model, alpha = Ridge(alpha=candidates[0]).fit(*data), candidates[0]
    else:
        model = RidgeCV(alphas=candidates).fit(*data)
        alpha = model.alpha_
    weight_DC = np.atleast_2d(model.coef_).T
    return _folded(weight_DC, np.atleast_1d(model.intercept_), mean, scale, alpha)


def fit_logistic(
    x: Any, labels: Any, *, classes: int, l2: float = 1e-4, standardize: bool = True, max_iter: int = 1000,
    balanced: bool = False,
) -> LinearProbe:
    """Multinomial logistic regression by L-BFGS, to convergence.

    `min_W mean_i CE(x_i W + b, y_i) + (l2 / 2) ‖W‖²`: `l2` does not depend on the number of examples.

    Args:
      x: [N, D].
      labels: [N] integers in 0..classes-1.
      classes: C; a class without examples gets a score below all others.
      l2: Strength, above 0.
      standardize: See `fit_ridge`.
      max_iter: Iterations at most.
      balanced: Weight examples so that every class counts alike, however many it has.

    Returns:
      A probe with C outputs.

    Raises:
      InputError: Fewer than two classes among the labels, shapes that do not fit, l2 not above 0.

    Example:
      >>> probe = fit_logistic([[-1.0], [1.0]], [0, 1], classes=2)
      >>> probe.scores([[-2.0], [2.0]]).argmax(1).tolist()
      [0, 1]
    """
    from sklearn.linear_model import LogisticRegression

    x_ND = matrix("x", x)
    label_N = labels_of("labels", labels, len(x_ND), classes)
    present = np.unique(label_N)
    if len(present) < 2:
        raise InputError("Logistic regression needs examples of at least two classes.")
    if not l2 > 0:
        raise InputError(f"l2 must be above 0; got {l2}.")
    mean, scale = _scaling(x_ND, standardize)
    model = LogisticRegression(
        C=1 / (l2 * len(x_ND)), max_iter=max_iter, class_weight="balanced" if balanced else None
    )
    model.fit(((x_ND - mean) / scale).astype(np.float64), label_N)
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn keeps one row, for the second class
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight_DC, bias_C = np.zeros((x_ND.shape[1], classes)), np.full(classes, -1e9)
    weight_DC[:, present], bias_C[present] = coef.T, intercept
    return _folded(weight_DC, bias_C, mean, scale, l2)


@partial(jax.jit, static_argnames=("momentum", "weight_decay"))
def _sgd_epoch(params, trace, x_ND, label_N, rows_Sb, rate_S, *, momentum, weight_decay):
    optimizer = optax.trace(momentum)

    def loss(params, rows):
        logits = x_ND[rows] @ params["weight"] + params["bias"][None]
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, label_N[rows]).mean()
        return ce + 0.5 * weight_decay * jnp.sum(params["weight"] ** 2)

    def step(carry, chosen):
        params, trace = carry
        rows, rate = chosen
        updates, trace = optimizer.update(jax.grad(loss)(params, rows), trace)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), trace), None

    return jax.lax.scan(step, (params, trace), (rows_Sb, rate_S))[0]


def fit_sgd(
    x: Any, labels: Any, *, classes: int, learning_rate: float = 0.1, epochs: int = 100, batch: int = 256,
    momentum: float = 0.9, weight_decay: float = 0.0, standardize: bool = True, seed: int = 0,
    at: Sequence[int] = (), factor: float = 0.2,
) -> LinearProbe:
    """Softmax regression by SGD with momentum and falling rate: the "linear evaluation" of self-supervised papers.

    Args:
      x: [N, D].
      labels: [N] integers in 0..classes-1.
      classes: C.
      learning_rate: Initial rate, at this batch size.
      epochs: Passes over the data; the rows beyond the last whole batch of an epoch wait for the next shuffle.
      batch: Rows per step; reduced to N for small data.
      momentum: Nesterov is not used.
      weight_decay: On the weights, not on the bias.
      standardize: See `fit_ridge`; takes the place of the batch normalisation some papers put before the layer.
      seed: Of the order of examples.
      at: Epochs from which the rate is multiplied by `factor` once more; () takes a cosine down to zero instead.
      factor: See `at`.

    Returns:
      A probe with C outputs.

    Raises:
      InputError: Shapes or labels that do not fit; `at` outside the epochs.

    Example:
      >>> probe = fit_sgd([[-1.0], [1.0]], [0, 1], classes=2, epochs=10)
      >>> probe.scores([[-2.0], [2.0]]).argmax(1).tolist()
      [0, 1]

    Reference:
      He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, section 4.1.
    """
    x_ND = matrix("x", x)
    label_N = labels_of("labels", labels, len(x_ND), classes).astype(np.int32)
    if any(not 0 < epoch < epochs for epoch in at):
        raise InputError(f"at={tuple(at)} must be epochs between 0 and epochs={epochs}.")
    batch = min(batch, len(x_ND))
    mean, scale = _scaling(x_ND, standardize)
    steps = len(x_ND) // batch
    # The schedule is an input of the compiled epoch, so that another rate or length does not compile it again.
    rate_ES = 0.5 * learning_rate * (1 + np.cos(np.pi * np.linspace(0, 1, epochs * steps, endpoint=False)))
    if len(at):
        passed_E = (np.arange(epochs)[:, None] >= np.asarray(at)[None]).sum(1)
        rate_ES = np.repeat(learning_rate * factor**passed_E, steps)
    rate_ES = rate_ES.reshape(epochs, steps).astype(np.float32)
    zeros = {"weight": np.zeros((x_ND.shape[1], classes), np.float32), "bias": np.zeros(classes, np.float32)}
    with on_one_device():
        params, trace = jax.device_put(zeros), optax.TraceState(jax.device_put(zeros))
        features, targets = jax.device_put(((x_ND - mean) / scale, label_N))
        shuffle = np.random.default_rng(seed)
        for rate_S in rate_ES:
            rows_Sb = shuffle.permutation(len(x_ND))[: steps * batch].reshape(steps, batch).astype(np.int32)
            order = jax.device_put((rows_Sb, rate_S))
            params, trace = _sgd_epoch(params, trace, features, targets, *order,
                                       momentum=momentum, weight_decay=weight_decay)
        trained = jax.device_get(params)
    return _folded(trained["weight"], trained["bias"], mean, scale, weight_decay)


def r2(predicted: Any, target: Any) -> float:
    """Coefficient of determination `1 − Σ(y−ŷ)² / Σ(y−ȳ)²`, the mean over outputs; 0 is the mean's, 1 is perfect.

    Raises:
      InputError: Shapes differ, or a target is constant.

    Example:
      >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
      1.0
    """
    y, p = (np.asarray(jax.device_get(v), np.float64) for v in (target, predicted))
    y, p = (v[:, None] if v.ndim == 1 else v for v in (y, p))
    if y.shape != p.shape:
        raise InputError(f"predicted and target differ in shape: {p.shape} and {y.shape}.")
    total = np.sum((y - y.mean(0)) ** 2, axis=0)
    if not (total > 0).all():
        raise InputError("R² is undefined where a target does not vary.")
    return float(np.mean(1 - np.sum((y - p) ** 2, axis=0) / total))


def linear_probe(
    train: Any, train_labels: Any, test: Any, test_labels: Any, *, classes: int | None = None,
    method: str | Callable[..., LinearProbe] = "logistic",
    standardize: bool = True, balanced: bool = False, l2: float = 1e-4,
) -> dict[str, float]:
    """Test accuracy of a linear classifier on frozen features.

    Args:
      train: [N, D].
      train_labels: [N].
      test: [M, D].
      test_labels: [M].
      method: "ridge" (closed form on one-hot targets, leave-one-out strength), "logistic" (L-BFGS) or "sgd"; or a
        function `(train, train_labels, classes=C) -> LinearProbe`, such as `partial(fit_sgd, learning_rate=30.0)`.
      classes: C; None takes the largest label + 1.
      standardize: See `fit_ridge`.
      balanced: Every class counts alike; for "logistic" only.
      l2: Strength; of "logistic" only.

    Returns:
      See `mixcon.evals.accuracy`.

    Raises:
      InputError: Unknown method, or as the `fit_*`.

    Example:
      >>> linear_probe([[-1.0], [1.0]], [0, 1], [[3.0]], [1])["top1"]
      1.0
    """
    if classes is None:
        classes = int(max(np.max(train_labels), np.max(test_labels))) + 1
    if balanced and method != "logistic":
        raise InputError(f"balanced=True is for method='logistic', not {method!r}.")
    if method == "ridge":
        one_hot = np.eye(classes)[labels_of("train_labels", train_labels, np.shape(train)[0], classes)]
        probe = fit_ridge(train, one_hot, standardize=standardize)
    elif method == "logistic":
        settings: dict[str, Any] = {"standardize": standardize, "balanced": balanced, "l2": l2}
        probe = fit_logistic(train, train_labels, classes=classes, **settings)
    elif method == "sgd":
        probe = fit_sgd(train, train_labels, classes=classes, standardize=standardize)
    elif callable(method):
        probe = method(train, train_labels, classes=classes)
    else:
        raise InputError(f"method must be 'ridge', 'logistic' or 'sgd'; got {method!r}.")
    ranked = np.argsort(-probe.scores(test), axis=1, kind="stable")[:, : min(5, classes)]
    return accuracy(ranked, test_labels, classes=classes)
