"""A classifier of several modalities: its parameters, what its heads see, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import functional, mlp_head, multimodal_classifier


@pytest.fixture(scope="module")
def model():
    encoders = {"a": mlp_head(5, 4, hidden=3), "b": mlp_head(2, 6, hidden=3)}
    return functional(multimodal_classifier(encoders, num_classes=3, hidden=7, head_depth=3))


def test_heads_see_their_embedding_and_the_fusion_sees_all(model):
    params, extra = jax.jit(model.init)(jax.random.key(0))
    inputs = {"b": jnp.ones((2, 2)), "a": jnp.ones((2, 5)), "unused": jnp.ones(1)}
    embeddings, _ = model.apply(params, extra, inputs, method="encode")
    assert {name: z.shape for name, z in embeddings.items()} == {"a": (2, 4), "b": (2, 6)}
    logits, _ = model.apply(params, extra, embeddings, method="classify")
    for name, z in (("a", embeddings["a"]), ("fusion", jnp.concatenate([embeddings["a"], embeddings["b"]], 1))):
        layers = (params["fusion"] if name == "fusion" else params["heads"][name])["layers"]
        for i in range(3):
            z = np.asarray(z) @ np.asarray(layers[str(i)]["kernel"]) + np.asarray(layers[str(i)]["bias"])
            z = np.maximum(z, 0) if i < 2 else z
        np.testing.assert_allclose(logits[name], z, rtol=1e-5, atol=1e-6)
    (_, both), _ = model.apply(params, extra, inputs)
    np.testing.assert_array_equal(both["b"], logits["b"])


def test_weights_are_xavier_normal_and_unimodal_heads_are_optional():
    tower = mlp_head(400, 300, hidden=300, init="xavier")
    make = multimodal_classifier({"a": tower, "b": tower}, num_classes=2, hidden=200, unimodal=False)
    params, _ = jax.jit(functional(make).init)(jax.random.key(0))
    assert set(params) == {"encoders", "fusion"}
    first, fusion = (part["layers"]["0"] for part in (params["encoders"]["a"], params["fusion"]))
    assert first["kernel"].shape == (400, 300)
    assert fusion["kernel"].shape == (600, 200)
    np.testing.assert_allclose(first["kernel"].std(), (2 / 700) ** 0.5, rtol=0.02)
    assert not first["bias"].any()


def test_what_cannot_be_built_or_classified_is_refused(model):
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(InputError, match="modality 'b' is missing: the classifier needs a, b of every example"):
        jax.eval_shape(model.apply, params, extra, {"a": jnp.ones((2, 5))})
    one = mlp_head(2, 2, hidden=2)
    for encoders, classes in (({}, 2), ({"fusion": one}, 2), ({"a": one}, 1)):
        with pytest.raises(InputError, match="want one encoder or more"):
            multimodal_classifier(encoders, num_classes=classes, hidden=2)
    with pytest.raises(InputError, match="init='xavir' is unknown"):
        mlp_head(2, 2, hidden=2, init="xavir")
