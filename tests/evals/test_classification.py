"""Zero-shot, nearest neighbours and probes against loops, golden vectors and real digits."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mixcon.errors import InputError
from mixcon.evals import (
    accuracy,
    confusion_matrix,
    fit_logistic,
    fit_ridge,
    fit_sgd,
    knn,
    knn_predict,
    linear_probe,
    predict,
    prompts,
    r2,
    zero_shot,
    zero_shot_weights,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "evals.npz")


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    return x[:900], y[:900], x[900:1400], y[900:1400]


def test_golden_zero_shot_weights_and_logits():
    text, image = GOLDEN["align/c4/in/text_embeddings"], GOLDEN["align/c4/in/image_features"]
    weights = zero_shot_weights(text)
    np.testing.assert_allclose(weights, GOLDEN["align/c4/out/weights"], rtol=1e-5, atol=1e-6)
    logits = GOLDEN["align/c4/out/logits"]
    np.testing.assert_allclose(100 * image @ weights, logits, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(predict(image, weights, k=3), np.argsort(-logits, axis=1)[:, :3])
    labels = np.array([0, 1, 2, 3, 4, 0, 1])
    assert zero_shot(image, text, labels)["top1"] == pytest.approx(np.mean(logits.argmax(1) == labels))


def test_each_template_counts_the_same_whatever_its_length():
    text = np.array([[[10.0, 0.0], [0.0, 0.1]]])
    np.testing.assert_allclose(zero_shot_weights(text)[:, 0], [2**-0.5, 2**-0.5], rtol=1e-6)


def test_prompts_leave_braces_of_the_name_alone():
    assert prompts(["{x}", "b"], ["a {}!"]) == ["a {x}!", "a b!"]
    for bad in ([], ["no slot"], ["{} {}"]):
        with pytest.raises(InputError):
            prompts(["a"], bad)


def test_accuracy_and_confusion_match_a_loop():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 7, 50)
    ranked = np.array([rng.permutation(7)[:5] for _ in range(50)])
    got = accuracy(ranked, labels, classes=7)
    assert got["top1"] == np.mean([r[0] == t for r, t in zip(ranked, labels, strict=True)])
    assert got["top5"] == np.mean([t in r for r, t in zip(ranked, labels, strict=True)])
    assert (got["top1/chance"], got["top5/chance"]) == (1 / 7, 5 / 7)
    per_class = [np.mean(ranked[labels == c, 0] == c) for c in np.unique(labels)]
    assert got["mean_per_class"] == pytest.approx(np.mean(per_class))
    counts = np.zeros((7, 7), int)
    for r, t in zip(ranked, labels, strict=True):
        counts[t, r[0]] += 1
    np.testing.assert_array_equal(confusion_matrix(ranked[:, 0], labels, classes=7), counts)


def test_zero_shot_refuses_what_has_no_direction():
    with pytest.raises(InputError, match="zero or non-finite"):
        zero_shot_weights(np.zeros((2, 1, 3)))
    with pytest.raises(InputError, match="cancel"):
        zero_shot_weights([[[1.0, 0.0], [-1.0, 0.0]]])
    with pytest.raises(InputError, match="templates"):
        zero_shot_weights(np.eye(3))
    with pytest.raises(InputError, match="labels"):
        accuracy([0, 1], [0, 5], classes=2)


@pytest.mark.parametrize("temperature", [0.07, 0.001, None])
def test_knn_votes_match_a_loop(temperature):
    rng = np.random.default_rng(2)
    train, labels, query = rng.normal(size=(40, 5)), rng.integers(0, 4, 40), rng.normal(size=(13, 5))
    got = knn_predict(train, labels, query, k=7, temperature=temperature, classes=4)
    for i, q in enumerate(query):
        cosine = np.array([q @ t / np.linalg.norm(q) / np.linalg.norm(t) for t in train])
        votes = np.zeros(4)
        for j in np.argsort(-cosine)[:7]:
            votes[labels[j]] += 1 if temperature is None else np.exp((cosine[j] - cosine.max()) / temperature)
        assert votes[got[i, 0]] == pytest.approx(votes.max(), rel=1e-4)
        if temperature is None:
            assert got[i, 0] == votes.argmax()  # equal votes: the lower class


def test_knn_leave_one_out_does_not_see_itself():
    x = np.array([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.1, 0.99]])
    alone = np.array([0, 1, 2, 3])
    assert (knn_predict(x, alone, x, k=1, classes=4)[:, 0] == alone).all()
    assert (knn_predict(x, alone, x, k=1, classes=4, exclude_self=True)[:, 0] != alone).all()
    with pytest.raises(InputError, match="neighbours"):
        knn_predict(x, alone, x, k=4, classes=4, exclude_self=True)
    with pytest.raises(InputError, match="temperature"):
        knn_predict(x, alone, x, k=1, temperature=0.0, classes=4)


def test_digits_by_neighbours_and_every_probe(digits):
    assert knn(*digits, k=10)["top1"] > 0.95
    for method in ("ridge", "logistic", "sgd"):
        got = linear_probe(*digits, method=method)
        assert got["top1"] > 0.91, method
        assert got["top1/chance"] == pytest.approx(0.1)


def test_standardisation_is_folded_into_the_weights(digits):
    x, y, test, _ = digits
    plain, scaled = fit_ridge(x, y * 1.0, alphas=3.0), fit_ridge(x * 7 + 5, y * 1.0, alphas=3.0)
    np.testing.assert_allclose(plain.scores(test), scaled.scores(test * 7 + 5), atol=2e-3)
    values = plain.scores(test)[:, 0]
    mean, deviation = x.mean(0), np.where(x.std(0) > 1e-8, x.std(0), 1)
    z = ((x - mean) / deviation).astype(np.float64)
    solution = np.linalg.solve(z.T @ z + 3 * np.eye(64), z.T @ (y - y.mean()))
    np.testing.assert_allclose(values, (test - mean) / deviation @ solution + y.mean(), atol=1e-3)


def test_ridge_chooses_its_strength_by_leave_one_out():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 20))
    y = x[:, 0] + rng.normal(size=30)
    candidates = (0.1, 10.0, 100.0)

    def left_out(alpha):
        errors = []
        for i in range(30):
            keep = np.arange(30) != i
            probe = fit_ridge(x[keep], y[keep], alphas=alpha, standardize=False)
            errors.append((probe.scores(x[i : i + 1])[0, 0] - y[i]) ** 2)
        return np.mean(errors)

    chosen = fit_ridge(x, y, alphas=candidates, standardize=False).regularization
    assert chosen == candidates[int(np.argmin([left_out(a) for a in candidates]))]


def test_logistic_reaches_the_stationary_point_and_leaves_absent_classes_out():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 3)), rng.choice([0, 2, 4], 60)
    probe = fit_logistic(x, y, classes=5, l2=0.1, standardize=False)
    p = np.exp(probe.scores(x) - probe.scores(x).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = x.T @ (p - np.eye(5)[y]) / 60 + 0.1 * probe.weight
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    assert set(probe.scores(rng.normal(size=(200, 3))).argmax(1)) <= {0, 2, 4}
    two = fit_logistic(x, (x[:, 0] > 0).astype(int), classes=2)
    assert np.mean(two.scores(x).argmax(1) == (x[:, 0] > 0)) > 0.95
    with pytest.raises(InputError, match="two classes"):
        fit_logistic(x, np.zeros(60, int), classes=2)


def test_sgd_repeats_exactly_and_runs_under_a_transfer_guard(digits):
    x, y, _, _ = digits
    with jax.transfer_guard("disallow"):
        first, second = (fit_sgd(x[:200], y[:200], classes=10, epochs=3, batch=64) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    other = fit_sgd(x[:200], y[:200], classes=10, epochs=3, batch=64, seed=1)
    assert not np.array_equal(first.weight, other.weight)


def test_sgd_whose_rate_falls_at_epochs_is_a_plain_loop(digits):
    x, y = (part[:60] for part in digits[:2])
    probe = fit_sgd(x, y, classes=10, learning_rate=0.5, epochs=5, batch=60, standardize=False, at=(2, 4), factor=0.2)
    weight, bias, trace = np.zeros((x.shape[1], 10)), np.zeros(10), [0.0, 0.0]
    for rate in (0.5, 0.5, 0.1, 0.1, 0.02):
        p = np.exp(x @ weight + bias - (x @ weight + bias).max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - np.eye(10)[y]) / 60
        trace = [0.9 * old + new for old, new in zip(trace, (x.T @ error, error.sum(0)), strict=True)]
        weight, bias = weight - rate * trace[0], bias - rate * trace[1]
    np.testing.assert_allclose(probe.weight, weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-3, atol=1e-5)
    as_method = linear_probe(x, y, x, y, method=functools.partial(fit_sgd, epochs=5, batch=60, at=(2, 4)))
    assert as_method["top1"] > 0.5
    with pytest.raises(InputError, match="at="):
        fit_sgd(x, y, classes=10, epochs=5, at=(7,))


def test_r2():
    rng = np.random.default_rng(5)
    y = rng.normal(size=20)
    assert r2(np.full(20, y.mean()), y) == pytest.approx(0)
    p = y + 0.1 * rng.normal(size=20)
    assert r2(p, y) == pytest.approx(1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))
    for bad in ((y, y[:-1]), (y, np.ones(20))):
        with pytest.raises(InputError):
            r2(*bad)
    with pytest.raises(InputError, match="method"):
        linear_probe(np.eye(2), [0, 1], np.eye(2), [0, 1], method="svm")
