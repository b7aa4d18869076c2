"""Losses that take mixed targets: soft and binary cross-entropy, the pair form, and their neighbours.

N mixed examples, K classes. Everything is computed in float32 or wider; losses are means over examples.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan, at
from mixcon.mixers.warp import wide_dtype


def _wide(x: Array) -> Array:
    return x.astype(wide_dtype(x.dtype))


def _check_pair(logits: Array, targets: Array) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise InputError(f"logits and targets must both be [N, K]; got {list(logits.shape)}, {list(targets.shape)}.")


def soft_cross_entropy(logits: Array, targets: Array, *, normalised: bool = True) -> Array:
    """Cross-entropy with mixed single-label targets, `mean_i -Σ_c y_ic log softmax(z_i)_c`.

    With the targets of `mix_targets` this is the per-example form of `w CE(y_a) + (1-w) CE(y_b)`.

    Args:
        logits: [N, K].
        targets: [N, K], rows summing to one.
        normalised: False allows other sums (SnapMix's and TokenMix's weights).
    Returns:
        Scalar.
    Raises:
        InputError: shapes differ; targets that are multi-label (integer rows, or known sums other than one).
    Example:
        >>> round(float(soft_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]]))), 4)
        0.6931

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018
    """
    _check_pair(logits, targets)
    if normalised:
        check_single_label(targets)
    return -(_wide(targets) * jax.nn.log_softmax(_wide(logits), axis=-1)).sum(axis=-1).mean()


def check_single_label(targets: Array) -> None:
    """Refuse multi-label rows for a softmax loss, as far as they can be told before compilation."""
    advice = (
        "use binary_cross_entropy for multi-label targets (or normalised=False for weights that do not sum to one)."
    )
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        raise InputError(f"targets are {targets.dtype} rows, so they are multi-label; {advice}")
    if not isinstance(targets, jax.core.Tracer):
        sums = np.asarray(targets, np.float64).sum(axis=-1)
        if np.abs(sums - 1).max(initial=0.0) > 1e-2:
            raise InputError(f"rows of targets sum to {sums.min():.3g}…{sums.max():.3g}, not 1: {advice}")


def pair_cross_entropy(
    logits: Array,
    y_a: Array,
    y_b: Array,
    weight: Array,
    *,
    smoothing: float = 0.0,
    smoothing_mode: Literal["original", "classy"] = "original",
    reduction: Literal["example", "batch_mean"] = "example",
) -> Array:
    """`mean_i [w_i CE(z_i, a_i) + (1 - w_i) CE(z_i, b_i)]`.

    Args:
        logits: [N, K].
        y_a, y_b: int classes of the example and its partner, [N].
        weight: own share, [] or [N].
        smoothing, smoothing_mode: label smoothing of both, see `smooth_targets`.
        reduction: "batch_mean" averages each CE before weighing by mean(w), as published heads do.
    Returns:
        Scalar.
    Raises:
        InputError: unknown reduction; labels of the wrong shape.
    Example:
        >>> z = jnp.array([[2.0, 0.0]])
        >>> round(float(pair_cross_entropy(z, jnp.array([0]), jnp.array([1]), jnp.float32(1.0))), 4)
        0.1269

    Reference:
        Li et al., "OpenMixup: Open Mixup Toolbox and Benchmark for Visual Representation Learning", 2022.
    """
    if reduction not in ("example", "batch_mean"):
        raise InputError(f"reduction must be 'example' or 'batch_mean'; got {reduction!r}.")
    check_labels(logits, y_a, y_b)
    log_p = jax.nn.log_softmax(_wide(logits), axis=-1)
    each = []
    for y in (y_a, y_b):
        target = smooth_targets(jax.nn.one_hot(y, logits.shape[-1], dtype=log_p.dtype), smoothing, smoothing_mode)
        each.append(-(target * log_p).sum(axis=-1))
    share = jnp.broadcast_to(weight, y_a.shape).astype(log_p.dtype)
    if reduction == "batch_mean":
        share, each = share.mean(), [e.mean() for e in each]
    return (share * each[0] + (1.0 - share) * each[1]).mean()


def check_labels(logits: Array, *labels: Array) -> None:
    """Refuse anything but logits [N, K] and integer labels [N]."""
    if logits.ndim != 2 or any(y.shape != logits.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer) for y in labels):
        raise InputError(f"want logits [N, K] and integer labels [N]; got {list(logits.shape)} and "
                         f"{[f'{y.dtype}{list(y.shape)}' for y in labels]}.")  # fmt: skip


def smooth_targets(
    targets: Array, amount: float, mode: Literal["original", "classy", "multilabel"] = "original"
) -> Array:
    """Label smoothing that composes with mixing (it is linear, so it may come before or after).

    "original": `(1-ε) y + ε/K`; "classy": the same with ε/(1+ε); "multilabel": 1-ε where y > 0, ε elsewhere.

    Args:
        targets: float [N, K].
        amount: ε in [0, 1).
        mode: the law.
    Returns:
        float [N, K].
    Raises:
        InputError: amount outside [0, 1); unknown mode.
    Example:
        >>> smooth_targets(jnp.array([[1.0, 0.0]]), 0.5).tolist()
        [[0.75, 0.25]]
    """
    if not 0.0 <= amount < 1.0:
        raise InputError(f"amount must lie in [0, 1); got {amount}.")
    if mode == "multilabel":
        return jnp.where(targets > 0, 1.0 - amount, amount).astype(targets.dtype)
    if mode not in ("original", "classy"):
        raise InputError(f"mode must be 'original', 'classy' or 'multilabel'; got {mode!r}.")
    eps = amount if mode == "original" else amount / (1.0 + amount)
    return (1.0 - eps) * targets + eps / targets.shape[-1]


def binary_cross_entropy(
    logits: Array, targets: Array, *, neg_weight: float = 1.0, threshold: float | None = None
) -> Array:
    """Binary cross-entropy of mixed or multi-label targets: sum over classes, mean over examples.

    Args:
        logits: [N, K].
        targets: in [0, 1], [N, K] (two-hot rows of one class twice reach 2, as published).
        neg_weight: ω, weight of the terms whose target is 0.
        threshold: if given, targets above it become 1 and the others 0 (as in the RSB recipe).
    Returns:
        Scalar.
    Raises:
        InputError: shapes differ; negative weight; threshold outside [0, 1).
    Example:
        >>> round(float(binary_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))), 4)
        1.3863

    Reference:
        Wightman, Touvron, Jégou, "ResNet Strikes Back", 2021
    """
    _check_pair(logits, targets)
    if neg_weight < 0 or (threshold is not None and not 0 <= threshold < 1):
        raise InputError(f"want neg_weight ≥ 0 and threshold in [0, 1); got {neg_weight}, {threshold}.")
    z, y = _wide(logits), _wide(targets)
    y = y if threshold is None else (y > threshold).astype(y.dtype)
    terms = jax.nn.softplus(z) - y.astype(z.dtype) * z
    return (jnp.where(y > 0, 1.0, neg_weight).astype(z.dtype) * terms).sum(axis=-1).mean()


def mixed_info_nce(query: Array, keys: Array, queue: Array, plan: Plan, *, temperature: float = 0.2) -> Array:
    """Self-supervised mixing with a queue: `w InfoNCE(q, k) + (1-w) InfoNCE(q, k_partner)`, the same negatives.

    Args:
        query: unit features of the mixed view [B, D].
        keys: unit features of the other view [B, D], constants.
        queue: unit negatives [M, D], constants.
        plan: a two-source plan.
        temperature: > 0.
    Returns:
        Scalar.
    Raises:
        InputError: temperature ≤ 0; a k-source plan.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]))
        >>> round(float(mixed_info_nce(jnp.eye(2), jnp.eye(2), jnp.zeros((1, 2)), plan, temperature=1.0)), 4)
        0.5032

    Reference:
        Kim, Lee, Bae, Yun, "MixCo: Mix-up Contrastive Learning for Visual Representation", 2020.
    """
    if temperature <= 0 or plan.partner.ndim != 1:
        raise InputError(f"want temperature > 0 and a two-source plan; got {temperature}, rank {plan.partner.ndim}.")
    query, keys, queue = (_wide(v) for v in (query, jax.lax.stop_gradient(keys), jax.lax.stop_gradient(queue)))
    negatives = query @ queue.T
    losses = []
    for key in (keys, keys[plan.partner]):
        positive = (query * key).sum(axis=-1, keepdims=True)
        logits = jnp.concatenate([positive, negatives], axis=1) / temperature
        losses.append(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])
    share = plan.weight.astype(query.dtype)
    return (share * losses[0] + (1.0 - share) * losses[1]).mean()


def smmix_loss(plan: Plan, mixed: Array, tokens: Array, clean: Array, labels: Array) -> Array:
    """SMMix's objective: the mixed cross-entropy, each region's own label, and consistency with the clean predictions.

    `CE(z, y') + ½ [CE(z_own, y_A) + CE(z_pasted, y_B)] + KL(softmax(λ p_A + (1-λ) p_B) ‖ softmax(z))`, where z_own and
    z_pasted are the mean logits of the tokens that the example kept and of those that were pasted in.

    Args:
        plan: of `smmix`, with its mask.
        mixed: logits of the mixed images [B, K].
        tokens: logits of their patches on a square grid [B, P, K] (a linear head of the last features).
        clean: logits of the un-mixed images [B, K], p; no gradient.
        labels: int [B].
    Returns:
        Scalar.
    Raises:
        InputError: shapes that do not fit; a plan without an image mask.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.full(2, 0.5), jnp.ones((1, 2, 2, 1)).at[:, 0].set(0.0))
        >>> z = jnp.zeros((2, 3))
        >>> round(float(smmix_loss(plan, z, jnp.zeros((2, 4, 3)), z, jnp.array([0, 1]))), 4)  # 2 log 3
        2.1972

    Reference:
        Chen et al., "SMMix: Self-Motivated Image Mixing for Vision Transformers", 2023
    """
    check_labels(mixed, labels)
    batch, classes = mixed.shape
    if plan.mask is None or plan.mask.ndim != 4 or plan.partner.shape != (batch,):
        raise InputError("smmix_loss needs the plan of smmix for this batch, with its image mask.")
    if tokens.ndim != 3 or tokens.shape[::2] != mixed.shape or clean.shape != mixed.shape:
        given = f"{list(tokens.shape)} and {list(clean.shape)}"
        raise InputError(f"want tokens [{batch}, P, {classes}] and clean [{batch}, {classes}]; got {given}.")
    side = round(tokens.shape[1] ** 0.5)
    if side**2 != tokens.shape[1] or any(size % side for size in plan.mask.shape[1:3]):
        raise InputError(f"{tokens.shape[1]} tokens are no square grid that divides the mask {list(plan.mask.shape)}.")
    other = labels[plan.partner]
    share = plan.weight.astype(_wide(mixed).dtype)
    own = at(plan._replace(warp=None), (side, side), flatten=True).mask
    assert own is not None
    own = jnp.broadcast_to(own, (batch, side * side, 1))

    def region(part: Array, target: Array) -> Array:
        part = part.astype(_wide(tokens).dtype)
        pooled = (part * _wide(tokens)).sum(axis=1) / jnp.maximum(part.sum(axis=1), 1e-6)
        return pair_cross_entropy(pooled, target, target, jnp.ones_like(share))

    p = _wide(jax.lax.stop_gradient(clean))
    log_wanted = jax.nn.log_softmax(share[:, None] * p + (1.0 - share)[:, None] * p[plan.partner], axis=-1)
    kl = (jnp.exp(log_wanted) * (log_wanted - jax.nn.log_softmax(_wide(mixed), axis=-1))).sum(axis=-1).mean()
    regions = region(own, labels) + region(1.0 - own, other)
    return pair_cross_entropy(mixed, labels, other, share) + 0.5 * regions + kl


def mixed_accuracy(logits: Array, y_a: Array, y_b: Array, weight: Array) -> Array:
    """Top-2 accuracy of a mixed batch in percent: the larger share wants first place, the smaller one second.

    Args:
        logits: [N, K]; y_a, y_b: int [N]; weight: own share [] or [N] (its mean is used).
    Returns:
        Scalar, 0…100.
    Example:
        >>> float(mixed_accuracy(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([0]), jnp.array([1]), jnp.float32(0.75)))
        100.0
    """
    top = jax.lax.top_k(logits, 2)[1]
    share = jnp.mean(weight)
    first, second = (jnp.where(share > 0.5, p, q) for p, q in ((y_a, y_b), (y_b, y_a)))
    most = jnp.maximum(share, 1.0 - share)
    return 100.0 * (most * (top[:, 0] == first).mean() + (1.0 - most) * (top[:, 1] == second).mean())
