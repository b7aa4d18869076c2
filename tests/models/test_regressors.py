"""Networks for tables and series: the original code's numbers, PyTorch's initialisation, halves that make the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mixcon import models
from mixcon.errors import InputError
from mixcon.mixers.plan import Plan, mix

SMALL = dict(series=2, window=24, kernel=5, conv=3, hidden=4, skip=3, skip_hidden=2, highway=5)


@pytest.fixture(scope="module")
def golden():
    with np.load("tests/golden/cmixup.npz") as arrays:
        return {
            key[3:]: arrays[key].astype(np.float32) for key in arrays.files if key[:3] == "c2/" and "kind" not in key
        }


@pytest.fixture(scope="module")
def lstnet():
    return models.functional(models.lstnet(**SMALL, dropout=0.2))


@pytest.fixture(scope="module")
def params(golden):
    """The original's parameters in our layout."""
    p = {key[5:]: value for key, value in golden.items() if key.startswith("in/p/")}

    def linear(weight, bias):
        return {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}

    def gru(name):
        return {
            ours: linear(p[f"{name}.weight_{theirs}_l0"], p[f"{name}.bias_{theirs}_l0"])
            for ours, theirs in (("input", "ih"), ("recurrent", "hh"))
        }

    return {
        "conv": linear(p["conv1.weight"].reshape(3, -1), p["conv1.bias"]),  # [conv, 1, kernel, m]
        "gru": gru("GRU1"),
        "gru_skip": gru("GRUskip"),
        "out": linear(p["linear1.weight"], p["linear1.bias"]),
        "highway": linear(p["highway.weight"], p["highway.bias"]),
    }


def test_lstnet_predicts_what_the_original_does(golden, lstnet, params):
    pred, _ = lstnet.apply(params, {}, golden["in/x1"])
    assert_allclose(pred, golden["out/pred"], rtol=1e-5, atol=1e-6)


def test_mixing_every_array_of_the_features_is_the_originals_manifold_mixup(golden, lstnet, params):
    rows = jnp.concatenate([golden["in/x1"], golden["in/x2"]])
    plan = Plan(jnp.array([2, 3]), jnp.full(2, golden["in/lam"]))
    features, _ = lstnet.apply(params, {}, rows, method="features")
    mixed = jax.tree.map(lambda v: mix(plan, v[:2], v), features)
    pred, _ = lstnet.apply(params, {}, mixed, method="head")
    assert_allclose(pred, golden["out/pred_manifold"], rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key_and_differs_between_rows(golden, lstnet, params):
    twice = jnp.concatenate([golden["in/x1"], golden["in/x1"]])
    features, _ = lstnet.apply(params, {}, twice, key=jax.random.key(0), train=True, method="features")
    assert (features["conv"][:2] != features["conv"][2:]).any()
    assert_array_equal(features["recent"][:2], features["recent"][2:])
    with pytest.raises(InputError, match="key"):
        lstnet.apply(params, {}, twice, train=True)


@pytest.mark.parametrize("name", ["mlp", "lstnet"])
def test_parameters_start_as_pytorch_starts_them(name):
    """Uniform on ±1/√fan_in, of weights and biases alike; a recurrent layer's fan-in is its width."""
    wide = dict(SMALL, conv=40, hidden=30, skip_hidden=20)
    make = models.mlp(in_features=9, hidden=60) if name == "mlp" else models.lstnet(**wide)
    params, extra = jax.jit(models.functional(make).init)(jax.random.key(1))
    assert not extra
    fan_in = (
        {"layers/0": 9, "layers/1": 60, "layers/2": 60}
        if name == "mlp"
        else {"conv": 10, "gru/": 30, "gru_skip/": 20, "out": 30 + 60, "highway": 5}
    )
    for path, leaf in models.flatten(jax.device_get(params)).items():
        bound = next(n for prefix, n in fan_in.items() if path.startswith(prefix)) ** -0.5
        largest = float(np.abs(leaf).max())
        assert largest <= bound * (1 + 1e-6), path
        if leaf.size > 50:
            assert largest > 0.9 * bound, path
            assert_allclose(leaf.std(), bound / 3**0.5, rtol=0.2)


def test_the_halves_of_an_mlp_make_the_whole():
    model = models.functional(models.build(dict(name="mlp", in_features=3, hidden=8, depth=3)))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    features, _ = model.apply(params, {}, x, method="features")
    by_hand = x @ params["layers"]["0"]["kernel"] + params["layers"]["0"]["bias"][None, :]
    assert_allclose(features, np.where(by_hand > 0, by_hand, 0.1 * by_hand), rtol=1e-5, atol=1e-7)
    pred, _ = model.apply(params, {}, features, method="head")
    assert_array_equal(pred, model.apply(params, {}, x)[0])
    assert pred.shape == (4, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.mlp(in_features=0), "at least 1"),
        (lambda: models.lstnet(series=2, window=20), "window=20"),
        (lambda: models.lstnet(series=2, dropout=1.0), "dropout"),
        (lambda: models.lstnet(series=0), "at least 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
