"""The probe on few labels and the clustering score, against scikit-learn and plain loops."""

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from mixcon.errors import InputError
from mixcon.evals.node_probe import cluster_nmi_ari, f1, linear_probe_f1_auc

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
X = (np.eye(3)[LABELS] + 0.8 * RNG.normal(size=(60, 3))).astype(np.float32)
SPLIT = {"train": np.arange(15), "val": np.arange(15, 35), "test": np.arange(35, 60)}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's counter promotes int to float."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_f1_is_scikit_learns():
    truth, guess = RNG.integers(0, 3, 40), RNG.integers(0, 2, 40)
    macro, micro = f1(guess.astype(np.int32), truth.astype(np.int32), 4)  # one class neither there nor predicted
    assert float(macro) == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    assert float(micro) == pytest.approx(f1_score(truth, guess, average="micro"))


def probe_by_hand(weight, steps, lr, decay):
    """One repeat, in numpy and float64, from given weights."""
    x, y = X[SPLIT["train"]].astype(float), np.eye(3)[LABELS[SPLIT["train"]]]
    theta = np.concatenate([weight, np.zeros((1, 3))])
    rows = np.c_[x, np.ones(len(x))]
    m, v, runs = np.zeros_like(theta), np.zeros_like(theta), []
    for t in range(1, steps + 1):
        p = np.exp(rows @ theta)
        g = rows.T @ (p / p.sum(1, keepdims=True) - y) / len(x) + decay * theta
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        logits = {s: X[SPLIT[s]] @ theta[:3] + theta[3] for s in ("val", "test")}
        scores = {
            (s, kind): f1_score(LABELS[SPLIT[s]], z.argmax(1), average=kind)
            for s, z in logits.items()
            for kind in ("macro", "micro")
        }
        runs.append((scores, logits["test"]))
    best = {k: max(range(steps), key=lambda i, k=k: (runs[i][0]["val", k], -i)) for k in ("macro", "micro")}
    z = runs[best["micro"]][1]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    auc = roc_auc_score(LABELS[SPLIT["test"]], p, multi_class="ovr")
    return runs[best["macro"]][0]["test", "macro"], runs[best["micro"]][0]["test", "micro"], auc


def test_the_probe_is_the_loop():
    found = linear_probe_f1_auc(
        X, LABELS, **SPLIT, classes=3, learning_rate=0.03, weight_decay=0.01, steps=40, repeats=2, seed=5
    )
    starts = [jax.random.uniform(k, (3, 3), minval=-1.0, maxval=1.0) for k in jax.random.split(jax.random.key(5), 2)]
    want = np.array([probe_by_hand(np.asarray(start, float), 40, 0.03, 0.01) for start in starts])
    for i, name in enumerate(("macro_f1", "micro_f1", "auc")):
        assert found[name] == pytest.approx(want[:, i].mean(), abs=1e-5), name
        assert found[f"{name}_std"] == pytest.approx(want[:, i].std(), abs=1e-5), name


def test_clusters_that_are_the_classes_score_one_and_noise_scores_little():
    assert cluster_nmi_ari(np.eye(3)[LABELS], LABELS, classes=3, runs=2) == {"nmi": 1.0, "ari": 1.0}
    assert cluster_nmi_ari(RNG.normal(size=(60, 3)), LABELS, classes=3, runs=2)["ari"] < 0.2


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"val must be node indices in range\(60\)"):
        linear_probe_f1_auc(X, LABELS, **(SPLIT | {"val": [60]}), classes=3, learning_rate=0.1)
    with pytest.raises(InputError, match="test has no node of class 1"):
        linear_probe_f1_auc(X, LABELS, **(SPLIT | {"test": [36, 38]}), classes=3, learning_rate=0.1)
    with pytest.raises(InputError, match="repeats=0"):
        linear_probe_f1_auc(X, LABELS, **SPLIT, classes=3, learning_rate=0.1, repeats=0)
    with pytest.raises(InputError, match="runs=0"):
        cluster_nmi_ari(X, LABELS, classes=3, runs=0)
