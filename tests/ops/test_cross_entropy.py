"""Values of the cross-entropies against plain loops over pairs, written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import ops
from mixcon.ops import pairs


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def loop_cross_entropy(logits, target, weight, form, normalize):
    """One loss for each row of a matrix of logits, in float64, one pair at a time."""
    losses = []
    for L, T, D in zip(logits, target, weight, strict=True):
        mass = sum(T)
        if mass == 0:
            losses.append(0.0)
            continue
        denominator = sum(d * np.exp(l) for d, l in zip(D, L, strict=True) if d > 0)
        if form == "out":
            loss = sum(t * (np.log(denominator) - l) for t, l in zip(T, L, strict=True))
            losses.append(loss / mass if normalize else loss)
        else:
            inner = sum(t * np.exp(l) for t, l in zip(T, L, strict=True))
            losses.append(np.log(denominator) - np.log(inner / mass if normalize else inner))
    return np.array(losses)


RNG = np.random.default_rng(0)
B, N, D = 7, 7, 5
Q, K = unit(RNG, B, D), unit(RNG, N, D)
Y = np.array([0, 1, 0, 2, 1, 0, 3])
PARTNER = np.array([3, 1, 0, 6, 5, 2, 4])
LAM = RNG.uniform(size=B).astype(np.float32)

TARGETS = {
    "identity": (pairs.identity(), np.eye(B)),
    "offset": (pairs.identity(2), np.eye(B, k=2)),
    "labels": (pairs.same_label(Y), Y[:, None] == Y),
    "labels_not_self": (pairs.same_label(Y) & pairs.not_self(), (Y[:, None] == Y) & ~np.eye(B, dtype=bool)),
    "mixed": (pairs.mixed(PARTNER, LAM), LAM[:, None] * np.eye(B) + (1 - LAM)[:, None] * np.eye(B)[PARTNER]),
    "smoothed": (pairs.identity() * 0.9 + pairs.everything() * (0.1 / N), 0.9 * np.eye(B) + 0.1 / N),
}


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_both_directions_match_plain_loops(target, form, normalize):
    positives, dense = TARGETS[target]
    logits = 4.0 * Q.astype(np.float64) @ K.T.astype(np.float64) + 0.3
    ones = np.ones((B, N))
    ce = ops.contrastive_cross_entropy(
        Q, K, scale=4.0, bias=0.3, positives=positives, form=form, normalize_targets=normalize, symmetric=True,
        impl="dense",
    )  # fmt: skip
    np.testing.assert_allclose(
        ce.rows.loss, loop_cross_entropy(logits, dense, ones, form, normalize), rtol=2e-5, atol=1e-6
    )
    expected = loop_cross_entropy(logits.T, dense.T, ones, form, normalize)
    np.testing.assert_allclose(ce.cols.loss, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ce.rows.mass, dense.sum(1), rtol=1e-6)
    assert ce.rows.without_positive == (dense.sum(1) == 0).sum()


def test_clip_probability_is_the_softmax_of_the_diagonal():
    ce = ops.contrastive_cross_entropy(Q, K, scale=3.0, symmetric=True)
    np.testing.assert_allclose(ce.rows.probability, np.diag(jax.nn.softmax(3.0 * Q @ K.T, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(ce.cols.probability, np.diag(jax.nn.softmax(3.0 * Q @ K.T, axis=0)), rtol=1e-5)


def test_per_positive_denominators_match_plain_loops():
    loss = ops.per_positive_cross_entropy(Q, K, positives=pairs.same_label(Y), scale=3.0).loss
    logits = 3.0 * Q.astype(np.float64) @ K.T
    for i in range(B):
        negatives = sum(np.exp(logits[i, j]) for j in range(N) if Y[j] != Y[i])
        terms = [np.log(np.exp(logits[i, j]) + negatives) - logits[i, j] for j in range(N) if Y[j] == Y[i]]
        np.testing.assert_allclose(loss[i], np.mean(terms), rtol=1e-5)


def test_bank_and_row_keys_are_more_columns():
    bank, own = unit(RNG, 4, D), unit(RNG, B, 3, D)
    ce = ops.contrastive_cross_entropy(Q, K, scale=5.0, banks=[ops.Bank(jnp.asarray(bank))], row_keys=own)
    for i in range(B):
        logits = 5.0 * np.concatenate([K, bank, own[i]]).astype(np.float64) @ Q[i]
        np.testing.assert_allclose(ce.rows.loss[i], np.log(np.exp(logits).sum()) - logits[i], rtol=1e-5)
