"""Values and gradients that the methods' own code (or loops from their equations) gave, where these objectives match.

Float64, as the vectors are; where a vector's features are raw, the objective normalises and the gradient goes through.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.ops import pairs
from mixcon.train.mesh import make_mesh

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
RTOL = 1e-9


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def load(name: str, case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(inputs, outputs) of one case."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {k: file[k] for k in file.files if k.startswith(f"{case}/")}
    numeric = {k: v for k, v in arrays.items() if v.dtype.kind in "fiub"}
    into = {k.removeprefix(f"{case}/in/"): jnp.asarray(v) for k, v in numeric.items() if f"{case}/in/" in k}
    return into, {k.removeprefix(f"{case}/out/"): v for k, v in numeric.items() if f"{case}/out/" in k}


def check(function: Any, arguments: tuple[Any, ...], value: Any, gradients: tuple[Any, ...]) -> None:
    """Value, and the gradient of the first arguments (None: not recorded)."""
    got, grads = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments)))))(*arguments)
    np.testing.assert_allclose(got, value, rtol=RTOL, atol=1e-12)
    for g, want in zip(grads, gradients, strict=True):
        if want is not None:
            np.testing.assert_allclose(g, want, rtol=1e-7, atol=1e-11)


# --- CLIP, ALIGN, SigLIP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_clip_align_siglip(case: str, impl: Any) -> None:
    x, want = load("align", case)
    arguments = (x["image_features"], x["text_features"], x["logit_scale"])

    def recorded(name: str) -> tuple[Any, ...]:
        return tuple(want[f"{name}_grad_{k}"] for k in ("image", "text", "logit_scale"))

    smoothing = float(x["label_smoothing"])
    check(lambda i, t, s: o.clip(i, t, logit_scale=s, impl=impl), arguments, want["clip_loss"], recorded("clip"))
    check(
        lambda i, t, s: o.clip(i, t, logit_scale=s, label_smoothing=smoothing, impl=impl),
        arguments,
        want["align_loss"],
        recorded("align"),
    )
    doubled = o.clip(*arguments[:2], logit_scale=arguments[2], label_smoothing=smoothing, reduction="sum", impl=impl)
    np.testing.assert_allclose(doubled, 2 * want["align_loss"], rtol=RTOL)
    check(
        lambda i, t, s, b: o.siglip(i, t, logit_scale=s, logit_bias=b, impl=impl),
        (*arguments, x["logit_bias"]),
        want["siglip_loss"],
        (*recorded("siglip"), want["siglip_grad_logit_bias"]),
    )


def on_processes(x: dict[str, Any], loss: Any, check_vma: bool = True) -> Any:
    """Value and gradients (features, scale) on two devices, each with half of the batch."""
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        mesh=mesh,
        in_specs=(rows, rows, everywhere),
        out_specs=(everywhere, (rows, rows, everywhere)),
        check_vma=check_vma,
    )
    return jax.jit(mapped)(x["image_features"], x["text_features"], x["logit_scale"])


def test_two_devices_give_the_full_batch_gradient() -> None:
    """The default is the row (local_loss, gather_with_grad) after averaging over processes: the full gradient."""
    x, want = load("align", "c2")
    loss, (image, text, scale) = on_processes(x, lambda i, t, s: o.clip(i, t, logit_scale=s, axis_name="data"))
    world = int(x["world_size"])
    for local in (0, 1):
        row = f"clip_local{local}_gwg1"
        np.testing.assert_allclose(loss, want[f"{row}/loss"].mean(), rtol=RTOL)
        np.testing.assert_allclose(image, want[f"{row}/g_img"] / world, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(text, want[f"{row}/g_txt"] / world, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(scale, want[f"{row}/g_scale"].mean(), rtol=1e-7)


def test_stop_gradient_gathered_gives_the_local_gradient() -> None:
    """The row (local_loss, no gather_with_grad): of each process's own anchors only, so W times ours of the mean."""
    x, want = load("align", "c2")
    loss, (image, text, scale) = on_processes(
        x, lambda i, t, s: o.clip(i, t, logit_scale=s, axis_name="data", stop_gradient_gathered=True)
    )
    world = int(x["world_size"])
    np.testing.assert_allclose(loss, want["clip_local1_gwg0/loss"].mean(), rtol=RTOL)
    np.testing.assert_allclose(world * image, want["clip_local1_gwg0/g_img"], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(world * text, want["clip_local1_gwg0/g_txt"], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(scale, want["clip_local1_gwg0/g_scale"].mean(), rtol=1e-7)
    whole = o.clip(x["image_features"], x["text_features"], logit_scale=x["logit_scale"], stop_gradient_gathered=True)
    np.testing.assert_allclose(loss, whole, rtol=RTOL)


def test_unchecked_map_gives_gradients_to_be_averaged() -> None:
    """With check_vma=False, as in pmap, each device's gradient is W times the full one: what averaging expects."""
    x, want = load("align", "c2")
    _, (image, _, _) = on_processes(x, lambda i, t, s: o.clip(i, t, logit_scale=s, axis_name="data"), check_vma=False)
    np.testing.assert_allclose(image, want["clip_local1_gwg1/g_img"], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("row", ["siglip_bidir", "siglip_gather"])
def test_siglip_on_two_devices(row: str) -> None:
    x, want = load("align", "c2")
    loss, (image, text, scale) = on_processes(
        x, lambda i, t, s: o.siglip(i, t, logit_scale=s, logit_bias=x["logit_bias"], axis_name="data")
    )
    world = int(x["world_size"])
    np.testing.assert_allclose(loss, want[f"{row}/loss"].mean(), rtol=RTOL)
    np.testing.assert_allclose(image, want[f"{row}/g_img"] / world, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(text, want[f"{row}/g_txt"] / world, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(scale, want[f"{row}/g_scale"].mean(), rtol=1e-7)


# --- alignment and uniformity ----------------------------------------------------------------------------------------


def test_contrastive_behaviour() -> None:
    x, want = load("contrastive-behaviour", "c1")
    features, t = x["features"], x["t"]
    np.testing.assert_allclose(o.uniformity(features, t=t), want["uniformity_loss"], rtol=RTOL)
    with_self = o.uniformity(features, t=t, include_self=True)
    np.testing.assert_allclose(with_self, want["uniformity_loss_with_self_pairs"], rtol=RTOL)
    np.testing.assert_allclose(o.alignment(features, x["features_positive"]), want["alignment"], rtol=RTOL)


def test_metrix_alignment_and_uniformity() -> None:
    x, want = load("metrix", "c3")
    np.testing.assert_allclose(o.uniformity(x["train"], t=x["uniform_t"]), want["uniformity"], rtol=RTOL)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_sepclr_common_terms(case: str) -> None:
    x, want = load("sepclr", case)
    a, b = x["common_1"], x["common_2"]
    np.testing.assert_allclose(o.alignment(a, b, normalize=True), want["common_align"], rtol=RTOL)
    spread = o.uniformity(a, t=1.0, normalize=True) + o.uniformity(b, t=1.0, normalize=True)
    np.testing.assert_allclose(spread / 2, want["common_uniform"], rtol=RTOL)


# --- other targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
@pytest.mark.parametrize("weights", ["affine", "identity", "labels"])
def test_cwcl(case: str, weights: str) -> None:
    x, want = load("cwcl", case)
    frozen = o.l2_normalize(x["frozen"])
    target = {
        "affine": pairs.similarity(frozen),
        "identity": pairs.identity(),
        "labels": pairs.same_label(x["labels"]),
    }[weights]

    def weighted(trainable: Any) -> Any:
        return o.multi_positive(o.l2_normalize(trainable), frozen, target, temperature=x["temperature"], impl="tiled")

    value = want[f"{weights}/loss_trainable_to_frozen"]
    check(weighted, (x["trainable"],), value, (want[f"{weights}/grad_trainable"],))
    check(
        lambda trainable: o.info_nce(frozen, o.l2_normalize(trainable), temperature=x["temperature"]),
        (x["trainable"],),
        want["loss_frozen_to_trainable"],
        (want["grad_frozen_to_trainable"],),
    )


def test_one_to_k() -> None:
    x, want = load("one-to-k", "c0")
    k = int(x["K"])

    def loss(image: Any, text: Any, temperature: Any) -> Any:
        # The image side is a mean over positives; the text side is 1/K of its mean (section 2.2 of the specification).
        image, text = o.l2_normalize(image), o.l2_normalize(text)
        rows = o.multi_positive(image, text, pairs.block(k), temperature=temperature)
        cols = o.multi_positive(text, image, pairs.block(k).T, temperature=temperature)
        return (rows + cols / k) / 2

    recorded = want["grad_image"], want["grad_text"], want["grad_temperature"]
    check(loss, (x["image"], x["text"], x["temperature"]), want["loss_div_k"], recorded)


def test_m3co() -> None:
    x, want = load("m3col", "c1")

    def loss(mixed: Any, fixed: Any) -> Any:
        target = pairs.mixed(x["perm"], x["betas"])
        return o.multi_positive(
            mixed, fixed, target, temperature=x["temperature"], normalize_targets=False, symmetric=True, normalize=True
        )

    check(loss, (x["mixed"], x["fixed"]), want["loss"], (want["grad_mixed"], want["grad_fixed"]))


def test_soft_clip_targets_with_gradient() -> None:
    x, want = load("m3col", "c2")

    def loss(predicted: Any, targets: Any) -> Any:
        p, q = o.l2_normalize(predicted), o.l2_normalize(targets)
        weight = jax.nn.softmax(q @ q.T / x["temperature"], axis=1)
        rows = o.multi_positive(p, q, weight, temperature=x["temperature"])
        cols = o.multi_positive(q, p, weight, temperature=x["temperature"])
        return (rows + cols) / 2

    check(loss, (x["preds"], x["targs"]), want["loss"], (want["grad_preds"], want["grad_targs"]))


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_debcse_hard_negatives(case: str) -> None:
    x, want = load("debcse", case)
    got = o.multiple_negatives_ranking(x["h"], x["h_pos"], x["h_neg"], scale=1 / x["temp"], normalize=True)
    np.testing.assert_allclose(got, want["loss"], rtol=RTOL)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_hard_negatives_of_the_other_modality(case: str) -> None:
    x, want = load("geodesic-mixup", case)
    got = o.hard_negative_reweighted(
        x["image_features"], x["text_features"], temperature=0.5, hardness=x["hcl_beta"],
        class_prior=float(x["hcl_tau_plus"]), negatives="other_view", count_positive=True,
    )  # fmt: skip
    np.testing.assert_allclose(got, want["hcl_loss"], rtol=RTOL)


def test_supcon_with_skipped_anchors() -> None:
    """That code divides by all anchors; ours by those that have a positive."""
    x, want = load("augment-pet", "c4")
    loss, aux = o.supcon(x["hidden"], x["labels"], temperature=x["tau"], normalize=True, has_aux=True)
    size = len(x["labels"])
    np.testing.assert_allclose(loss * (size - aux["without_positive"]) / size, want["scl_sum_over_batch"], rtol=RTOL)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_barlip(case: str) -> None:
    x, want = load("vlp-baselines", case)

    def term(a: Any, b: Any) -> Any:
        return o.barlow_twins(a, b, off_diagonal_weight=x["barlip_lambda"], scale=x["barlip_scale"], standardize=False)

    views = [(a, b) for a in x["v_image_local"] for b in x["v_text_local"]]
    terms = [term(a, b) for a, b in [(x["v_image"], x["v_text"]), *views]]
    np.testing.assert_allclose(sum(terms) / len(terms), want["barlip/barlip_loss"], rtol=RTOL)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_margin_contrastive(case: str) -> None:
    x, want = load("metrix", case)
    features = o.l2_normalize(x["embeddings"])
    got = o.contrastive(features, x["labels"], margin=x["neg_margin"], power=1, average="active")
    np.testing.assert_allclose(got, want["loss_clean"], rtol=1e-7)


def test_queue() -> None:
    x, want = load("mochi", "c3")
    size, dim = x["queue"].shape
    queue = o.empty_queue(size, dim, jnp.float64)._replace(features=x["queue"])
    for step, keys in enumerate(x["keys"]):
        queue = o.push(queue, keys)
        np.testing.assert_array_equal(queue.features, want["queue_after"][step])
        assert int(queue.cursor) == want["pointer_after"][step]
