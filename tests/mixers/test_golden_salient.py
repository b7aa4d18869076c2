"""Saliency maps and saliency-guided mixers against the published code's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import USUAL

from mixcon.mixers.partner import one_cycle_partner
from mixcon.mixers.plan import Plan, mix
from mixcon.mixers.region import cutmix_mask, masked_plan
from mixcon.mixers.saliency import (
    blur_saliency,
    fine_grained_saliency,
    normalise_saliency,
    opencv_float_saliency,
    peak,
    semantic_percent_map,
    spectral_residual_saliency,
)
from mixcon.mixers.salient import attentivemix, guidedmixup, snapmix_draw

KEY = jax.random.key(0)


def one(value, dtype=jnp.float32):
    return jnp.asarray([value], dtype)


def test_fine_grained_saliency_is_bit_exact(golden):
    for case in golden("openmixup-saliencymix"):
        ours = fine_grained_saliency(jnp.asarray(case.inp["image_u8"]), bgr=True)
        np.testing.assert_array_equal(ours, case.out["saliency_u8path"])
        np.testing.assert_array_equal(peak(ours), case.out["peak_u8path"])


@pytest.fixture
def _fused():
    """The last bits of a float depend on fused multiply-adds, which the quick compiles leave out."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("_fused")
def test_opencv_reads_float_images_as_bytes(golden, nhwc, close):
    for case in golden("openmixup-saliencymix"):
        x = jnp.asarray(nhwc(case.inp["x"]))
        ours = jax.jit(opencv_float_saliency, compiler_options=USUAL)(x)
        np.testing.assert_array_equal(peak(ours), case.out["peak_floatpath"])
        np.testing.assert_array_equal(ours, case.out["saliency_floatpath"])
        partner = jnp.asarray(case.inp["perm"])
        mask = cutmix_mask(one(case.inp["lam0"]), peak(ours[partner[:1]]), x.shape[1:3])
        close(1 - mask, nhwc(case.out["mask_b"]))
        plan = masked_plan(partner, mask, "batch")
        close(plan.weight[0], case.out["lam"])
        close(mix(plan, x), nhwc(case.out["x_mixed"]))


def test_spectral_residual(golden, nhwc, close):
    for case in golden("openmixup-spectral-residual"):
        saliency = spectral_residual_saliency(jnp.asarray(nhwc(case.inp["x"])))
        blurred = blur_saliency(saliency, width=int(case.inp["blur"]))
        close(blurred, case.out["saliency"])


def test_attentivemix(golden, nhwc, close):
    for case in golden("openmixup-attentivemix"):
        x, top_k = jnp.asarray(nhwc(case.inp["x"])), int(case.inp["top_k"])
        plan = attentivemix(
            KEY,
            x,
            features=jnp.asarray(nhwc(case.inp["features"])),
            top_k=None if top_k == -1 else top_k,
            weight=float(case.inp["lam0"]),
            partner=case.inp["perm"],
        )
        close(plan.mask, nhwc(case.out["mask_a"]))
        close(plan.weight[0], case.out["lam"])
        close(mix(plan, x), nhwc(case.out["x_mixed"]))


def test_guidedmixup(golden, nhwc, close):
    for case in golden("openmixup-guidedmix"):
        x, saliency = jnp.asarray(nhwc(case.inp["x"])), jnp.asarray(case.inp["saliency"])
        share = normalise_saliency(saliency)
        close(share, case.out["saliency_norm"])
        np.testing.assert_array_equal(one_cycle_partner(share), case.out["cycle"])
        legacy = guidedmixup(KEY, x, saliency=saliency, pairing="given", partner=case.inp["perm"])
        close(legacy.mask, nhwc(case.out["mask_a"]))
        close(legacy.weight, case.out["lam_a"][:, 0])
        close(mix(legacy, x), nhwc(case.out["x_mixed"]))
        plan = guidedmixup(KEY, x, saliency=saliency)
        close(plan.weight, case.out["lam_a_cycle"])
        close(mix(plan, x), nhwc(case.out["x_mixed_cycle"]))


def test_snapmix(golden, nhwc, close):
    for case in golden("openmixup-snapmix"):
        x, labels = jnp.asarray(nhwc(case.inp["x"])), jnp.asarray(case.inp["y"])
        percent = semantic_percent_map(
            jnp.asarray(nhwc(case.inp["hidden"])),
            jnp.asarray(case.inp["fc_weight"]).T,
            jnp.asarray(case.inp["fc_bias"]),
            labels,
            x.shape[1:3],
        )
        centers = tuple(one([case.inp[f"cx_{s}"], case.inp[f"cy_{s}"]], jnp.int32) for s in "ab")
        weights = (one(case.inp["lam_a0"]), one(case.inp["lam_b0"]))
        plan = snapmix_draw(weights, centers, percent, jnp.asarray(case.inp["perm"]), labels, "batch")
        close(plan.weight, np.stack([case.out["weight_a"], case.out["weight_b"]], axis=1))
        close(mix(plan, x), nhwc(case.out["x_mixed"]))


def test_snapmix_with_an_empty_box_does_not_mix():
    percent = jnp.full((2, 8, 8), 1 / 64)
    centers = (one([4, 4], jnp.int32),) * 2
    plan = snapmix_draw((one(1.0), one(0.5)), centers, percent, jnp.array([1, 0]), jnp.array([0, 1]), "batch")
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    np.testing.assert_array_equal(mix(plan, x), x)
    np.testing.assert_array_equal(plan.weight, [[1, 0], [1, 0]])
    assert isinstance(plan, Plan)
