"""Penalties of negatives: golden vectors, automatic differentiation, limits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import geometry

with np.load(Path(__file__).parents[1] / "golden" / "contrastive-behaviour.npz") as _file:
    GOLDEN = {key: _file[key] for key in _file.files}


@pytest.fixture
def case():
    x = {key: GOLDEN[f"c0/in/{key}"] for key in ("features", "bank", "index", "top_k", "alpha")}
    return x["features"] @ x["bank"].T, x["index"], float(GOLDEN["c0/in/temperature"]), x


def without(similarity, own):
    negatives = similarity.copy()
    negatives[np.arange(len(own)), own] = -np.inf
    return negatives


def test_gradients_and_penalties_are_the_golden_ones(case):
    similarity, own, temperature, _ = case
    gradient = geometry.similarity_gradient(similarity, own, temperature=temperature)
    np.testing.assert_allclose(gradient, GOLDEN["c0/out/grad_similarity"], rtol=1e-9, atol=1e-14)
    penalty = geometry.relative_penalty(without(similarity, own), temperature=temperature)
    np.testing.assert_allclose(penalty, GOLDEN["c0/out/relative_penalty"], rtol=1e-9, atol=1e-14)
    entropy = geometry.penalty_entropy(without(similarity, own), temperature=temperature)
    np.testing.assert_allclose(entropy, GOLDEN["c0/out/entropy_per_anchor"], rtol=1e-9)
    for name in ("zero", "inf"):
        limit = {"zero": geometry.zero_temperature_limit, "inf": geometry.infinite_temperature_limit}[name]
        got = limit(similarity, own, temperature=temperature)
        np.testing.assert_allclose(got, GOLDEN[f"c0/out/limit_{name}_per_anchor"], rtol=1e-9, atol=1e-12)


def test_kept_negatives_and_their_gradient_are_the_golden_ones(case):
    similarity, own, temperature, x = case
    kept = geometry.hard_negatives(similarity, own, top_k=int(x["top_k"]))
    np.testing.assert_array_equal(kept, GOLDEN["c0/out/hard_mask"])
    quantile = geometry.hard_negatives(similarity, own, alpha=float(x["alpha"]))
    np.testing.assert_array_equal(quantile, GOLDEN["c0/out/hard_quantile_mask"])
    positive = np.eye(similarity.shape[1], dtype=bool)[own]
    seen = np.where(kept | positive, similarity, -np.inf)
    gradient = geometry.similarity_gradient(seen, own, temperature=temperature)
    np.testing.assert_allclose(gradient, GOLDEN["c0/out/grad_similarity_hard_topk"], rtol=1e-9, atol=1e-14)


def test_neither_the_positive_nor_what_is_left_out_is_a_hard_negative():
    nothing = -np.inf
    rows = [[0.9, nothing, 0.5, nothing, 0.7], [0.1, 0.4, nothing, nothing, 0.9]]
    assert geometry.hard_negatives(rows, [0, 4], top_k=2).tolist() == [
        [False, False, True, False, True],
        [True, True, False, False, False],
    ]
    with pytest.raises(InputError, match=r"1\.\.2"):
        geometry.hard_negatives(rows, [0, 4], top_k=3)
    assert geometry.hard_negatives([[0.9, nothing, 0.5, nothing]], [0], alpha=1.0).tolist() == [[0, 0, 1, 0]]


def test_a_share_of_each_anchors_negatives_keeps_all_that_tie_at_its_end():
    similarity = np.array([[1.0, 0.5, 0.5, 0.5, 0.1, 0.0], [0.3, 1.0, 0.2, -np.inf, -np.inf, 0.9]])
    kept = geometry.hard_negatives(similarity, [0, 1], alpha=0.4)  # 2 of 5, 1 of 3
    assert kept.tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert geometry.hard_negatives(similarity, [0, 1], alpha=0.01).sum(1).tolist() == [3, 1], "one, and its equals"
    assert geometry.hard_negatives(similarity, [0, 1], top_k=2).sum(1).tolist() == [2, 2]


def test_the_penalty_curve_is_the_golden_one():
    negatives = GOLDEN["c2/in/negative_similarities"]
    for i, temperature in enumerate(GOLDEN["c2/in/temperatures"]):
        penalty = geometry.relative_penalty(negatives, temperature=float(temperature))
        np.testing.assert_allclose(penalty, GOLDEN["c2/out/relative_penalty"][i], rtol=1e-9)
        entropy = geometry.penalty_entropy(negatives, temperature=float(temperature))
        assert entropy == pytest.approx(GOLDEN["c2/out/entropy"][i], rel=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
def test_the_closed_form_is_what_autodiff_gives(temperature):
    rng = np.random.default_rng(0)
    similarity, own = rng.uniform(-1, 1, (5, 9)), np.asarray([3, 0, 8, 8, 1])

    def loss(s):
        rows = jnp.arange(5)
        return jnp.sum(jax.nn.logsumexp(s / temperature, axis=1) - s[rows, own] / temperature)

    with jax.enable_x64(True):
        want = jax.grad(loss)(jnp.asarray(similarity))
    got = geometry.similarity_gradient(similarity, own, temperature=temperature)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-12)  # all negatives together push as the positive pulls


def test_entropy_rises_with_the_temperature_up_to_that_of_equal_negatives():
    negatives = np.random.default_rng(1).uniform(-1, 1, (6, 20))
    entropies = [geometry.penalty_entropy(negatives, temperature=t) for t in (1e-4, 0.07, 0.3, 1.0, 100.0)]
    assert (np.diff(entropies, axis=0) > 0).all()
    np.testing.assert_allclose(entropies[0], 0, atol=1e-6)
    np.testing.assert_allclose(entropies[-1], np.log(20), atol=1e-3)
    np.testing.assert_allclose(geometry.penalty_entropy(np.full(20, 0.4), temperature=0.01), np.log(20))


def test_the_loss_tends_to_its_limits():
    rng = np.random.default_rng(2)
    similarity, own = rng.uniform(-1, 1, (5, 9)), np.arange(5)

    def loss(t):
        top = similarity.max(1)
        return np.log(np.exp((similarity - top[:, None]) / t).sum(1)) + (top - similarity[np.arange(5), own]) / t

    cold, hot = 1e-3, 1e3
    limit = geometry.zero_temperature_limit(similarity, own, temperature=cold)
    np.testing.assert_allclose(loss(cold) * cold, limit * cold, atol=1e-2)
    limit = geometry.infinite_temperature_limit(similarity, own, temperature=hot)
    np.testing.assert_allclose(hot * (loss(hot) - np.log(9)), hot * (limit - np.log(9)), atol=1e-2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: geometry.relative_penalty([0.1], temperature=0.0), "above 0"),
        (lambda: geometry.relative_penalty([], temperature=0.1), "at least one"),
        (lambda: geometry.relative_penalty([np.nan], temperature=0.1), "numbers"),
        (lambda: geometry.similarity_gradient([[0.1]], [0], temperature=0.1), "at least one negative"),
        (lambda: geometry.similarity_gradient([[-np.inf, 0.1]], [0], temperature=0.1), "positive of an anchor"),
        (lambda: geometry.similarity_gradient([[0.1, 0.2]], [2], temperature=0.1), "positive_index"),
        (lambda: geometry.hard_negatives([[0.1, 0.2]], [0], top_k=2), "number of negatives"),
        (lambda: geometry.hard_negatives([[0.1, 0.2]], [0], alpha=1.5), "alpha"),
        (lambda: geometry.hard_negatives([[0.1, 0.2]], [0]), "pass one of"),
        (lambda: geometry.hard_negatives([[0.1, 0.2]], [0], top_k=1, alpha=0.5), "pass one of"),
        (lambda: geometry.hard_negatives([[0.1, -np.inf]], [0], alpha=0.5), "no negative"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(InputError, match=words):
        call()
