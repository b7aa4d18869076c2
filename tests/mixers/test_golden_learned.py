"""Learned mixers: masks, losses and gradients against the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixcon.mixers import interval, learned
from mixcon.mixers.linear import simplex_mixup
from mixcon.mixers.losses import soft_cross_entropy
from mixcon.mixers.plan import Plan, mix, mix_targets


def f32(value):
    return jnp.asarray(value, jnp.float32)


def kernel(weight):
    """A 1×1 convolution [O, I, 1, 1] as a matrix [I, O]."""
    return f32(weight).reshape(weight.shape[0], weight.shape[1]).T


def fill(layer, params, name):
    layer.kernel = nnx.Param(kernel(params[f"{name}.weight"]))
    if f"{name}.bias" in params:
        layer.bias = nnx.Param(f32(params[f"{name}.bias"]))


def prefixed(case, prefix, side="inp"):
    return {k[len(prefix) :]: v for k, v in getattr(case, side).items() if k.startswith(prefix)}


def check_linear(close, layer_grad, grads, name, floor=0.0):
    for ours, key, turn in (("kernel", "weight", kernel), ("bias", "bias", f32)):
        if f"{name}.{key}" in grads:
            expected = np.asarray(turn(grads[f"{name}.{key}"]))
            if np.abs(expected).max() > floor:
                close(getattr(layer_grad, ours)[...], expected, 2e-5)
            else:
                np.testing.assert_allclose(getattr(layer_grad, ours)[...], expected, atol=1e-7)


@pytest.mark.parametrize("index", [0, 1])
def test_pixel_mix_block(golden, nhwc, close, index):
    case = golden("openmixup-pixelmixblock")[index]
    inp, out = case.inp, case.out
    features, x, cotangent = (f32(nhwc(inp[k])) for k in ("features", "x", "cotangent"))
    params, grads = prefixed(case, "param/"), prefixed(case, "grad/", "out")
    samix = bool(inp["x_qk_concat"])
    block = learned.MixBlock(
        8,
        int(inp["scale_factor"]),
        rngs=nnx.Rngs(0),
        variant="samix" if samix else "automix",
        upsample="bilinear" if inp["bilinear"] else "nearest",
        weight_k=float(inp["lam_mul_k"]),
        value_hidden=4,
    )
    names = {"query": "query.conv"}
    if samix:
        names |= {"key": "key.conv", "value_in": "value.conv.0.conv", "value_out": "value.conv.1.conv"}
        block.value_norm.scale = nnx.Param(f32(params["value.conv.0.bn.weight"]))
        block.value_norm.bias = nnx.Param(f32(params["value.conv.0.bn.bias"]))
    else:
        names |= {"value": "value"}
    for ours, theirs in names.items():
        fill(getattr(block, ours), params, theirs)
    block.train()
    partner, weight = jnp.asarray(inp["perm"]), f32(inp["lam"])

    def scalar(block):
        plan = learned.automix(block, features, partner, weight)
        loss = learned.mask_mean_loss(plan.mask, weight, margin=float(inp["loss_margin"]), variance=2.0 * samix)
        mixed = mix(plan, x)
        return (mixed * cotangent).mean() + loss, (plan.mask, loss, mixed)

    (value, (mask, loss, mixed)), grad = nnx.value_and_grad(scalar, has_aux=True)(block)
    close(jnp.concatenate([mask, 1 - mask], axis=-1), nhwc(out["mask"]))
    close(loss, out["mask_loss"], 5e-5)  # a small difference of shares near a half, in float32
    close(mixed, nhwc(out["x_mixed"]))
    close(value, out["scalar"], 2e-5)
    for ours, theirs in names.items():
        check_linear(close, getattr(grad, ours), grads, theirs, floor=1e-7)
    if samix:
        close(grad.value_norm.scale[...], grads["value.conv.0.bn.weight"], 2e-5)
        close(grad.value_norm.bias[...], grads["value.conv.0.bn.bias"], 2e-5)


def adaptive_mask(params, scale, bilinear, weight_channel):
    upsample = "bilinear" if bilinear else "nearest"
    net = learned.AdaptiveMask(8, scale, rngs=nnx.Rngs(0), upsample=upsample, weight_channel=weight_channel)
    for ours, theirs in (("query", "conv_q.conv"), ("key", "conv_k.conv"), ("value", "conv_v")):
        fill(getattr(net, ours), params, theirs)
    return net


@pytest.mark.parametrize("index", [0, 1])
def test_adaptive_mask(golden, nhwc, close, index):
    case = golden("adautomix")[index]
    inp, out = case.inp, case.out
    lam = np.atleast_1d(inp["lam"])
    lam = np.array([lam[0], 1 - lam[0]]) if len(lam) == 1 else lam
    count = len(lam)
    features = jnp.stack([f32(nhwc(inp[f"features_{i}"])) for i in range(count)])
    images = jnp.stack([f32(nhwc(inp[f"x_{i}"])) for i in range(count)])
    net = adaptive_mask(prefixed(case, "param/"), int(inp["scale_factor"]), inp["bilinear"], bool(inp["lam_concat"]))
    cotangent = f32(nhwc(inp["cotangent"]))

    def scalar(net):
        mask = net(features, f32(lam))
        mixed = (jnp.moveaxis(mask, -1, 0)[..., None] * images).sum(axis=0)
        return 10 * (mixed * cotangent).mean(), (mask, mixed)

    (_, (mask, mixed)), grad = nnx.value_and_grad(scalar, has_aux=True)(net)
    close(mask, nhwc(out["mask"]))
    close(mixed, nhwc(out["x_mixed"]))
    grads = prefixed(case, "grad/", "out")
    for ours, theirs in (("query", "conv_q.conv"), ("key", "conv_k.conv"), ("value", "conv_v")):
        check_linear(close, getattr(grad, ours), grads, theirs, floor=1e-6)


def test_adamixup_policy(golden, close):
    inp, out = golden("adamixup")[0].inp, golden("adamixup")[0].out
    drawn = interval.interval_weight(f32(inp["policy_logits"]), f32(inp["u"]))
    for name, ours in (("gamma", drawn.weight), ("alpha", drawn.alpha), ("delta", drawn.delta)):
        close(ours, out[name])
    close(interval.policy_gate(*(f32(inp[k]) for k in ("gate_noise1", "gate_noise2", "x1", "x2"))), out["gate"])


@pytest.mark.parametrize("index", [1, 2])
def test_adamixup_objective(golden, close, index):
    case = golden("adamixup")[index]
    inp, out = case.inp, case.out
    a, b, unseen, wc, bc, wd, bd = (f32(inp[k]) for k in ("x1", "x2", "x_unseen", "wc", "bc", "wd", "bd"))
    labels = [jnp.asarray(inp[k], jnp.int32) for k in ("labels1", "labels2")]
    classes = int(inp["num_classes"])
    hot = jax.nn.one_hot(labels[0], classes)

    def loss(policy, stop=True, parts=(1.0, 1.0)):
        drawn = interval.interval_weight(policy, f32(inp["u"]))
        plan = Plan(jnp.arange(len(a)), drawn.weight)
        labelled = interval.stop_weights(plan) if stop else plan
        x_mix, y_mix = mix(plan, a, b), mix_targets(labelled, labels[0], num_classes=classes, bank=labels[1])
        logits = jnp.concatenate([x_mix, a]) @ wc + bc[None]
        classify = soft_cross_entropy(logits, jnp.concatenate([y_mix, hot]))
        real, mixed = (v @ wd + bd[None] for v in (jnp.concatenate([unseen, a]), x_mix))
        intrude = interval.intrusion_loss(real, mixed)
        return parts[0] * classify + parts[1] * intrude, (x_mix, y_mix, classify, intrude)

    policy = f32(inp["policy_logits"])
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(policy)
    for name, ours in zip(("x_mix", "y_mix", "loss_class", "loss_intrusion"), aux, strict=True):
        close(ours, out[name])
    close(value, out["loss"])
    close(grad, out["grad_policy_label_stopped"])
    close(jax.grad(lambda p: loss(p, False)[0])(policy), out["grad_policy_label_through"])
    close(jax.grad(lambda p: loss(p, True, (0.0, 1.0))[0])(policy), out["grad_policy_intrusion_only"])


def test_policies_start_at_the_middle_third():
    head = interval.PolicyHead(16, rngs=nnx.Rngs(0))
    logits = head(jax.random.normal(jax.random.key(0), (64, 16)))
    drawn = interval.interval_weight(logits, jnp.linspace(0, 1, 64))
    np.testing.assert_allclose(drawn.weight, jnp.linspace(1 / 3, 2 / 3, 64), atol=1e-3)


def test_simplex_weights_sum_to_one():
    for law in ("beta", "dirichlet"):
        plan = simplex_mixup(jax.random.key(1), jnp.zeros((6, 2)), num_sources=4, law=law)
        np.testing.assert_allclose(plan.weight.sum(1), 1.0, rtol=1e-6)
