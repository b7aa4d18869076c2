"""Heads for weak and strong views: shapes, norms, sharing, dropout on strong views alone; prototypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.data.features import drop_features, feature_noise
from mixcon.errors import InputError
from mixcon.models import Prototypes, functional, mlp_head, multiview_tower, relu_mlp, text_transformer

HEADS = {
    "weak": {"out_features": 3, "depth": 1, "use_bias": False},
    "strong": {"out_features": 4, "depth": 2, "hidden": 8, "batch_norm": True, "last_norm": "none"},
    "projector": {"out_features": 5, "depth": 2, "hidden": 8, "batch_norm": True, "last_norm": "fixed"},
    "predictor": {"out_features": 5, "depth": 2, "hidden": 6, "batch_norm": True, "last_norm": "none"},
}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def inputs():
    weak, strong = np.random.default_rng(0).normal(size=(6, 7)), np.random.default_rng(1).normal(size=(6, 2, 7))
    return jnp.asarray(weak, jnp.float32), jnp.asarray(strong, jnp.float32)


def test_every_head_sees_its_views(inputs):
    model = functional(multiview_tower(relu_mlp((7, 9)), HEADS))
    params, extra = model.init(KEY)
    out, after = jax.jit(lambda p, e, w, s: model.apply(p, e, w, s, train=True))(params, extra, *inputs)
    shapes = {name: x.shape for name, x in out.items()}
    assert shapes == {
        "weak": (6, 3),
        "projected": (6, 5),
        "predicted": (6, 5),
        "strong": (6, 2, 4),
        "strong_projected": (6, 2, 5),
        "strong_predicted": (6, 2, 5),
    }
    for name in ("weak", "strong"):
        np.testing.assert_allclose(jnp.linalg.norm(out[name], axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(out["projected"].mean(0), 0, atol=1e-5)  # the last norm, without scale and bias
    assert "scale" not in params["projector"]["norms"].get("1", {})
    assert {"kernel", "bias"} == params["predictor"]["layers"]["1"].keys()
    assert params["predictor"]["layers"]["0"].keys() == {"kernel"}
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    found, same = model.apply(params, extra, inputs[0], method="embed")
    assert {name: x.shape for name, x in found.items()} == {"weak": (6, 3), "strong": (6, 4)}
    assert same is extra


def test_without_a_strong_head_the_weak_one_serves(inputs):
    model = functional(multiview_tower(relu_mlp((7, 9)), {"weak": HEADS["weak"]}))
    out, _ = model.apply(*model.init(KEY), inputs[0], inputs[1])
    again, _ = model.apply(*model.init(KEY), inputs[1][:, 1])
    assert out.keys() == {"weak", "strong"}
    np.testing.assert_allclose(out["strong"][:, 1], again["weak"], rtol=1e-5, atol=1e-6)


def test_dropout_is_on_strong_views_alone():
    tower = text_transformer(20, width=8, depth=2, heads=2, context_length=4, pool="mean", residual_dropout=0.5)
    model = functional(multiview_tower(tower, {"weak": HEADS["weak"]}, regularize_weak=False))
    params, extra = model.init(KEY)
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
    run = jax.jit(lambda key: model.apply(params, extra, tokens, tokens[:, None], train=True, key=key)[0])
    one, other = run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(one["weak"], other["weak"])
    assert np.abs(one["strong"] - other["strong"]).max() > 1e-3


def test_prototypes_are_directions(inputs):
    model = functional(lambda rngs: Prototypes(7, 5, rngs))
    params, extra = model.init(KEY)
    rows = inputs[0] / jnp.linalg.norm(inputs[0], axis=1, keepdims=True)
    scores = model.apply(params, extra, rows)[0]
    kernel = np.asarray(params["kernel"])
    np.testing.assert_allclose(scores, rows @ (kernel / np.linalg.norm(kernel, axis=0)), rtol=1e-5, atol=1e-6)
    longer = jax.tree.map(lambda x: 3 * x, params)
    np.testing.assert_allclose(model.apply(longer, extra, rows)[0], scores, rtol=1e-5, atol=1e-6)


def test_one_example_has_no_statistics():
    model = functional(mlp_head(3, 2, hidden=4, batch_norm=True))
    with pytest.raises(InputError, match="a batch of one example"):
        model.apply(*model.init(KEY), jnp.ones((1, 3)), train=True)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "need one that is called 'weak'"),
        ({"weak": {"depth": 1}}, "needs out_features"),
        ({"weak": HEADS["weak"], "predictor": HEADS["predictor"]}, "sits on a projector"),
        ({"weak": HEADS["weak"], "other": HEADS["weak"]}, "head='other' is unknown"),
        ({"weak": HEADS["weak"] | {"last_norm": "no"}}, "last_norm of the weak head='no'"),
    ],
)
def test_bad_heads(heads, message):
    with pytest.raises(InputError, match=message):
        multiview_tower(relu_mlp((7, 9)), heads)


def test_rows_of_features():
    rows = jnp.ones((400, 50))
    noisy, dropped = feature_noise(KEY, rows, std=0.3), drop_features(KEY, rows, rate=0.2)
    assert abs(float((noisy - rows).std()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 0.8) < 0.01
    assert set(np.unique(dropped)) == {0.0, 1.0}
    for bad in (lambda: feature_noise(KEY, rows, std=-1.0), lambda: drop_features(KEY, rows, rate=2.0)):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(InputError, match="rows must be float"):
        feature_noise(KEY, rows[None])
