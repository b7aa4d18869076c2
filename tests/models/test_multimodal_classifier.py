"""A classifier of several modalities: the published network and its two losses to the digit; what it refuses."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers
from mixcon.errors import InputError
from mixcon.models import functional, mlp_head
from mixcon.models.multimodal import multimodal_classifier
from mixcon.objectives import m3co, multimodal_pairs, soft_clip

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "m3col.npz"
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def published():
    """(arrays of case c3, model, params with the recorded weights)."""
    with np.load(GOLDEN) as file:
        x = {k.removeprefix("c3/"): file[k] for k in file.files if k.startswith("c3/") and "kind" not in k}
    encoders = {n: mlp_head(x[f"in/x{m}"].shape[1], 8, hidden=8, init="xavier") for m, n in enumerate(NAMES, 1)}
    model = functional(multimodal_classifier(encoders, num_classes=3, hidden=6))

    def layers(prefix, names):
        weights = [(x[f"in/w/{prefix}.{n}.clf.0.weight"], x[f"in/w/{prefix}.{n}.clf.0.bias"]) for n in names]
        both = [{"kernel": jnp.asarray(w.T, jnp.float32), "bias": jnp.asarray(b, jnp.float32)} for w, b in weights]
        return {"layers": {str(i): layer for i, layer in enumerate(both)}}

    head = ("post_layer_1", "post_layer_2")
    params = {
        "encoders": {n: layers(f"fe_{m}", ("fe1", "fe2")) for m, n in enumerate(NAMES, 1)},
        "heads": {n: layers(f"cl_{m}", head) for m, n in enumerate(NAMES, 1)},
        "fusion": layers("mm_classfier", head),
    }
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0))[0])
    return x, model, params


@pytest.mark.parametrize("form", ["m3co", "softclip"])
def test_total_loss_and_gradient_are_the_published_ones(published, form):
    """Classification by all heads and 0.1 of a contrast; the partners of M3Co are mixed, as that code has them."""
    x, model, params = published
    inputs = {n: jnp.asarray(x[f"in/x{m}"], jnp.float32) for m, n in enumerate(NAMES, 1)}
    labels = jnp.asarray(x["in/y"], jnp.int32)

    def plan(m):
        lam, select = jnp.asarray(x[f"in/lam{m}"], jnp.float32), jnp.asarray(x[f"in/select{m}"])
        return mixers.Plan(jnp.asarray(x[f"in/perm{m}"], jnp.int32), jnp.where(select, lam, 1.0))

    plans = {n: plan(m) for m, n in enumerate(NAMES, 1)}

    def total(params):
        (clean, logits), _ = model.apply(params, {}, inputs, train=True)
        one = jnp.ones(len(labels))
        terms = {n: mixers.pair_cross_entropy(rows, labels, labels, one) for n, rows in logits.items()}
        if form == "m3co":
            mixed = {n: mixers.mix(plans[n], clean[n]) for n in NAMES}
            how = {"fixed_point": "overwrite"}
            contrast = [
                m3co(mixed[NAMES[a]], mixed[NAMES[b]], *plans[NAMES[a]][:2], **how) for a, b in multimodal_pairs(3)
            ]
        else:
            contrast = [soft_clip(clean[NAMES[a]], clean[NAMES[b]]) for a, b in multimodal_pairs(3)]
        weight = float(x["in/lambda_mixup"])
        return sum(terms.values()) + weight * sum(contrast), (logits["fusion"], terms["fusion"])

    (loss, (logits, fusion)), grads = jax.value_and_grad(total, has_aux=True)(params)
    np.testing.assert_allclose(loss, x[f"out/total_{form}"], rtol=1e-5)
    np.testing.assert_allclose(fusion, x["out/ce_fusion"], rtol=1e-5)
    np.testing.assert_allclose(logits, x["out/logits_fusion"], rtol=1e-5, atol=1e-6)
    first = grads["encoders"]["one"]["layers"]["0"]["kernel"].T
    np.testing.assert_allclose(first, x[f"out/grad_enc1_w1_{form}"], rtol=1e-4, atol=1e-6)


def test_weights_are_xavier_normal_and_unimodal_heads_are_optional():
    tower = mlp_head(400, 300, hidden=300, init="xavier")
    make = multimodal_classifier({"a": tower, "b": tower}, num_classes=2, hidden=200, unimodal=False)
    params, _ = functional(make).init(jax.random.key(0))
    assert set(params) == {"encoders", "fusion"}
    first, fusion = (part["layers"]["0"] for part in (params["encoders"]["a"], params["fusion"]))
    assert first["kernel"].shape == (400, 300)
    assert fusion["kernel"].shape == (600, 200)
    np.testing.assert_allclose(first["kernel"].std(), (2 / 700) ** 0.5, rtol=0.02)
    assert not first["bias"].any()


def test_what_cannot_be_built_or_classified_is_refused(published):
    _, model, params = published
    with pytest.raises(InputError, match="modality 'three' is missing: the classifier needs one, two, three"):
        model.apply(params, {}, {"one": jnp.ones((2, 5)), "two": jnp.ones((2, 6))})
    for encoders, classes in (({}, 2), ({"fusion": mlp_head(2, 2, hidden=2)}, 2), ({"a": mlp_head(2, 2, hidden=2)}, 1)):
        with pytest.raises(InputError, match="want one encoder or more"):
            multimodal_classifier(encoders, num_classes=classes, hidden=2)
    with pytest.raises(InputError, match="init='xavir' is unknown"):
        mlp_head(2, 2, hidden=2, init="xavir")
