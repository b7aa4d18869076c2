"""SSMix and the losses of token mixers against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers as m

KEY = jax.random.key(5)


def spans(saliency, valid, count):
    """Starts of the least and the most salient window of `count` valid tokens."""
    sums = {s: saliency[s : s + count].sum() for s in range(len(saliency) - count + 1) if valid[s : s + count].all()}
    return min(sums, key=sums.get), max(sums, key=sums.get)


@pytest.mark.parametrize("share", [0.1, 0.45])
def test_ssmix_moves_the_most_salient_span_over_the_least_salient_one(share):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 99, (6, 11))
    saliency = rng.random((6, 11)).astype(np.float32)
    length = np.array([11, 5, 8, 3, 10, 7])
    valid = np.arange(11) < length[:, None]
    valid[:, 0] = False  # a class token, which must stay
    length = length - 1
    partner = np.array([3, 0, 5, 4, 1, 2])
    plan = m.ssmix(
        KEY, jnp.asarray(ids), saliency=jnp.asarray(saliency), valid=jnp.asarray(valid), share=share,
        partner=jnp.asarray(partner),
    )  # fmt: skip
    expected = ids.copy()
    for i, j in enumerate(partner):
        count = max(min(int(share * length[i]), length[j]), 1)
        low, _ = spans(saliency[i], valid[i], count)
        _, high = spans(saliency[j], valid[j], count)
        expected[i, low : low + count] = ids[j, high : high + count]
        np.testing.assert_allclose(plan.weight[i], 1 - count / length[i], rtol=1e-6)
    np.testing.assert_array_equal(m.mix(plan, jnp.asarray(ids)), expected)
    table = jax.random.normal(KEY, (99, 4))
    np.testing.assert_allclose(m.mix(plan, table[ids]), table[expected], rtol=1e-6)


def test_smmix_loss():
    rng = np.random.default_rng(1)
    mixed, clean = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    tokens = jnp.asarray(rng.normal(size=(4, 16, 3)), jnp.float32)
    labels = jnp.array([0, 2, 1, 1])
    plan = m.smmix(KEY, jnp.zeros((4, 8, 8, 3)), attention=jnp.asarray(rng.random((4, 16)), jnp.float32))
    value, grad = jax.value_and_grad(m.smmix_loss, argnums=(1, 2, 3))(plan, mixed, tokens, clean, labels)

    def log_softmax(z):
        return z - np.log(np.exp(z).sum())

    total = 0.0
    z, p, t = (np.asarray(v, np.float64) for v in (mixed, clean, tokens))
    for i in range(4):
        j, w = int(plan.partner[i]), float(plan.weight[i])
        kept = np.asarray(plan.mask)[i, ::2, ::2, 0].reshape(-1) > 0.5
        total -= w * log_softmax(z[i])[labels[i]] + (1 - w) * log_softmax(z[i])[labels[j]]
        total -= 0.5 * log_softmax(t[i][kept].mean(axis=0))[labels[i]]
        total -= 0.5 * log_softmax(t[i][~kept].mean(axis=0))[labels[j]]
        wanted = log_softmax(w * p[i] + (1 - w) * p[j])
        total += (np.exp(wanted) * (wanted - log_softmax(z[i]))).sum()
    np.testing.assert_allclose(value, total / 4, rtol=1e-5)
    assert np.abs(grad[0]).min() > 0
    assert np.abs(grad[1]).max() > 0
    np.testing.assert_array_equal(grad[2], 0)
