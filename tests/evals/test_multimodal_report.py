"""Scores of classifiers, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.data import eval_batches
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.evals.embed import embedder
from mixcon.evals.multimodal import label_scores, multimodal_report
from mixcon.train.mesh import make_mesh


def f1(labels, found, c):
    true = sum(1 for y, p in zip(labels, found, strict=True) if y == p == c)
    return 2 * true / max(sum(y == c for y in labels) + sum(p == c for p in found), 1)


def test_scores_of_two_classes():
    margin, labels = np.array([3.0, -1.0, 0.5, -2.0, 1.0, -0.5]), np.array([1, 1, 0, 0, 1, 0])
    logits = np.stack([np.full(6, 0.7), margin + 0.7], 1)
    found = (margin > 0).astype(int)
    scores = label_scores(logits, labels)
    ranked = [(a > b) for a in margin[labels == 1] for b in margin[labels == 0]]
    each = [f1(labels, found, c) for c in (0, 1)]
    expected = {
        "accuracy": np.mean(found == labels),
        "f1": each[1],
        "f1_macro": np.mean(each),
        "f1_weighted": np.dot(each, [0.5, 0.5]),
        "auc": np.mean(ranked),
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12, err_msg=name)


def test_scores_of_several_classes_and_heads():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    found = logits.argmax(1)
    each, shares = [f1(labels, found, c) for c in range(3)], np.bincount(labels, minlength=3) / 20
    scores = dict(multimodal_report({"fusion": logits, "text": np.eye(3)[labels]}, labels))
    np.testing.assert_allclose(scores["f1_macro"], np.mean(each))
    np.testing.assert_allclose(scores["f1_weighted"], np.dot(each, shares))
    assert scores["text/accuracy"] == 1.0
    assert "auc" not in scores
    assert "auc" not in label_scores(logits[:, :2], np.ones(20, int))  # no curve without both classes


def test_scores_refuse_what_they_cannot_count():
    with pytest.raises(InputError, match=r"logits \[N, K\]"):
        label_scores(np.ones((3, 2)), np.ones(2, int))
    with pytest.raises(InputError, match=r"labels must lie in 0 \.\. 1"):
        label_scores(np.ones((1, 2)), np.array([2]))
    with pytest.raises(InputError, match="finite"):
        label_scores(np.array([[np.nan, 1.0]]), np.array([1]))


def test_an_embedder_is_compiled_once_and_follows_its_parameters():
    traced = []

    def encode(scale, batch):
        traced.append(1)
        return {"x": scale * batch["x"]}

    run = embedder(encode)
    batches = eval_batches(Arrays({"x": np.arange(5, dtype=np.float32)}), batch_size=2)
    with jax.set_mesh(make_mesh(data=2, devices=jax.devices()[:2])):
        first, second = run(jnp.float32(1), batches), run(jnp.float32(3), batches)
    np.testing.assert_array_equal(first["x"], np.arange(5))
    np.testing.assert_array_equal(second["x"], 3 * np.arange(5))
    np.testing.assert_array_equal(second["index"], np.arange(5))
    assert len(traced) == 1
