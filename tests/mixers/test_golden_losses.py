"""Losses with mixed targets against the published heads (values and gradients)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.mixers import decoupled, losses
from mixcon.mixers.plan import Plan, make_plan, mix_targets
from mixcon.mixers.sumix import sumix_loss

RESCALE = ("none", "pow", "exp")


def f32(value):
    return jnp.asarray(value, jnp.float32)


def two_rows(case):
    """A plan whose own rows are the mixed examples and whose partners follow them, with the labels of both."""
    n = len(case.inp["y_a"])
    weight = jnp.broadcast_to(f32(case.inp["lam"]), (n,))
    plan = Plan(jnp.arange(n, 2 * n), weight)
    return plan, jnp.concatenate([jnp.asarray(case.inp["y_a"]), jnp.asarray(case.inp["y_b"])])


def both_targets(case, smoothing=0.0):
    plan, labels = two_rows(case)
    n, classes = case.inp["logits"].shape
    return mix_targets(plan, labels[:n], num_classes=classes, smoothing=smoothing, bank=labels)


@pytest.mark.parametrize("index", [0, 1])
def test_mixup_heads(golden, close, index):
    case = golden("openmixup-losses")[index]
    logits, y_a, y_b = f32(case.inp["logits"]), jnp.asarray(case.inp["y_a"]), jnp.asarray(case.inp["y_b"])
    weight = f32(case.inp["lam"])
    target = both_targets(case)
    hot = jax.nn.one_hot(y_a, logits.shape[1]) + jax.nn.one_hot(y_b, logits.shape[1])

    def pair(**options):
        return lambda z: losses.pair_cross_entropy(z, y_a, y_b, weight, reduction="batch_mean", **options)

    heads = {
        "ce_pair": pair(),
        "ls_pair_original": pair(smoothing=0.1),
        "ls_pair_classy": pair(smoothing=0.1, smoothing_mode="classy"),
        "soft_ce": lambda z: losses.soft_cross_entropy(z, target),
        "ls_soft_original": lambda z: losses.soft_cross_entropy(z, losses.smooth_targets(target, 0.1)),
        "bce": lambda z: losses.binary_cross_entropy(z, target),
        "bce_neg05": lambda z: losses.binary_cross_entropy(z, target, neg_weight=0.5),
        "ls_multilabel": lambda z: losses.binary_cross_entropy(z, losses.smooth_targets(target, 0.1, "multilabel")),
        "bce_two_hot": lambda z: losses.binary_cross_entropy(z, hot),
    }
    for name, head in heads.items():
        value, grad = jax.value_and_grad(head)(logits)
        close(value, case.out[f"{name}/loss"])
        close(grad, case.out[f"{name}/grad"])
    if "ce_pair_per_sample/loss" in case.out:
        close(losses.pair_cross_entropy(logits, y_a, y_b, weight), case.out["ce_pair_per_sample/loss"])
    else:
        close(losses.mixed_accuracy(logits, y_a, y_b, weight), case.out["acc_mix"][0])
    close(losses.soft_cross_entropy(logits, both_targets(case, 0.1)), case.out["ls_soft_original/loss"])


@pytest.mark.parametrize("index", range(3))
def test_decoupled_mixup(golden, close, index):
    case = golden("decoupled-mixup")[index]
    inp, out = case.inp, case.out
    y_a, y_b = jnp.asarray(inp["y_a"]), jnp.asarray(inp["y_b"])
    options = {
        "eta": float(inp["eta"]),
        "kind": RESCALE[int(inp["rescale"])],
        "threshold": float(inp["lam_thr"]),
        "power": float(inp["lam_idx"]),
        "mode": ("both", "less", "more")[int(inp["mode"])],
        "mode_threshold": float(inp["eta_thr"]),
    }

    def loss(z, order):
        return decoupled.decoupled_mixup(z, y_a, y_b, f32(inp["lam"]), eta_order=order, **options)

    logits = f32(inp["logits"])
    (value, parts), _ = jax.value_and_grad(loss, has_aux=True)(logits, "role")
    close(value, out["loss_paper"])
    close(parts["mix_ce"], out["loss_mixup_ce"])
    (value, _), grad = jax.value_and_grad(loss, has_aux=True)(logits, "first_row")
    close(value, out["loss_code"])
    close(grad, out["grad_code"])


def test_decoupled_bce(golden, close):
    case = golden("decoupled-mixup")[3]
    inp = case.inp
    plan, labels = two_rows(case)
    n, classes = inp["logits"].shape
    everyone = Plan(jnp.concatenate([plan.partner, jnp.arange(n)]), jnp.tile(plan.weight, 2))
    target = decoupled.two_hot_targets(
        everyone,
        labels,
        num_classes=classes,
        threshold=float(inp["lam_thr"]),
        power=float(inp["lam_idx"]),
        kind=RESCALE[int(inp["rescale"])],
        rescale=(bool(inp["rescale_a"]), bool(inp["rescale_b"])),
        scale=float(inp["two_hot_scale"]),
        cap=False,
    )[:n]
    weigh = lambda z: losses.binary_cross_entropy(z, target, neg_weight=float(inp["neg_weight"]))  # noqa: E731
    value, grad = jax.value_and_grad(weigh)(f32(inp["logits"]))
    close(value, case.out["loss_bce"])
    close(grad, case.out["grad_bce"])


def test_the_regulariser_never_trades_one_class_for_the_other():
    z = jax.random.normal(jax.random.key(0), (5, 7))
    a, b = jnp.arange(5), (jnp.arange(5) + 2) % 7
    grad = jax.grad(lambda z: -decoupled.partner_removed_log_softmax(z, a, b).sum())(z)
    rows = np.arange(5)
    np.testing.assert_array_equal(np.asarray(grad)[rows, b], 0.0)
    p = np.exp(np.asarray(decoupled.partner_removed_log_softmax(z, a, b)))
    np.testing.assert_allclose(np.asarray(grad)[rows, a], -(1 - p), rtol=1e-5)


def mix_loss(feature, inp, plan):
    unit = feature / jnp.linalg.norm(feature, axis=1, keepdims=True)
    options = {"temperature": float(inp["temperature"])}
    return losses.mixed_info_nce(unit, f32(inp["key"]), f32(inp["queue"]).T, plan, **options)


def test_mixed_info_nce(golden, close):
    for case in golden("openmixup-ssl-mix"):
        inp = case.inp
        plan = make_plan(jnp.asarray(inp["perm"]), float(inp["lam"]))
        value, grad = jax.value_and_grad(mix_loss)(f32(inp["mix_feature"]), inp, plan)
        close(value, float(inp["lam"]) * case.out["loss_a"] + (1 - float(inp["lam"])) * case.out["loss_b"])
        close(grad, case.out["grad_mix_feature"])


@pytest.mark.parametrize("index", [0, 1])
def test_sumix(golden, close, index):
    case = golden("openmixup-sumix")[index]
    inp, out = case.inp, case.out
    labels, plan = jnp.asarray(inp["y_a"]), make_plan(jnp.asarray(inp["perm"]), float(inp["lam"]))
    np.testing.assert_array_equal(labels[plan.partner], inp["y_b"])
    clean, mixed = f32(inp["feature_clean"]), f32(inp["feature_mixed"])

    def loss(fc, fb, uw, ub):
        heads = [v @ w.T + b[None] for w, b in ((fc, fb), (uw, ub)) for v in (clean, mixed)]
        return sumix_loss(plan, *heads, labels, gamma=float(inp["gamma"]))

    args = tuple(f32(inp[k]) for k in ("fc_weight", "fc_bias", "unc_weight", "unc_bias"))
    value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*args)
    close(value, out["loss"])
    for name, grad in zip(("fc_weight", "fc_bias", "unc_weight", "unc_bias"), grads, strict=True):
        close(grad, out[f"grad_{name}"])
