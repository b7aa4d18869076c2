"""Mixers with one share for the whole example: mixup and its relatives for inputs, features, tokens and pairs."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, check_positive, own_weight, sample_weight, spread
from mixcon.mixers.partner import How, choose_partner, label_kernel_partner
from mixcon.mixers.plan import Plan, check_unit


def mixup(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """Mixup: `x' = λ x_i + (1 - λ) x_j`, λ ~ Beta(α, α).

    The same plan applied to a hidden layer is manifold mixup; to word embeddings, text mixup; to embeddings, i-Mix.

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        alpha: Beta parameter, > 0.
        weight: a given λ instead of a draw; scalar or [B], in [0, 1].
        per: one λ per "batch", "pair" or "example".
        partner: a rule of `choose_partner`, or indices [B].
    Returns:
        Plan without a mask.
    Raises:
        InputError: alpha ≤ 0, weight outside [0, 1], one example, odd batch for `per="pair"`.
    Example:
        >>> plan = mixup(jax.random.key(0), jnp.zeros((2, 3)), weight=0.25, partner="reverse")
        >>> plan.weight.tolist(), plan.partner.tolist()
        ([0.25, 0.25], [1, 0])

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018
    """
    key_partner, key_weight = jax.random.split(key)
    batch = x.shape[0]
    partners = choose_partner(key_partner, batch, partner, per)
    return Plan(partners, spread(own_weight(key_weight, batch, alpha, weight, per), batch, per))


def manifold_mixup(
    key: Array,
    x: Array,
    *,
    alpha: float = 2.0,
    layers: int = 3,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> tuple[Plan, Array]:
    """Manifold mixup: the plan of `mixup` and the layer to apply it at, ℓ ~ U{0, …, layers-1} (0 is the input).

    Gradients flow through both sources. Under jit choose with `jax.lax.cond`, or mix at every layer with the weight set
    to 1 where the layer is not the drawn one.

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        alpha: Beta parameter, > 0.
        layers: number of places to mix at.
        per, partner: as in `mixup`.
    Returns:
        (plan, layer int32 []).
    Raises:
        InputError: as `mixup`; layers < 1.
    Example:
        >>> plan, layer = manifold_mixup(jax.random.key(0), jnp.zeros((4, 3)), layers=1)
        >>> int(layer)
        0

    Reference:
        Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States", 2019
    """
    if layers < 1:
        raise InputError(f"layers must be ≥ 1; got {layers}.")
    key_plan, key_layer = jax.random.split(key)
    return mixup(key_plan, x, alpha=alpha, per=per, partner=partner), jax.random.randint(key_layer, (), 0, layers)


def mixco(
    key: Array, x: Array, *, alpha: float = 0.15, select: float = 0.5, partner: How | Array = "permutation"
) -> Plan:
    """MixCo as M3CoL uses it: λ_i ~ Beta(α, α) per example, and a share `select` of the examples is mixed at all.

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        alpha: Beta parameter, > 0.
        select: probability that an example is mixed; the others keep weight 1.
        partner: as in `mixup`.
    Returns:
        Plan without a mask.
    Raises:
        InputError: alpha ≤ 0, select outside [0, 1].
    Example:
        >>> mixco(jax.random.key(0), jnp.zeros((2, 3)), select=0.0).weight.tolist()
        [1.0, 1.0]

    Reference:
        Kim, Lee, Bae, Yun, "MixCo: Mix-up Contrastive Learning for Visual Representation", 2020; Kumar et al.,
        "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning", 2025
    """
    check_unit("select", select)
    key_partner, key_weight, key_select = jax.random.split(key, 3)
    batch = x.shape[0]
    weight = sample_weight(key_weight, batch, alpha=alpha, per="example")
    return Plan(
        choose_partner(key_partner, batch, partner),
        select_weight(weight, jax.random.uniform(key_select, (batch,)) < select),
    )


def select_weight(weight: Array, selected: Array) -> Array:
    """Weights with the unselected examples left whole: w where selected, else 1. [B]."""
    return jnp.where(selected, weight, 1.0)


def imix(key: Array, x: Array, *, alpha: float = 1.0, partner: How | Array = "permutation") -> Plan:
    """i-Mix: mixup whose targets are the virtual labels of instance discrimination (use `mix_pairs`/`sources`).

    Args, Returns, Raises: as `mixup`, with one λ per batch.
    Example:
        >>> imix(jax.random.key(0), jnp.zeros((4, 3))).weight.shape
        (4,)

    Reference:
        Lee, Zhu, Sohn, Li, Shin, Lee, "i-Mix: A Domain-Agnostic Strategy for Contrastive Representation Learning",
        2021.
    """
    return mixup(key, x, alpha=alpha, partner=partner)


def multi_mixup(key: Array, x: Array, *, num_mixes: int = 3, alpha: float = 2.0, per: Per = "batch") -> Plan:
    """K independent mixups of one batch, for objectives that rank them: a plan with a leading axis K.

    Apply with `jax.vmap(mix, (0, None))(plan, x)`.

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        num_mixes: K.
        alpha: Beta parameter, > 0.
        per: as in `mixup`.
    Returns:
        Plan with partner and weight [K, B].
    Raises:
        InputError: K < 1; as `mixup`.
    Example:
        >>> multi_mixup(jax.random.key(0), jnp.zeros((4, 2)), num_mixes=3).weight.shape
        (3, 4)

    Reference:
        Noh, Park, Lee, Ham, "RankMixup: Ranking-Based Mixup Training for Network Calibration", 2023
    """
    if num_mixes < 1:
        raise InputError(f"num_mixes must be ≥ 1; got {num_mixes}.")
    return jax.vmap(lambda k: mixup(k, x, alpha=alpha, per=per))(jax.random.split(key, num_mixes))


def cmixup(
    key: Array,
    x: Array,
    *,
    labels: Array,
    bandwidth: float | Array,
    bank_labels: Array | None = None,
    kernel: Literal["gaussian", "tophat"] = "gaussian",
    alpha: float = 2.0,
    per: Per = "batch",
) -> Plan:
    """C-Mixup for regression: mixup whose partner is drawn by label similarity, `P(j | i) ∝ exp(-‖y_i - y_j‖²/2h²)`.

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        labels: regression targets [B] or [B, D], in their own units.
        bandwidth: h > 0, in label units.
        bank_labels: targets [M, ...] of the whole data set; then apply with `mix(plan, x, bank=inputs)`. Where that is
            too many, `mixup(key, x, partner=label_pool_partner(...))` takes a pool of the batch and random others.
        kernel: "gaussian", or "tophat": uniform over |y_i - y_j| ≤ h.
        alpha, per: as in `mixup`.
    Returns:
        Plan without a mask.
    Raises:
        InputError: bandwidth ≤ 0, labels of the wrong length; as `mixup`.
    Example:
        >>> y = jnp.array([0.0, 0.0, 9.0, 9.0])
        >>> plan = cmixup(jax.random.key(0), y, labels=y, bandwidth=0.1)
        >>> bool((y[plan.partner] == y).all())
        True

    Reference:
        Yao, Wang, Zhang, Zou, Finn, "C-Mixup: Improving Generalization in Regression", 2022
    """
    if labels.shape[0] != x.shape[0]:
        raise InputError(f"labels has {labels.shape[0]} rows, the batch {x.shape[0]}.")
    key_partner, key_weight = jax.random.split(key)
    partners = label_kernel_partner(key_partner, labels, bank_labels, bandwidth=bandwidth, kernel=kernel)
    return Plan(partners, sample_weight(key_weight, x.shape[0], alpha=alpha, per=per))


def regmixup(key: Array, x: Array, *, alpha: float = 10.0, per: Per = "batch") -> Plan:
    """RegMixup's draw: a mixup with a large α, used as a second loss term beside the clean one.

    Args, Returns, Raises: as `mixup`.
    Example:
        >>> regmixup(jax.random.key(0), jnp.zeros((4, 2))).weight.shape
        (4,)

    Reference:
        Pinto, Yang, Lim, Torr, Dokania, "RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and
        Out Distribution Robustness", 2022.
    """
    return mixup(key, x, alpha=alpha, per=per)


def simplex_mixup(key: Array, x: Array, *, num_sources: int = 3, alpha: float = 1.0, law: str = "beta") -> Plan:
    """Mix k independent permutations of the batch with weights on the simplex (k-fold mixup, AdAutoMix's linear term).

    `law="beta"`: w_k = b_k / Σ b, b ~ Beta(α, α); `law="dirichlet"`: w ~ Dirichlet(α).

    Args:
        key: PRNG key.
        x: [B, ...]; only its length is read.
        num_sources: k ≥ 2.
        alpha: parameter of the law, > 0.
        law: "beta" or "dirichlet"; one draw per batch.
    Returns:
        Plan in k-source form: partner and weight [B, k].
    Raises:
        InputError: alpha ≤ 0; k < 2 or k > B; unknown law.
    Example:
        >>> plan = simplex_mixup(jax.random.key(0), jnp.zeros((4, 2)))
        >>> plan.partner.shape, round(float(plan.weight[0].sum()), 5)
        ((4, 3), 1.0)

    Reference:
        Qin et al., "Adversarial AutoMixup", 2024
    """
    batch = x.shape[0]
    if not 2 <= num_sources <= batch:
        raise InputError(f"num_sources must lie in 2..{batch}; got {num_sources}.")
    if law not in ("beta", "dirichlet"):
        raise InputError(f"law must be 'beta' or 'dirichlet'; got {law!r}.")
    check_positive("alpha", alpha)
    key_partner, key_weight = jax.random.split(key)
    partners = jax.vmap(lambda k: jax.random.permutation(k, batch))(jax.random.split(key_partner, num_sources))
    if law == "beta":
        weight = normalise_weights(jax.random.beta(key_weight, alpha, alpha, (num_sources,), jnp.float32))
    else:
        weight = jax.random.dirichlet(key_weight, jnp.full(num_sources, alpha, jnp.float32), dtype=jnp.float32)
    return Plan(partners.T.astype(jnp.int32), jnp.broadcast_to(weight, (batch, num_sources)))


def normalise_weights(raw: Array) -> Array:
    """Raw draws [..., k] to weights that sum to one; all-zero draws become uniform."""
    raw = raw + jnp.where(raw.sum(axis=-1, keepdims=True) > 0, 0.0, 1.0)
    return raw / raw.sum(axis=-1, keepdims=True)
