"""Losses that take mixed targets: soft and binary cross-entropy, the pair form, decoupled mixup, and their neighbours.

N mixed examples, K classes. Everything is computed in float32 or wider; losses are means over examples.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import wide_dtype

FAR = -1e30  # a removed logit: finite, so that its gradient is zero and not NaN
Rescale = Literal["none", "pow", "exp"]


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
    _check_labels(logits, y_a, y_b)
    log_p = jax.nn.log_softmax(_wide(logits), axis=-1)
    each = []
    for y in (y_a, y_b):
        target = smooth_targets(jax.nn.one_hot(y, logits.shape[-1], dtype=log_p.dtype), smoothing, smoothing_mode)
        each.append(-(target * log_p).sum(axis=-1))
    share = jnp.broadcast_to(weight, y_a.shape).astype(log_p.dtype)
    if reduction == "batch_mean":
        share, each = share.mean(), [e.mean() for e in each]
    return (share * each[0] + (1.0 - share) * each[1]).mean()


def _check_labels(logits: Array, *labels: Array) -> None:
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
        targets: in [0, 1], [N, K].
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


def rescale_weight(weight: Array, *, threshold: float = 1.0, power: float = 1.0, kind: Rescale = "pow") -> Array:
    """Decoupled mixup's rescaling: r(w) = 1 for w ≥ ξ, else `(w/ξ)^|t|` ("pow") or its exponential form ("exp").

    Args:
        weight: w, any shape.
        threshold: ξ in (0, 1].
        power: t.
        kind: "none" is r = 1.
    Returns:
        r(w), in the shape of w.
    Raises:
        InputError: ξ outside (0, 1]; "exp" with |t| of 0 or 1; unknown kind.
    Example:
        >>> rescale_weight(jnp.array([0.4, 0.9]), threshold=0.8).tolist()
        [0.5, 1.0]

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError(f"threshold must lie in (0, 1]; got {threshold}.")
    if kind == "none":
        return jnp.ones_like(weight)
    t = abs(power)
    if kind == "pow":
        risen = (weight / threshold) ** t
    elif kind == "exp":
        if t in (0.0, 1.0):
            raise InputError(f"the exponential rescaling needs |power| other than 0 and 1; got {power}.")
        base = t ** (-2.0 * threshold)
        risen = (t ** (2.0 * weight - 2.0 * threshold) - base) / (1.0 - base)
    else:
        raise InputError(f"kind must be 'none', 'pow' or 'exp'; got {kind!r}.")
    return jnp.where(weight >= threshold, 1.0, risen).astype(weight.dtype)


def two_hot_targets(
    plan: Plan,
    labels: Array,
    *,
    num_classes: int,
    threshold: float = 1.0,
    power: float = 1.0,
    kind: Rescale = "none",
    rescale: tuple[bool, bool] = (True, True),
    scale: float = 1.0,
    cap: bool = True,
) -> Array:
    """Targets of a sigmoid head, `y = r(w) 1_a + r(1-w) 1_b`, scaled and capped at 1: decoupled mixup for BCE.

    Args:
        plan: a two-source plan.
        labels: int [N].
        num_classes: K.
        threshold, power, kind: as `rescale_weight`.
        rescale: which of the two sources is rescaled (the other keeps its weight).
        scale: ŝ, multiplies the targets.
        cap: cut at 1 (the published code does so only for ŝ < 1).
    Returns:
        float [N, K].
    Raises:
        InputError: a k-source plan; as `rescale_weight`.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.3, 1.0]))
        >>> two_hot_targets(plan, jnp.array([0, 1]), num_classes=3)[0].tolist()
        [1.0, 1.0, 0.0]

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    if plan.partner.ndim != 1:
        raise InputError("two_hot_targets needs a two-source plan [B].")
    shares = [
        rescale_weight(w, threshold=threshold, power=power, kind=kind) if on else w
        for w, on in zip((plan.weight, 1.0 - plan.weight), rescale, strict=True)
    ]
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    targets = scale * (shares[0][:, None] * hot + shares[1][:, None] * hot[plan.partner])
    return jnp.minimum(targets, 1.0) if cap else targets


def partner_removed_log_softmax(logits: Array, keep: Array, drop: Array) -> Array:
    """`log( e^{z_keep} / Σ_{c ≠ drop} e^{z_c} )` of each row: the partner's class is out of the denominator. [N].

    Args:
        logits: [N, K].
        keep, drop: int classes [N].
    Returns:
        [N]; the gradient at the dropped logit is exactly zero.
    Example:
        >>> round(float(partner_removed_log_softmax(jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1]))[0]), 4)
        -0.6931

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    z = _wide(logits)
    dropped = jax.nn.one_hot(drop, z.shape[-1], dtype=bool) & (keep != drop)[:, None]
    kept = jnp.take_along_axis(z, keep[:, None], axis=-1)[:, 0]
    return kept - jax.nn.logsumexp(jnp.where(dropped, FAR, z), axis=-1)


