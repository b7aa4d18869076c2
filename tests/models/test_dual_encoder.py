"""Two towers in one space, the logit scale, and models described by plain values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mixcon.errors import InputError
from mixcon.models import (
    LogitScale,
    build,
    clamp_logit_scale,
    count,
    dual_encoder,
    flatten,
    functional,
    l2_normalize,
    mlp_head,
    modified_resnet,
    read_logit_scale,
    text_transformer,
    vit,
)

SPEC = {
    "name": "dual_encoder",
    "embed_dim": 12,
    "image": {"name": "vit", "image_size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2},
    "text": {
        "name": "text_transformer",
        "vocab_size": 30,
        "context_length": 6,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "eos_id": 2,
    },
}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
IDS = RNG.integers(3, 30, size=(4, 6)).astype(np.int32)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_call_gives_unit_rows_and_the_scale(drawn, projection):
    model, params, extra = drawn(build(SPEC | {"image_projection": projection}))
    run = jax.jit(model.apply, static_argnames="method")
    out, _ = run(params, extra, IMAGES, IDS)
    assert set(out) == {"image", "text", "logit_scale", "logit_bias"}
    for side, inputs in (("image", IMAGES), ("text", IDS)):
        assert out[side].shape == (4, 12)
        assert out[side].dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(out[side], axis=1), 1.0, rtol=1e-5)
        encoded, _ = run(params, extra, inputs, method=f"encode_{side}")
        np.testing.assert_allclose(encoded, out[side], rtol=0, atol=1e-6)
    np.testing.assert_allclose(out["logit_scale"], np.exp(params["logit_scale"]["log"]), rtol=1e-6)
    assert out["logit_bias"] is None


@pytest.mark.parametrize(
    ("options", "scale", "bias"),
    [
        ({}, 1 / 0.07, None),
        ({"init": 10.0, "bias": -10.0}, 10.0, -10.0),
        ({"init": 1.0, "parametrization": "temperature"}, 1.0, None),
        ({"init": 20.0, "parametrization": "temperature"}, 20.0, None),
    ],
)
def test_logit_scale_starts_where_it_is_told(options, scale, bias):
    model = functional(lambda rngs: LogitScale(**options))
    params, extra = model.init(jax.random.key(0))
    (got_scale, got_bias), _ = model.apply(params, extra, method=lambda m, train, key: m())
    assert float(got_scale) == pytest.approx(scale, rel=1e-6)
    assert got_bias == bias
    assert read_logit_scale(params) == (got_scale, got_bias)
    assert {leaf.shape for leaf in jax.tree.leaves(params)} == {()}


def test_clamp_is_on_the_parameter_and_on_nothing_else():
    params = {
        "a": {"logit_scale": {"log": jnp.asarray(5.0), "bias": jnp.asarray(-10.0)}},
        "logit_scale": {"temperature": jnp.asarray(0.001)},
        "log": jnp.asarray(9.0),
    }
    clamped = flatten(clamp_logit_scale(params))
    assert float(clamped["a/logit_scale/log"]) == pytest.approx(np.log(100.0))
    assert float(clamped["logit_scale/temperature"]) == pytest.approx(0.01)
    assert (float(clamped["a/logit_scale/bias"]), float(clamped["log"])) == (-10.0, 9.0)
    low = clamp_logit_scale({"logit_scale": {"log": jnp.asarray(-1.0)}})
    assert float(low["logit_scale"]["log"]) == 0.0
    free = clamp_logit_scale(params | {"b": {"logit_scale": {"log": jnp.asarray(-9.0)}}}, low=0.0, high=float("inf"))
    assert float(free["a"]["logit_scale"]["log"]) == 5.0
    assert float(free["b"]["logit_scale"]["log"]) == -9.0
    with pytest.raises(InputError, match="0 <= low <= high"):
        clamp_logit_scale(params, low=2.0, high=1.0)


def test_zero_features_normalise_to_zero_with_finite_gradient():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(l2_normalize(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: l2_normalize(x)[:, 0].sum())(x)
    assert np.isfinite(gradient).all()
    assert l2_normalize(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_mlp_head_equals_plain_numpy_and_keeps_batch_statistics():
    model = functional(mlp_head(3, 2, hidden=5, depth=3, batch_norm=True))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    out, new = jax.jit(model.apply, static_argnames="train")(params, extra, x, train=True)
    y = x
    for i in range(3):
        y = y @ np.asarray(params["layers"][str(i)]["kernel"])
        np.testing.assert_allclose(new["norms"][str(i)]["mean"], 0.1 * y.mean(0), rtol=1e-4, atol=1e-6)
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        y = np.maximum(y, 0) if i < 2 else y
    np.testing.assert_allclose(out, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_projected_mlp_equals_plain_numpy(batch_norm):
    spec = {"name": "relu_mlp", "widths": (6, 5, 4), "batch_norm": batch_norm, "init": "uniform"}
    model = functional(build({"name": "projected", "embed_dim": 2, "depth": 1, "init": "uniform", "backbone": spec}))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = RNG.normal(size=(8, 2, 3)).astype(np.float32)
    out, new = jax.jit(model.apply, static_argnames="train")(params, extra, x, train=True)
    y = x.reshape(8, 6)
    for i, fan_in in enumerate((6, 5)):
        layer = params["backbone"]["layers"][str(i)]
        assert np.abs(layer["kernel"]).max() <= fan_in**-0.5
        y = y @ np.asarray(layer["kernel"]) + (0 if batch_norm else np.asarray(layer["bias"]))
        if batch_norm:
            np.testing.assert_allclose(new["backbone"]["norms"][str(i)]["mean"], 0.1 * y.mean(0), rtol=1e-3, atol=1e-5)
            y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        y = np.maximum(y, 0)
    np.testing.assert_allclose(out["features"], y, rtol=1e-3, atol=1e-4)
    head = params["head"]["layers"]["0"]
    embedding = y @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(out["embedding"], embedding, rtol=1e-3, atol=1e-4)
    assert np.abs(head["bias"]).max() > 0


@pytest.mark.parametrize(  # the published CLIP models
    ("image", "width", "embed_dim", "expected"),
    [
        ({"size": "B/32"}, 512, 512, 151_277_313),
        ({"size": "B/16"}, 512, 512, 149_620_737),
        ({"size": "L/14"}, 768, 768, 427_616_513),
        ("RN50", 512, 1024, 102_007_137),
        pytest.param("RN101", 512, 512, 119_688_033, marks=pytest.mark.slow),
    ],
)
def test_clip_models_have_the_published_number_of_parameters(image, width, embed_dim, expected):
    text = text_transformer(49408, width=width, depth=12, pool="argmax", scan_layers=True)
    if isinstance(image, str):
        make = dual_encoder(modified_resnet(image), text, embed_dim, image_projection="none")
    else:
        make = dual_encoder(vit(**image, pre_norm=True, patch_bias=False, scan_layers=True), text, embed_dim)
    assert count(jax.eval_shape(functional(make).init, jax.random.key(0))[0]) == expected


def test_siglip_base_has_the_published_number_of_parameters():
    spec = {
        "name": "dual_encoder",
        "embed_dim": 768,
        "image_projection": "none",
        "text_projection": "linear_bias",
        "logit_bias": -10.0,
        "scan_layers": True,
        "image": {"name": "vit", "size": "B/16", "pool": "map"},
        "text": {
            "name": "text_transformer",
            "size": "B",
            "vocab_size": 32000,
            "context_length": 64,
            "causal": False,
            "pool": "last",
        },
    }
    assert count(jax.eval_shape(functional(build(spec)).init, jax.random.key(0))[0]) == 203_155_970


def test_a_config_dict_describes_a_model_and_hands_its_dtype_down():
    from_config = functional(build(ConfigDict(SPEC | {"dtype": "bfloat16", "remat": True})))
    direct = functional(build(SPEC))
    trees = [jax.eval_shape(model.init, jax.random.key(0)) for model in (from_config, direct)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    abstract = jax.eval_shape(
        lambda p, e: from_config.apply(p, e, IMAGES, method=lambda m, x, train, key: m.image(x))[0], *trees[0]
    )
    assert abstract.dtype == jnp.bfloat16
    own = SPEC | {"dtype": "bfloat16", "image": SPEC["image"] | {"dtype": "float32"}}
    model = functional(build(own))
    abstract = jax.eval_shape(
        lambda p, e: model.apply(p, e, IMAGES, method=lambda m, x, train, key: m.image(x))[0], *trees[0]
    )
    assert abstract.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dual_encodr"}, "model.name='dual_encodr' is no model; did you mean dual_encoder"),
        ({"image": {"name": "vitt"}}, "model.image.name='vitt' is no model; did you mean vit"),
        ({"image": {"name": "vit", "pach": 4}}, "model.image.pach is no argument of vit; did you mean patch"),
        ({"embed_dims": 3}, "model.embed_dims is no argument of dual_encoder; did you mean embed_dim"),
        ({"text": {"name": "text_transformer", "width": 8}}, "model.text .text_transformer. needs vocab_size"),
        ({"image_projection": "none"}, "embed_dim=12 features, not 16"),
        ({"text_projection": "conv"}, "text_projection='conv' is unknown"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"logit_scale": 0.0}, "logit_scale=0.0 must be positive"),
    ],
)
def test_misspelt_descriptions_are_refused_with_the_nearest_name(change, message):
    with pytest.raises(InputError, match=message):
        functional(build(SPEC | change))


def test_the_key_decides_dropout(drawn):
    """The same key repeats it, another does not."""
    model, params, extra = drawn(build(SPEC | {"image": SPEC["image"] | {"dropout": 0.5}}))
    run = jax.jit(lambda key: model.apply(params, extra, IMAGES, IDS, train=True, key=key)[0]["image"])
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
