"""One round of the game between a classifier and a learned mixer: who is mixed for the one, who for the other.

B batch, k sources, h×w feature places, H×W pixels, C feature channels.
"""

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import check_positive
from mixcon.mixers.learned import AdaptiveMask, MixBlock, adautomix, automix
from mixcon.mixers.linear import normalise_weights
from mixcon.mixers.plan import Plan


def draw_round(
    key: Array, batch: int, *, num_sources: int = 3, alpha: float = 1.0, random_count: bool = False
) -> tuple[Plan, Plan]:
    """Sources and weights of the generator's mixes and of the classifier's, masks not yet made.

    Three sources or more: permutations π_1..π_k for the generator, ρ_1..ρ_k for the classifier, all independent, and
    for both `λ = b / Σb`, b_i ~ Beta(α, α). Two sources: every example and one permutation of the batch, π or ρ, with
    `(b_1, 1-b_1)` for the generator and `(b_2, 1-b_2)` for the classifier.

    Args:
        key: PRNG key.
        batch: B.
        num_sources: k.
        alpha: α of the Beta law (1 AdAutoMix, 2 AutoMix and SAMix).
        random_count: draw the number of sources uniformly from 2..k; those left over have weight 0.
    Returns:
        Two plans with partner and weight [B, k], every row of weight the same.
    Raises:
        InputError: k < 2 or k > B; α ≤ 0.
    Example:
        >>> generator, classifier = draw_round(jax.random.key(0), 8)
        >>> generator.partner.shape, bool((generator.weight == classifier.weight).all())
        ((8, 3), True)

    Reference:
        Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", 2024; Liu et al., "AutoMix", 2022
    """
    check_positive("alpha", alpha)
    if not 2 <= num_sources <= batch:
        raise InputError(f"num_sources={num_sources} must be at least 2 and at most the batch, which is {batch}.")
    count_key, weight_key, order_key = jax.random.split(key, 3)
    raw = symmetric_beta(weight_key, num_sources, alpha)
    many = jnp.argsort(jax.random.bits(order_key, (2, num_sources, batch)), axis=-1).astype(jnp.int32)
    pairs = many.at[:, 0].set(jnp.arange(batch, dtype=jnp.int32))
    pair_weights = jnp.zeros((2, num_sources)).at[:, 0].set(raw[:2]).at[:, 1].set(1.0 - raw[:2])
    if random_count and num_sources > 2:
        count = jax.random.randint(count_key, (), 2, num_sources + 1)
    else:
        count = jnp.int32(num_sources)
    shared = normalise_weights(jnp.where(jnp.arange(num_sources) < count, raw, 0.0))
    partner = jnp.where(count == 2, pairs, many)
    weight = jnp.where(count == 2, pair_weights, shared[None])
    plans = [Plan(p.T, jnp.broadcast_to(w[None], (batch, num_sources))) for p, w in zip(partner, weight, strict=True)]
    return plans[0], plans[1]


def symmetric_beta(key: Array, count: int, alpha: float) -> Array:
    """Draws of Beta(α, α), float32 [count].

    For a small whole α it is the middle of 2α - 1 uniform draws, which has this law and compiles in no time.
    """
    if alpha in (1, 2, 3):
        middle = int(alpha) - 1
        return jnp.sort(jax.random.uniform(key, (count, 2 * middle + 1)), axis=-1)[:, middle]
    return jax.random.beta(key, alpha, alpha, (count,), jnp.float32)


def learned_plan(net: AdaptiveMask | MixBlock, features: Array, drawn: Plan, *, margin: float = -1.0) -> Plan:
    """The plan of a round with the masks that a generator makes: `automix` or `adautomix`, whichever fits it.

    Args:
        net: the generator.
        features: teacher features of the clean batch [B, h, w, C].
        drawn: one of the two plans of `draw_round`.
        margin: the mask is λ itself where min(λ_1, 1 - λ_1) does not exceed it.
    Returns:
        A plan with a mask [B, H, W, k]; of two sources, [B, H, W, 1], for a `MixBlock`.
    Raises:
        InputError: a `MixBlock` and more than two sources.
    Example:
        >>> from flax import nnx
        >>> net = AdaptiveMask(8, 4, rngs=nnx.Rngs(0))
        >>> learned_plan(net, jnp.ones((4, 2, 2, 8)), draw_round(jax.random.key(0), 4)[0]).mask.shape
        (4, 8, 8, 3)

    Reference:
        Qin et al., "Adversarial AutoMixup", 2024; Liu et al., "AutoMix", 2022
    """
    if isinstance(net, AdaptiveMask):
        return adautomix(net, features, drawn.partner, drawn.weight[0], margin=margin)
    if drawn.partner.shape[1] != 2:
        raise InputError(f"AutoMix and SAMix mix two images, not {drawn.partner.shape[1]}; set num_sources=2.")
    return automix(net, features, drawn.partner[:, 1], drawn.weight[0, 0], margin=margin)