def decoupled_mixup(
    logits: Array,
    y_a: Array,
    y_b: Array,
    weight: Array,
    *,
    eta: float = 0.1,
    kind: Rescale = "pow",
    threshold: float = 1.0,
    power: float = 1.0,
    mode: Literal["both", "less", "more"] = "both",
    mode_threshold: float = 0.5,
    eta_order: Literal["role", "first_row"] = "role",
    skip_half: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Mixup cross-entropy plus a regulariser: each class must win against all classes but its partner.

    `L = mean_i [CE_mix,i + active_i (η_A G^A_i + η_B G^B_i)]`, `G^A = -log softmax without b`; active rows have two
    classes
    and min(w, 1-w) > 0.001. power=0 with mode="both" is the paper's constant η.

    Args:
        logits: [N, K], K ≥ 3.
        y_a, y_b: int classes [N].
        weight: own share, [] or [N].
        eta: η ≥ 0.
        kind, threshold, power: `rescale_weight` of η by each side's share.
        mode: regularise both sides, the smaller share only ("less") or the larger only ("more").
        mode_threshold: θ, where a share counts as smaller.
        eta_order: "first_row" assigns η_A, η_B by class order in the first two-class row, as the published code.
        skip_half: skip rows with w = ½ exactly, as the published code.
    Returns:
        (loss, {"mix_ce", "reg_a", "reg_b"}), scalars; loss is their sum.
    Raises:
        InputError: K < 3; eta < 0; θ outside [0, 1]; unknown mode; as `rescale_weight`.
    Example:
        >>> z, a, b = jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1])
        >>> loss, parts = decoupled_mixup(z, a, b, jnp.float32(0.5), power=0.0)
        >>> round(float(parts["reg_a"]), 4)
        0.0693

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    _check_labels(logits, y_a, y_b)
    if logits.shape[-1] < 3:
        raise InputError(
            f"decoupled mixup needs at least 3 classes (with 2 the regulariser is 0); got {logits.shape[-1]}."
        )
    if eta < 0 or not 0 <= mode_threshold <= 1:
        raise InputError(f"want eta ≥ 0 and mode_threshold in [0, 1]; got {eta}, {mode_threshold}.")
    if mode not in ("both", "less", "more") or eta_order not in ("role", "first_row"):
        raise InputError(f"mode must be 'both', 'less' or 'more' and eta_order 'role' or 'first_row'; got {mode!r}, "
                         f"{eta_order!r}.")  # fmt: skip
    dtype = _wide(logits).dtype
    share = jnp.broadcast_to(weight, y_a.shape).astype(dtype)
    etas = [eta * rescale_weight(w, threshold=threshold, power=power, kind=kind) for w in (share, 1.0 - share)]
    if mode != "both":
        first = (share < mode_threshold) == (mode == "less")
        etas = [jnp.where(first, etas[0], 0.0), jnp.where(first, 0.0, etas[1])]
    if eta_order == "first_row":
        row = jnp.argmax(y_a != y_b)
        etas = [jnp.where(y_a[row] > y_b[row], etas[1], etas[0]), jnp.where(y_a[row] > y_b[row], etas[0], etas[1])]
    active = (y_a != y_b) & (jnp.minimum(share, 1.0 - share) > 1e-3)
    if skip_half:
        active &= share != 0.5
    removed = [partner_removed_log_softmax(logits, a, b) for a, b in ((y_a, y_b), (y_b, y_a))]
    reg = [jnp.where(active, -e * g, 0.0).mean() for e, g in zip(etas, removed, strict=True)]
    mix_ce = pair_cross_entropy(logits, y_a, y_b, share)
    return mix_ce + reg[0] + reg[1], {"mix_ce": mix_ce, "reg_a": reg[0], "reg_b": reg[1]}


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
