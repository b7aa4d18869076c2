"""How embeddings of a graph's nodes are judged: a linear probe on few labels, and k-means against the classes.

Shapes: N nodes, D features, C classes, R repeats.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixcon.errors import InputError
from mixcon.evals.tiles import labels_of, matrix, on_one_device


def linear_probe_f1_auc(
    x: Any,
    labels: Any,
    *,
    train: Sequence[int] | np.ndarray,
    val: Sequence[int] | np.ndarray,
    test: Sequence[int] | np.ndarray,
    classes: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    steps: int = 200,
    repeats: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Logistic regression by full-batch Adam from `repeats` starts, each read off where it validates best.

    In each repeat: test Macro-F1 at the step of the best validation Macro-F1 (the first of equals), test Micro-F1 at
    that of the best validation Micro-F1, and the area under the ROC curve (one against the rest, macro) at the latter.
    Only the start differs between repeats: weights Xavier-uniform, biases 0.

    Args:
      x: [N, D], frozen, used as they are.
      labels: [N] in 0..C-1.
      train, val, test: node indices.
      classes: C.
      learning_rate, weight_decay: of Adam; the decay is added to the gradient.
      steps: updates. repeats: R. seed: of the starts.

    Returns:
      {"macro_f1", "micro_f1", "auc"}: means over repeats, and their standard deviations as "..._std".

    Raises:
      InputError: indices outside the nodes, a class that the test nodes lack (its curve is not defined), and as for
        the other probes.

    Example:
      >>> found = linear_probe_f1_auc(z, labels, train=t, val=v, test=s, classes=3, learning_rate=0.03)

    Reference: Velickovic et al., "Deep Graph Infomax", 2019, section 4.2, with early stopping on validation.
    """
    from sklearn.metrics import roc_auc_score

    x_ND = matrix("x", x)
    label_N = labels_of("labels", labels, len(x_ND), classes).astype(np.int32)
    if steps < 1 or repeats < 1:
        raise InputError(f"steps={steps} and repeats={repeats} must be at least 1.")
    sides = {"train": np.asarray(train), "val": np.asarray(val), "test": np.asarray(test)}
    for name, side in sides.items():
        if side.ndim != 1 or not side.size or side.min() < 0 or side.max() >= len(x_ND):
            raise InputError(f"{name} must be node indices in range({len(x_ND)}).")
    lacking = sorted(set(range(classes)) - set(label_N[sides["test"]].tolist()))
    if lacking:
        raise InputError(f"test has no node of class {lacking[0]}: its ROC curve is not defined.")
    data = {name: (x_ND[side], label_N[side]) for name, side in sides.items()}
    with on_one_device():
        keys = jax.random.split(jax.random.key(seed), repeats)
        macro, micro, logits = jax.device_get(
            _probe(
                keys,
                jax.device_put(data),
                jax.device_put(np.float32(learning_rate)),
                jax.device_put(np.float32(weight_decay)),
                classes=classes,
                steps=steps,
            )
        )
    scores = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    scores /= scores.sum(-1, keepdims=True)
    truth = data["test"][1]
    if classes == 2:
        auc = [roc_auc_score(truth, each[:, 1]) for each in scores]
    else:
        auc = [roc_auc_score(truth, each, multi_class="ovr", average="macro") for each in scores]
    found = {"macro_f1": macro, "micro_f1": micro, "auc": np.asarray(auc)}
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {f"{name}_std": float(np.std(values)) for name, values in found.items()}


@partial(jax.jit, static_argnames=("classes", "steps"))
def _probe(keys, data, learning_rate, weight_decay, *, classes, steps):
    """Macro-F1 [R], Micro-F1 [R] and test logits [R, test nodes, C]."""
    x, y = data["train"]
    adam = optax.scale_by_adam()
    bound = np.sqrt(6 / (x.shape[1] + classes))

    def logits(params, side):
        return data[side][0] @ params["weight"] + params["bias"][None]

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, "train"), y).mean()

    def one(key):
        weight = jax.random.uniform(key, (x.shape[1], classes), jnp.float32, -bound, bound)
        params = {"weight": weight, "bias": jnp.zeros(classes)}
        none = jnp.float32(-1)
        best = {"val_macro": none, "macro": none, "val_micro": none, "micro": none, "logits": logits(params, "test")}

        def step(carry, _):
            params, moments, best = carry
            grads = jax.tree.map(lambda g, p: g + weight_decay * p, jax.grad(loss)(params), params)
            updates, moments = adam.update(grads, moments)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
            on_val, on_test = logits(params, "val"), logits(params, "test")
            val_macro, val_micro = f1(on_val.argmax(1), data["val"][1], classes)
            macro, micro = f1(on_test.argmax(1), data["test"][1], classes)
            higher = {"macro": val_macro > best["val_macro"], "micro": val_micro > best["val_micro"]}
            now = {"val_macro": val_macro, "macro": macro, "val_micro": val_micro, "micro": micro, "logits": on_test}
            which = {name: higher["macro" if name.endswith("macro") else "micro"] for name in now}
            best = {name: jnp.where(which[name], now[name], best[name]) for name in now}
            return (params, moments, best), None

        best = jax.lax.scan(step, (params, adam.init(params), best), None, length=steps)[0][2]
        return best["macro"], best["micro"], best["logits"]

    return jax.vmap(one)(keys)


def f1(predicted: jax.Array, truth: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Macro-F1 over the classes that are there or predicted, and Micro-F1 (which is accuracy), of labels [N].

    Example:
      >>> macro, micro = f1(logits.argmax(1), labels, classes=3)
    """
    known = jnp.arange(classes, dtype=truth.dtype)[:, None]
    given, true = predicted[None].astype(truth.dtype) == known, truth[None] == known
    hits = (given & true).sum(1).astype(jnp.float32)
    total = given.sum(1).astype(jnp.float32) + true.sum(1).astype(jnp.float32)
    there = (total > 0).astype(jnp.float32)
    macro = (2 * hits / jnp.maximum(total, 1)).sum() / there.sum()
    return macro, hits.sum() / len(truth)


def cluster_nmi_ari(x: Any, labels: Any, *, classes: int, runs: int = 10, seed: int = 0) -> dict[str, float]:
    """K-means with as many clusters as classes, `runs` times: mean agreement with the classes.

    Args:
      x: [N, D]. labels: [N] in 0..C-1. classes: C. runs: times, with seeds `seed`, `seed + 1`, ...

    Returns:
      {"nmi" (arithmetic), "ari"}.

    Raises:
      InputError: as for the probes.

    Example:
      >>> cluster_nmi_ari([[0.0], [0.1], [5.0], [5.1]], [0, 0, 1, 1], classes=2)
      {'nmi': 1.0, 'ari': 1.0}
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    x_ND = matrix("x", x)
    label_N = labels_of("labels", labels, len(x_ND), classes)
    if not 2 <= classes <= len(x_ND) or runs < 1:
        raise InputError(f"classes={classes} must lie in [2, {len(x_ND)}] and runs={runs} be at least 1.")
    found = [KMeans(classes, n_init=10, random_state=seed + run).fit_predict(x_ND) for run in range(runs)]
    return {
        "nmi": float(np.mean([normalized_mutual_info_score(label_N, each) for each in found])),
        "ari": float(np.mean([adjusted_rand_score(label_N, each) for each in found])),
    }
