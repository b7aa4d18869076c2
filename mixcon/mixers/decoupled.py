"""Decoupled mixup: each of two mixed classes must win against all others, with its partner out of the softmax.

N mixed examples, K classes; losses are means over examples, in float32 or wider.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.losses import check_labels, pair_cross_entropy
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import wide_dtype

FAR = -1e30  # a removed logit: finite, so that its gradient is zero and not NaN
Rescale = Literal["none", "pow", "exp"]


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
    z = logits.astype(wide_dtype(logits.dtype))
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
    check_labels(logits, y_a, y_b)
    if logits.shape[-1] < 3:
        raise InputError(
            f"decoupled mixup needs at least 3 classes (with 2 the regulariser is 0); got {logits.shape[-1]}."
        )
    if eta < 0 or not 0 <= mode_threshold <= 1:
        raise InputError(f"want eta ≥ 0 and mode_threshold in [0, 1]; got {eta}, {mode_threshold}.")
    if mode not in ("both", "less", "more") or eta_order not in ("role", "first_row"):
        raise InputError(f"mode must be 'both', 'less' or 'more' and eta_order 'role' or 'first_row'; got {mode!r}, "
                         f"{eta_order!r}.")  # fmt: skip
    dtype = wide_dtype(logits.dtype)
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
