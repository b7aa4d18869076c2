"""How a classifier is scored on mixed targets: losses of `(logits, classes, shares)`, chosen by name in a config.

N mixed examples, k sources, C classes. Each returns `(loss, metrics)`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.decoupled import Rescale, decoupled_mixup, rescale_weight
from mixcon.mixers.losses import binary_cross_entropy, smooth_targets, soft_cross_entropy

Score = tuple[Array, dict[str, Array]]


def target_rows(classes: Array, shares: Array, *, num_classes: int) -> Array:
    """Dense targets `y_i = Σ_k share_ik 1[class_ik]`: int and float [N, k] → float32 [N, C].

    Example:
        >>> target_rows(jnp.array([[0, 2]]), jnp.array([[0.75, 0.25]]), num_classes=3).tolist()
        [[0.75, 0.0, 0.25]]
    """
    if classes.shape != shares.shape or classes.ndim != 2:
        raise InputError(f"classes and shares must both be [N, k]; got {list(classes.shape)}, {list(shares.shape)}.")
    return (jax.nn.one_hot(classes, num_classes, dtype=jnp.float32) * shares[..., None].astype(jnp.float32)).sum(axis=1)


def soft(logits: Array, classes: Array, shares: Array, *, smoothing: float = 0.0) -> Score:
    """Cross-entropy with the mixed row; `soft_cross_entropy` of `target_rows`, label smoothing ε.

    Example:
        >>> round(float(soft(jnp.zeros((1, 2)), jnp.array([[0, 1]]), jnp.array([[0.5, 0.5]]))[0]), 4)
        0.6931
    """
    rows = smooth_targets(target_rows(classes, shares, num_classes=logits.shape[-1]), smoothing)
    return soft_cross_entropy(logits, rows, normalised=False), {}


def binary(
    logits: Array,
    classes: Array,
    shares: Array,
    *,
    smoothing: float = 0.0,
    threshold: float | None = None,
    neg_weight: float = 1.0,
) -> Score:
    """A sigmoid for every class, sum over classes: `binary_cross_entropy`, as in the "ResNet strikes back" recipes.

    Example:
        >>> round(float(binary(jnp.zeros((1, 2)), jnp.array([[0, 1]]), jnp.array([[0.5, 0.5]]))[0]), 4)
        1.3863
    """
    rows = smooth_targets(target_rows(classes, shares, num_classes=logits.shape[-1]), smoothing)
    return binary_cross_entropy(logits, rows, neg_weight=neg_weight, threshold=threshold), {}


def decoupled(
    logits: Array,
    classes: Array,
    shares: Array,
    *,
    eta: float = 0.1,
    kind: Rescale = "pow",
    threshold: float = 1.0,
    power: float = 1.0,
    mode: Literal["both", "less", "more"] = "both",
    mode_threshold: float = 0.5,
) -> Score:
    """`decoupled_mixup`: soft cross-entropy, and each class against all but its partner. Needs two sources.

    Example:
        >>> z, shares = jnp.zeros((1, 3)), jnp.array([[0.5, 0.5]])
        >>> round(float(decoupled(z, jnp.array([[0, 1]]), shares, power=0.0)[0]), 4)
        1.2372

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    first, second = _pair(classes)
    options = dict(eta=eta, kind=kind, threshold=threshold, power=power, mode=mode, mode_threshold=mode_threshold)
    return decoupled_mixup(logits, first, second, shares[:, 0], **options)  # type: ignore[arg-type]


def two_hot(
    logits: Array,
    classes: Array,
    shares: Array,
    *,
    kind: Rescale = "pow",
    threshold: float = 0.8,
    power: float = 1.0,
    neg_weight: float = 1.0,
) -> Score:
    """Decoupled mixup for a sigmoid head: targets `r(w) 1_a + r(1-w) 1_b`, cut at 1. Needs two sources.

    Example:
        >>> round(float(two_hot(jnp.zeros((1, 3)), jnp.array([[0, 1]]), jnp.array([[0.5, 0.5]]))[0]), 4)
        2.0794

    Reference:
        Liu, Li et al., "Harnessing Hard Mixed Samples with Decoupled Regularizer", 2023
    """
    _pair(classes)
    risen = rescale_weight(shares, threshold=threshold, power=power, kind=kind)
    rows = jnp.minimum(target_rows(classes, risen, num_classes=logits.shape[-1]), 1.0)
    return binary_cross_entropy(logits, rows, neg_weight=neg_weight), {}


def _pair(classes: Array) -> tuple[Array, Array]:
    if classes.shape[-1] != 2:
        raise InputError(f"this loss is for two sources, the mixer gives {classes.shape[-1]}: take soft or binary.")
    return classes[:, 0], classes[:, 1]
