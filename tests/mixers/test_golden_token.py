"""Transformer mixers, label laws and AlignMix against the published code's outputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mixcon.mixers.align import transport_between
from mixcon.mixers.plan import Plan, mix, mix_targets
from mixcon.mixers.region import cutmix_mask, inside, masked_plan
from mixcon.mixers.relabel import align_labels, mixpro_relabel, patch_mask, tokenmix_relabel, transmix_relabel
from mixcon.mixers.salient import upsample_cells
from mixcon.mixers.token import block_tokens, maskmix_mask, smmix_plan
from mixcon.mixers.warp import Transport


def one(value, dtype=jnp.float32):
    return jnp.asarray([value], dtype)


def test_alignmix(golden, nhwc, close):
    for case in golden("openmixup-alignmix"):
        features, cotangent = (jnp.asarray(nhwc(case.inp[k])) for k in ("features", "cotangent"))
        partner = jnp.asarray(case.inp["perm"])
        match = transport_between(features, features[partner], eps=float(case.inp["eps"]))
        close(match / match.shape[1], case.out["plan"], 2e-5)  # recorded before the factor r
        turned = Transport(match.transpose(0, 2, 1)) if int(case.inp["align_second"]) else None
        moves = (turned, None) if turned is not None else (None, Transport(match))
        plan = Plan(partner, jnp.full(len(partner), case.inp["lam"], jnp.float32), None, moves)
        mixed, pull = jax.vjp(partial(mix, plan), features)
        close(mixed, nhwc(case.out["features_mixed"]), 2e-5)
        close(pull(cotangent)[0], nhwc(case.out["grad_features"]), 2e-5)


def test_transmix_label(golden, nhwc, close):
    for case in golden("openmixup-transmix"):
        x = jnp.asarray(nhwc(case.inp["x"]))
        mask = cutmix_mask(one(case.inp["lam0"]), one([case.inp["cx"], case.inp["cy"]], jnp.int32), x.shape[1:3])
        close(1 - mask, nhwc(case.out["mask_b"]))
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")
        close(mix(plan, x), nhwc(case.out["x_mixed"]))
        rho = 1 - float(case.inp["ratio"])
        close(transmix_relabel(plan, jnp.asarray(case.inp["attn_cls"]), attention_weight=rho).weight, case.out["lam"])


def test_transmix_original_code(golden, nhwc, close):
    relabel, cut, linear, _ = golden("transmix")
    inp, out = relabel.inp, relabel.out
    top, bottom, left, right = (int(v) for v in inp["box"])
    mask = 1 - inside(one([top, left], jnp.int32), one([bottom, right], jnp.int32), tuple(inp["image_hw"]))
    plan = masked_plan(jnp.arange(4)[::-1], mask, "batch")
    close(1 - patch_mask(mask, (8, 8)).reshape(8, 8), out["patch_mask"])
    options = {"num_classes": int(inp["num_classes"]), "smoothing": float(inp["smoothing"])}
    labels = jnp.asarray(inp["labels"], jnp.int32)
    close(mix_targets(plan, labels, **options), out["area_target"])
    plan = transmix_relabel(plan, jnp.asarray(inp["attn"], jnp.float32), attention_weight=float(inp["area_weight"]))
    target = mix_targets(plan, labels, **options)
    close(target, out["target"])

    for case in (cut, linear):
        inp, out = case.inp, case.out
        x = jnp.asarray(nhwc(inp["x_nchw"]))
        partner, weight = jnp.arange(4)[::-1], jnp.full(4, inp["lam_drawn"], jnp.float32)
        plan = Plan(partner, weight)
        if int(inp["use_cutmix"]):
            center = one([inp["center_y"], inp["center_x"]], jnp.int32)
            plan = masked_plan(partner, cutmix_mask(weight[:1], center, x.shape[1:3]), "batch")
        close(mix(plan, x), nhwc(out["x_mix_nchw"]))
        labels = jnp.asarray(inp["labels"], jnp.int32)
        close(mix_targets(plan, labels, num_classes=3, smoothing=float(inp["smoothing"])), out["area_target"])


def replay_blocks(target, uniforms, randints, side=14):
    """The published sampler on its recorded draws: the mask, and the same draws as numbers in [0, 1)."""
    mask, count, units = np.zeros((side, side), bool), 0, []
    uniforms, randints = iter(uniforms), iter(randints)
    while count < target:
        for _ in range(10):
            missing = target - count
            area, log_aspect = next(uniforms), next(uniforms)
            aspect = np.exp(log_aspect)
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            unit = [(area - 1) / max(missing - 1, 1), (log_aspect / -np.log(0.3) + 1) / 2, 0.0, 0.0]
            added = 0
            if w < side and h < side:
                top, left = next(randints), next(randints)
                unit[2:] = (top + 0.5) / (side - h + 1), (left + 0.5) / (side - w + 1)
                block = np.zeros_like(mask)
                block[top : top + h, left : left + w] = True
                added = int((block & ~mask).sum())
            units.append(unit)
            if 0 < added <= missing:
                mask |= block
                count += added
                break
        else:
            break
    return mask, np.array(units, np.float32)


def test_tokenmix(golden, nhwc, close):
    for case in golden("openmixup-tokenmix"):
        x, attention = jnp.asarray(nhwc(case.inp["x"])), jnp.asarray(case.inp["attn_cls"])
        target = min(196, int((1 - float(case.inp["lam0"])) * 196) + int(case.inp["minimum_tokens"]))
        expected = case.inp["mask_b"][0, 0]
        if "uniforms" in case.inp:
            replayed, units = replay_blocks(target, case.inp["uniforms"], case.inp["randints"])
            np.testing.assert_array_equal(replayed, expected)
            np.testing.assert_array_equal(block_tokens(jnp.int32(target), jnp.asarray(units)), expected)
        else:
            assert expected.sum() == target
        mask = upsample_cells(1 - jnp.asarray(expected)[None], x.shape[1:3])
        plan = masked_plan(jnp.asarray(case.inp["perm"]), mask, "batch")
        close(mix(plan, x), nhwc(case.out["x_mixed"]))
        for suffix, legacy in (("", False), ("_legacy", True)):
            weight = tokenmix_relabel(plan, attention, legacy=legacy).weight
            close(weight, np.stack([case.out[f"weight_a{suffix}"], case.out[f"weight_b{suffix}"]], axis=1))


def test_mixpro(golden, nhwc, close):
    for case in golden("openmixup-mixpro"):
        inp, out = case.inp, case.out
        x, order = jnp.asarray(nhwc(inp["x"])), np.asarray(inp["token_perms"])
        score = -np.argsort(order, axis=1).astype(np.float32)  # the first of the permutation are kept
        weight = jnp.full(len(order), inp["lam0"], jnp.float32)
        mask, area = maskmix_mask(jnp.asarray(score), weight, int(inp["mask_patch_size"]), x.shape[1:3])
        close(area, out["lam_area"])
        plan = Plan(jnp.asarray(inp["perm"]), area, mask)  # the code keeps the share of cells, cropped or not
        close(mix(plan, x), nhwc(out["x_mixed"]))
        attention, labels = jnp.asarray(inp["attn_cls"]), jnp.asarray(inp["y"])
        close(transmix_relabel(plan, attention, attention_weight=1.0).weight, out["lam_attn"])
        plan = mixpro_relabel(plan, attention, jnp.asarray(inp["logits"]), labels, smoothing=float(inp["smoothing"]))
        close(plan.weight, out["lam_final"])


def test_smmix(golden, nhwc, close):
    for case in golden("openmixup-smmix"):
        x = jnp.asarray(nhwc(case.inp["x"]))
        attention = jnp.asarray(case.inp["attn_cls"]).mean(axis=1)
        plan = smmix_plan(attention, jnp.int32(case.inp["rect"]), x.shape[1:3])
        close(1 - plan.mask, nhwc(case.out["mask_b"]))
        close(plan.weight, np.full(len(x), case.out["lam"]))
        close(mix(plan, x), nhwc(case.out["x_mixed"]))


def test_token_label_alignment(golden, nhwc, close):
    for case in golden("openmixup-tla"):
        inp = case.inp
        x, patch = jnp.asarray(nhwc(inp["x"])), int(inp["patch"])
        grid = (x.shape[1] // patch, x.shape[2] // patch)
        cells = cutmix_mask(one(inp["lam0"]), one([inp["cy"], inp["cx"]], jnp.int32), grid)[..., 0]
        mask = upsample_cells(cells, x.shape[1:3])
        close(1 - mask, nhwc(case.out["mask_b"]))
        plan = masked_plan(jnp.asarray(inp["perm"]), mask, "batch")
        close(plan.weight, np.full(len(x), case.out["lam"]))
        close(mix(plan, x), nhwc(case.out["x_mixed"]))
        aligned = align_labels(
            plan,
            jnp.asarray(inp["y"]),
            jnp.asarray(inp["attn_layers"]),
            num_classes=int(inp["num_classes"]),
            smoothing=float(inp["smoothing"]),
        )
        close(aligned, case.out["label_aligned"])
