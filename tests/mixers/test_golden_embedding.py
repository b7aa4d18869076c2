"""Embedding-space, label-aware and text mixers against their papers' golden values."""

import jax
import jax.numpy as jnp
import numpy as np

from mixcon.mixers.embedding import (
    HardDraws,
    anchor_exclusive,
    anchor_inclusive,
    geodesic_mix,
    hard_negative_mix,
    hardest,
    query_mix,
    slerp,
)
from mixcon.mixers.linear import select_weight
from mixcon.mixers.partner import label_kernel_logits
from mixcon.mixers.plan import Plan, make_plan, mix, mix_pairs, mix_targets
from mixcon.mixers.text import union_mask


def test_slerp_and_geodesic_mix(golden, close):
    for case in golden("geodesic-mixup")[:2]:
        image, text = (jnp.asarray(case.inp[k], jnp.float32) for k in ("image_features", "text_features"))
        reverse = jnp.arange(len(image))[::-1]
        for name in ("lam_v", "lam_l", "lam_vl", "lam_m"):
            lam = float(case.inp[name])
            close(slerp(image, text, lam), case.out[f"slerp_image_text/{name}"])
            plan = make_plan(reverse, lam)
            close(geodesic_mix(plan, image), case.out[f"slerp_image_flip/{name}"])


def test_mochi(golden, close):
    for case in golden("mochi")[:3]:
        inp, out = case.inp, case.out
        q, queue = (jnp.asarray(inp[k], jnp.float32) for k in ("q", "queue"))
        draws = HardDraws(*(jnp.asarray(inp[k]) for k in ("idx_i", "idx_j", "alpha", "idx_q", "beta")))
        draws = draws._replace(alpha=draws.alpha.astype(jnp.float32), beta=draws.beta.astype(jnp.float32))
        hard = hardest(q, queue, int(inp["num_hard"]))
        np.testing.assert_array_equal(hard, out["hard_idx"])
        close(hard_negative_mix(queue, hard, draws), out["mix_hard"])
        close(query_mix(q, queue, hard, draws), out["mix_query"])


def test_supremix_mixtures(golden, close):
    for case in golden("supremix")[:2]:
        labels = jnp.asarray(np.tile(case.inp["labels"], 2), jnp.float32)
        mixed, mask = anchor_inclusive(labels, jnp.asarray(case.inp["lam"], jnp.float32))
        np.testing.assert_array_equal(mask, case.out["mix_neg_mask"])
        close(jnp.where(mask, mixed, 0), np.where(case.out["mix_neg_mask"], case.out["mix_neg_label"], 0))
        alpha, mask = anchor_exclusive(labels, float(case.inp["window"]))
        np.testing.assert_array_equal(mask, case.out["mix_pos_mask"])
        close(alpha, np.where(case.out["mix_pos_mask"], case.out["mix_pos_alpha"], 0))


def test_cmixup_sampling_rates_and_mixing(golden, close):
    rates, mlp = golden("cmixup")[:2]
    logits = label_kernel_logits(jnp.asarray(rates.inp["y"], jnp.float32), bandwidth=float(rates.inp["bandwidth"]))
    close(jax.nn.softmax(logits, axis=-1), rates.out["rates"])

    inp, out = mlp.inp, mlp.out
    arrays = {k: jnp.asarray(v, jnp.float32) for k, v in inp.items() if k not in ("kind", "lam")}
    plan = make_plan(jnp.arange(6), float(inp["lam"]))
    close(mix(plan, arrays["y1"], arrays["y2"]), out["mix_y"])

    def layer(x, n):
        y = x @ arrays[f"w{n}"].T + arrays[f"b{n}"][None]
        return y if n == 3 else jnp.where(y > 0, y, 0.1 * y)

    def predict(level, x1, x2):
        h = layer(mix(plan, x1, x2), 1) if level == "input" else mix(plan, layer(x1, 1), layer(x2, 1))
        return layer(layer(h, 2), 3)

    for level in ("input", "manifold"):

        def loss(x1, x2, level=level):
            return jnp.square(predict(level, x1, x2) - jnp.asarray(out["mix_y"], jnp.float32)).mean()

        close(predict(level, arrays["x1"], arrays["x2"]), out[f"pred_{level}"])
        grads = jax.grad(loss, (0, 1))(arrays["x1"], arrays["x2"])
        for name, grad in zip(("x1", "x2"), grads, strict=True):
            close(grad, out[f"grad_{name}_{level}"])


def test_mixco(golden, close):
    case = golden("m3col")[0]
    x, weight = (jnp.asarray(case.inp[k], jnp.float32) for k in ("x", "lam"))
    plan = Plan(jnp.asarray(case.inp["perm"], jnp.int32), select_weight(weight, jnp.asarray(case.inp["select"])))
    close(plan.weight, case.out["betas"])
    close(mix(plan, x), case.out["mixed"])


def test_m3co_loss_is_a_cross_entropy_with_mixed_pairs(golden, close):
    """The target of the contrastive loss is the plan itself."""
    case = golden("m3col")[1]
    mixed, fixed = (jnp.asarray(case.inp[k], jnp.float32) for k in ("mixed", "fixed"))
    plan = make_plan(jnp.asarray(case.inp["perm"], jnp.int32), jnp.asarray(case.inp["betas"], jnp.float32))
    unit = [v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (mixed, fixed)]
    logits = unit[0] @ unit[1].T / float(case.inp["temperature"])
    target = mix_pairs(plan, jnp.eye(8))
    np.testing.assert_allclose(mix_pairs(plan).matrix(8, 8), target, rtol=1e-6)
    rows = -(target * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    cols = -(target.T * jax.nn.log_softmax(logits.T, axis=1)).sum(1).mean()
    close((rows + cols) / 2, case.out["loss_accumulated_targets"])


def test_multi_mixup(golden, close):
    case = golden("rankmixup")[3]
    plan = make_plan(jnp.asarray(case.inp["perm"], jnp.int32), float(case.inp["lam"]))
    close(mix(plan, jnp.asarray(case.inp["x"], jnp.float32)), case.out["x_mix"])
    labels = jnp.asarray(case.inp["labels"], jnp.int32)
    close(mix_targets(plan, labels, num_classes=int(case.inp["num_classes"])), case.out["y_mix"])


def test_text_mixup(golden, close):
    case = next(c for c in golden("augment-pet") if str(c.inp["kind"]) == "mixup")
    inp, out = case.inp, case.out
    plan = make_plan(jnp.asarray(inp["perm"], jnp.int32), jnp.asarray(inp["lam"], jnp.float32))
    close(mix(plan, jnp.asarray(inp["embeddings"], jnp.float32)), out["mixed_embeddings"])
    close(mix(plan, jnp.asarray(inp["hidden"], jnp.float32)), out["mixed_hidden"])
    close(union_mask(plan, jnp.asarray(inp["mask"])), out["mixed_mask"])
    classes = out["targets"].shape[1]
    close(mix_targets(plan, jnp.asarray(inp["labels"], jnp.int32), num_classes=classes), out["targets"])
