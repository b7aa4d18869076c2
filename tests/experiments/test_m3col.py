"""How the losses of M3CoL come together: the published total, the switch, shares of mixed inputs, what is refused."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mixcon import config as configs
from mixcon import mixers
from mixcon.errors import InputError
from mixcon.models import functional, mlp_head, multimodal_classifier
from mixcon.objectives import info_nce, m3co, multimodal_pairs, soft_clip
from mixcon.train import loop
from mixcon.train.mesh import make_mesh
from mixcon.train.state import init_state

configs.make_importable()
from experiments import m3col  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "m3col.npz"
NAMES = ("mrna", "methylation", "mirna")
ORDERED = [(NAMES[a], NAMES[b]) for a, b in multimodal_pairs(3)]
GROUPS = "{'name': 'mixcon.data.multimodal.feature_groups', 'of': 'wine', 'side': '%s'}"
TINY = (
    f"data.train={GROUPS % 'train'}",
    f"data.evals.test={GROUPS % 'test'}",
    "batch_size=16",
    "mesh.data=1",
    "heads.num_classes=3",
    *(f"encoders.{name}.in_features={size}" for name, size in zip(NAMES, (5, 4, 4), strict=True)),
    *(f"encoders.{name}.out_features=8" for name in NAMES),
)


def tiny(*overrides):
    return configs.load("configs/m3col.py:small", [f"--config.{each}" for each in (*TINY, *overrides)])


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
    """As that code does it: partners are mixed, and a fixed point overwrites."""
    x, model, params = published
    inputs = {n: jnp.asarray(x[f"in/x{m}"], jnp.float32) for m, n in enumerate(NAMES, 1)}
    labels = jnp.asarray(x["in/y"], jnp.int32)
    contrast = configs.load("configs/m3col.py:small").contrast.copy_and_resolve_references()
    with contrast.unlocked():
        contrast.update(partner="mixed", fixed_point="overwrite")

    def plan(m):
        lam, select = jnp.asarray(x[f"in/lam{m}"], jnp.float32), jnp.asarray(x[f"in/select{m}"])
        return mixers.Plan(jnp.asarray(x[f"in/perm{m}"], jnp.int32), jnp.where(select, lam, 1.0))

    plans = {n: plan(m) for m, n in enumerate(NAMES, 1)}

    @jax.jit
    def total(params):
        clean = model.apply(params, {}, inputs, train=True, method="encode")[0]
        reps = {"clean": clean, "plans": plans, "logits": model.apply(params, {}, clean, method="classify")[0]}
        terms = m3col.classified(reps, labels, NAMES)
        second = (m3col.mixing if form == "m3co" else m3col.settled)(reps, ORDERED, contrast)
        return sum(terms.values()) + float(x["in/lambda_mixup"]) * second, (reps["logits"]["fusion"], terms["fusion"])

    (loss, (logits, fusion)), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(loss, x[f"out/total_{form}"], rtol=1e-5)
    np.testing.assert_allclose(fusion, x["out/ce_fusion"], rtol=1e-5)
    np.testing.assert_allclose(logits, x["out/logits_fusion"], rtol=1e-5, atol=1e-6)
    first, want = grads["encoders"]["mrna"]["layers"]["0"]["kernel"].T, x[f"out/grad_enc1_w1_{form}"]
    np.testing.assert_allclose(first, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_partners_are_clean_or_mixed_and_only_some_modalities_may_be(published):
    rng = np.random.default_rng(0)
    clean = {n: jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for n in NAMES}
    plans = {
        n: mixers.Plan(jnp.asarray(rng.permutation(6), jnp.int32), jnp.asarray(rng.uniform(size=6), jnp.float32))
        for n in NAMES
    }
    contrast = tiny().contrast
    got = m3col.mixing({"clean": clean, "plans": plans}, ORDERED, contrast)
    mixed = {n: mixers.mix(plans[n], clean[n]) for n in NAMES}
    np.testing.assert_allclose(got, sum(m3co(mixed[a], clean[b], *plans[a][:2]) for a, b in ORDERED), rtol=1e-6)
    one = m3col.mixing({"clean": clean, "plans": {"mirna": plans["mirna"]}}, ORDERED, contrast)
    np.testing.assert_allclose(one, m3co(mixed["mirna"], clean["mrna"], *plans["mirna"][:2]), rtol=1e-6)
    elsewhere = m3col.mixing({"clean": clean, "plans": plans, "mixed": clean}, ORDERED, contrast)  # mixed at the input
    np.testing.assert_allclose(elsewhere, sum(m3co(clean[a], clean[b], *plans[a][:2]) for a, b in ORDERED), rtol=1e-6)


def test_mixed_inputs_share_their_labels_by_what_each_head_saw():
    """One of two modalities is mixed with λ: its head sees λ and 1-λ, the fusion (1+λ)/2 and (1-λ)/2."""
    rng, lam = np.random.default_rng(0), 0.3
    logits = {n: jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for n in ("fusion", "image", "text")}
    labels, other = jnp.array([0, 1, 2, 0, 1]), jnp.array([1, 1, 0, 2, 2])
    reps = {"logits": logits, "share": jnp.full(5, lam), "other": other}

    def cross_entropy(name, y):
        log_p = np.asarray(jax.nn.log_softmax(logits[name]))
        return -np.mean([log_p[i, y[i]] for i in range(5)])

    got = m3col.classified(reps, labels, ("image", "text"), mixed=("text",))
    for name, share in (("fusion", (1 + lam) / 2), ("image", 1.0), ("text", lam)):
        want = share * cross_entropy(name, labels) + (1 - share) * cross_entropy(name, other)
        np.testing.assert_allclose(got[name], want, rtol=1e-5)
    both = m3col.classified(reps, labels, ("image", "text"), mixed=("image", "text"))["fusion"]
    want = lam * cross_entropy("fusion", labels) + (1 - lam) * cross_entropy("fusion", other)
    np.testing.assert_allclose(both, want, rtol=1e-5)


def test_one_program_contrasts_mixed_examples_and_then_clean_ones(tmp_path):
    """With nobody mixed the first form is InfoNCE of the pairs; then it is soft CLIP, in one program."""
    config = tiny("contrast.select=0.0", "contrast.switch=0.5", "steps=40", "contrast.weight=0.25", "unimodal=0.5")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.set_mesh(make_mesh(data=1)):
        experiment = loop.build(config, tmp_path)
        batch = loop.device_part(next(experiment.batches()))
        state = jax.jit(lambda: init_state(experiment, 0, ema=False))()
        step = jax.jit(experiment.step)
        model = functional(multimodal_classifier(
            {n: mlp_head(batch[n].shape[1], 8, hidden=256, init="xavier") for n in NAMES}, num_classes=3, hidden=256
        ))  # fmt: skip
        (clean, logits), _ = model.apply(state.params, {}, batch)
        first = sum(info_nce(clean[a], clean[b], temperature=0.1, symmetric=True, normalize=True) for a, b in ORDERED)
        second = sum(soft_clip(clean[a], clean[b]) for a, b in ORDERED)
        one = jnp.ones(16)
        ce = {n: mixers.pair_cross_entropy(z, batch["label"], batch["label"], one) for n, z in logits.items()}
        classification = ce["fusion"] + 0.5 * sum(ce[n] for n in NAMES)
        for number, contrast in (
            (0, first),
            (15, first),
            (16, second),
            (39, second),
        ):  # 8 steps an epoch, 2 of 5 epochs
            _, metrics = step(state._replace(step=jnp.int32(number)), batch)
            np.testing.assert_allclose(metrics["contrast"], contrast, rtol=1e-4)
            np.testing.assert_allclose(metrics["classification"], classification, rtol=1e-5)
            np.testing.assert_allclose(metrics["loss"], classification + 0.25 * contrast, rtol=1e-5)


def test_the_switch_is_at_an_epoch():
    config = configs.load("configs/m3col.py:rosmap")
    assert m3col.switch_step(config, 245) == 165  # floor(0.33 · 500), one step an epoch
    news = configs.load("configs/m3col.py:n24news")
    assert m3col.switch_step(news, 48_000) == 8 * 375


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("modalities=('mrna', 'protein')", "modality 'protein' is missing from the records, which hold mrna"),
        ("contrast.form=soft_clp", "did you mean soft_clip"),
        ("contrast.partner=both", "must be one of clean, mixed"),
        ("contrast.mix_at=logits", "must be one of embedding, input"),
        ("contrast.mixed=('image',)", "names 'image', which is not one of the modalities mrna"),
        ("input_mixup=('text',)", "input_mixup names 'text'"),
        ("modalities=('mrna',)", "at least two modalities, got 1; train one with weight 0"),
        ("gradient.name=mixcon.train.gradients.grad_cache", "use standard or accumulate"),
    ],
)
def test_what_cannot_be_meant_is_refused(override, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        loop.build(tiny(override), tmp_path)


def test_logistic_regression_is_scored_like_the_heads(tmp_path):
    two = ("data.train.of=breast_cancer", "data.evals.test.of=breast_cancer")
    scores = m3col.logistic(tiny(*two), tmp_path)
    assert scores.keys() >= {"eval/test/accuracy", "eval/test/f1", "eval/test/auc"}
    assert 0.9 < scores["eval/test/accuracy"] <= scores["eval/test/auc"] <= 1


def test_the_full_size_image_text_form_traces(tmp_path, monkeypatch):
    """ViT-B/16 and a text tower of BERT's size, gradients in four parts, on a few items laid out as N24News is."""
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    items = [{"image_id": str(i), "section": f"s{i % 24}", "headline": f"headline {i}"} for i in range(24)]
    (tmp_path / "n24news" / "news").mkdir(parents=True)
    (tmp_path / "n24news" / "imgs").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "n24news" / "news" / f"nytimes_{split}.json").write_text(json.dumps(items))
    for i in range(24):
        Image.new("RGB", (30, 20), (10 * i, 0, 0)).save(tmp_path / "n24news" / "imgs" / f"{i}.jpg")
    changed = ("batch_size=16", "tokenizer={'path': '', 'vocab_size': 300}", "input_mixup=('text',)", "mesh.data=4")
    config = configs.load("configs/m3col.py:n24news", [f"--config.{each}" for each in changed])
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.set_mesh(mesh):
        experiment = loop.build(config, tmp_path)
        shapes, _ = loop.state_layout(experiment, config, mesh)
        batch = loop.device_part(next(experiment.batches()))
        after, metrics = jax.eval_shape(experiment.step, shapes, batch)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert metrics.keys() >= {"loss", "contrast", "classification", "accuracy"}
    assert batch["text"].shape == (16, 512)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)) > 160e6
