"""Input and region mixers against the outputs of the published code, given its draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.mixers.frequency import low_frequency, threshold_mask
from mixcon.mixers.plan import Plan, make_plan, mix, mix_targets
from mixcon.mixers.region import cutmix_mask, gridmix_mask, masked_plan, resizemix_draw, smoothmix_mask


def one(value, dtype=jnp.float32):
    return jnp.asarray([value], dtype)


def check_case(case, plan, nhwc, close):
    close(mix(plan, jnp.asarray(nhwc(case.inp["x"]))), nhwc(case.out["x_mixed"]))
    classes = 6
    y = mix_targets(plan, jnp.asarray(case.inp["y"]), num_classes=classes)
    w = np.asarray(plan.weight)[:, None]
    close(y, w * np.eye(classes)[case.out["y_a"]] + (1 - w) * np.eye(classes)[case.out["y_b"]])


def test_mixup(golden, nhwc, close):
    for case in golden("openmixup-mixup"):
        plan = make_plan(case.inp["perm"], float(case.inp["lam"]))
        check_case(case, plan, nhwc, close)


def test_manifold_mixup_passes_gradients_to_both_terms(golden, nhwc, close):
    for case in golden("openmixup-manifoldmix"):
        plan = make_plan(case.inp["perm"], float(case.inp["lam"]))
        features, cotangent = (jnp.asarray(nhwc(case.inp[k])) for k in ("features", "cotangent"))
        close(mix(plan, features), nhwc(case.out["features_mixed"]))
        grad = jax.vjp(partial(mix, plan), features)[1](cotangent)[0]
        close(grad, nhwc(case.out["grad_features"]))


def test_cutmix(golden, nhwc, close):
    for case in golden("openmixup-cutmix"):
        x = nhwc(case.inp["x"])
        center = one([case.inp["cx"], case.inp["cy"]], jnp.int32)  # the original's cx is the row
        mask = cutmix_mask(one(case.inp["lam0"]), center, x.shape[1:3])
        close(1 - mask, nhwc(case.out["mask_b"]))
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")
        close(plan.weight, np.full(len(x), case.out["lam"]))
        check_case(case, plan, nhwc, close)


def test_smoothmix(golden, nhwc, close):
    for case in golden("openmixup-smoothmix"):
        x = nhwc(case.inp["x"])
        mask = smoothmix_mask(one([case.inp["u_h"], case.inp["u_w"]], jnp.int32), one(case.inp["u_sigma"]), x.shape[1])
        close(1 - mask, nhwc(case.out["kernel_b"]))
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")
        close(1 - plan.weight, np.full(len(x), case.out["lam_returned"]))  # the repository's label is reversed
        check_case(case, plan, nhwc, close)


def test_gridmix(golden, nhwc, close):
    for case in golden("openmixup-gridmix"):
        x = nhwc(case.inp["x"])
        mask = gridmix_mask(
            one(case.inp["lam0"]),
            one(case.inp["n_holes"]),
            one(case.inp["cut_area_ratio"]),
            one(case.inp["cut_aspect_ratio"]),
            one([case.inp["u_y"], case.inp["u_x"]]),
            x.shape[1:3],
            hole_aspect=float(case.inp["hole_aspect_ratio"]),
            legacy_wrap=True,
        )
        close(1 - mask, nhwc(case.out["mask_b"]))
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")
        close(plan.weight, np.full(len(x), case.out["lam"]))
        check_case(case, plan, nhwc, close)


def test_gridmix_clip_and_wrap_agree_inside_the_picture():
    draw = (one(0.4), one(3), one(0.6), one(1.1), one([0.3, 0.8]), (24, 24))
    np.testing.assert_array_equal(gridmix_mask(*draw), gridmix_mask(*draw, legacy_wrap=True))


def test_resizemix(golden, nhwc, close):
    for case in golden("openmixup-resizemix"):
        x = nhwc(case.inp["x"])
        center = one([case.inp["cy"], case.inp["cx"]], jnp.int32)
        mask, grid = resizemix_draw(one(case.inp["tao"]), center, x.shape[1:3], bilinear=bool(case.inp["bilinear"]))
        close(1 - mask[0, :, :, 0].T, case.out["mask_returned"][0, 0])  # the repository returns its transpose
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")._replace(warp=(None, grid))
        close(plan.weight, np.full(len(x), case.out["lam"]))
        check_case(case, plan, nhwc, close)


@pytest.mark.parametrize("index", range(3))
def test_fmix(golden, nhwc, close, index):
    case = golden("openmixup-fmix")[index]
    x = nhwc(case.inp["x"])
    image = low_frequency(
        jnp.asarray(case.inp["normal"], jnp.float32), x.shape[1:3], decay=float(case.inp["decay_power"])
    )
    close(image, case.out["low_freq"])
    mask = threshold_mask(
        image, one(case.inp["lam"]), soft=float(case.inp["max_soft"]), ceil=one(case.inp["u_ceil"] > 0.5, bool)
    )
    expected = nhwc(case.out["mask_a"])
    assert (np.abs(np.asarray(mask) - expected) > 1e-6).sum() <= 2  # near-ties of a float32 transform may swap
    plan = Plan(jnp.asarray(case.inp["perm"]), jnp.full(len(x), case.inp["lam"], jnp.float32), jnp.asarray(expected))
    check_case(case, plan, nhwc, close)
    # the drawn weight is the published label; ours is the mean, and differs by less than one place
    assert abs(float(mask.mean()) - float(case.inp["lam"])) < 1.5 / mask[0].size
