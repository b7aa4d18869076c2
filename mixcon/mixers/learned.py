"""Learned masks as nnx models: AutoMix, SAMix and AdAutoMix, with their generator losses.

Their parameters live in the train state like any model's. Masks are own shares; features come from a teacher, as data.
B batch, h×w feature places, H×W pixels, C feature channels, k sources, K classes.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import wide_dtype

Upsample = Literal["nearest", "bilinear"]
SMALL = nnx.initializers.normal(0.01)
ABSENT = -1e30  # logit of an image that takes no part: finite, so that its gradient is zero and not NaN


def _upsample(map_: Array, scale: int, how: Upsample) -> Array:
    """[B, h, w, c] by an integer factor."""
    if how == "nearest":
        return jnp.repeat(jnp.repeat(map_, scale, axis=1), scale, axis=2)
    batch, height, width, channels = map_.shape
    return jax.image.resize(map_, (batch, height * scale, width * scale, channels), "bilinear", antialias=False)


def _tokens(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1]).astype(wide_dtype(x.dtype))


def reshape_weight(weight: Array, k: float = 0.25) -> Array:
    """SAMix's `r(λ) = (4/3 λ³ - 2λ² + k'λ) / (k' - 2/3)`, k' = k + 1; k = -1 leaves λ as it is."""
    if k == -1:
        return weight
    slope = k + 1.0
    return (4.0 / 3.0 * weight**3 - 2.0 * weight**2 + slope * weight) / (slope - 2.0 / 3.0)


class MixBlock(nnx.Module):
    """AutoMix's and SAMix's mask generator: cross-attention from one feature map to the other.

    `M_B = sigmoid(upsample(softmax(q k^T / √(C/2)) v))`; the own mask is 1 - M_B. AutoMix shares one projection for
    queries
    and keys; SAMix uses two, on both maps concatenated, scales the maps by λ and has a hidden layer in the value.

    Args:
        channels: C of the features.
        scale: pixels per feature place.
        variant: "automix" or "samix".
        upsample: "nearest" (AutoMix) or "bilinear" (SAMix); by variant if None.
        weight_k: SAMix's k (see `reshape_weight`).
        value_hidden: width of SAMix's value layer; C/2 if None.
        weight_channel: append λ and 1 - λ as feature channels (AutoMix on ImageNet).
        rngs: nnx random streams.
    Example:
        >>> block = MixBlock(8, 4, rngs=nnx.Rngs(0))
        >>> f = jnp.ones((2, 4, 4, 8))
        >>> block(f, f, jnp.float32(0.5)).shape
        (2, 16, 16, 1)

    Reference:
        Liu et al., "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", 2022; Li et al.,
        "Boosting
        Discriminative Visual Representation Learning with Scenario-Agnostic Mixup", 2021.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        *,
        rngs: nnx.Rngs,
        variant: Literal["automix", "samix"] = "automix",
        upsample: Upsample | None = None,
        weight_k: float = 0.25,
        value_hidden: int | None = None,
        weight_channel: bool = False,
    ):
        if variant not in ("automix", "samix"):
            raise InputError(f"variant must be 'automix' or 'samix'; got {variant!r}.")
        self.samix = variant == "samix"
        self.scale, self.weight_k, self.weight_channel = scale, weight_k, weight_channel
        self.upsample: Upsample = upsample or ("bilinear" if self.samix else "nearest")
        inner, seen = channels // 2, channels + weight_channel
        self.query = nnx.Linear((1 + self.samix) * seen, inner, kernel_init=SMALL, rngs=rngs)
        if self.samix:
            hidden = value_hidden or inner
            self.key = nnx.Linear(2 * seen, inner, kernel_init=SMALL, rngs=rngs)
            self.value_in = nnx.Linear(seen, hidden, use_bias=False, kernel_init=SMALL, rngs=rngs)
            self.value_norm = nnx.BatchNorm(hidden, momentum=0.9, epsilon=1e-5, rngs=rngs)
            self.value_out = nnx.Linear(hidden, 1, use_bias=False, kernel_init=SMALL, rngs=rngs)
        else:
            self.value = nnx.Linear(seen, 1, kernel_init=SMALL, rngs=rngs)

    def __call__(self, own: Array, other: Array, weight: Array) -> Array:
        """Own mask [B, H, W, 1] for features [B, h, w, C] of the examples and their partners; weight: λ, scalar."""
        batch, height, width, _ = own.shape
        a, b = _tokens(own), _tokens(other)
        weight = jnp.asarray(weight, a.dtype)
        if self.samix:
            share = reshape_weight(weight, self.weight_k)
            a, b = a * (1.0 + share), b * (2.0 - share)
        if self.weight_channel:
            level = jnp.ones_like(a[..., :1])
            a, b = (jnp.concatenate([f, w * level], axis=-1) for f, w in ((a, weight), (b, 1.0 - weight)))
        if self.samix:
            both = jnp.concatenate([a, b], axis=-1)
            query, key = self.query(both), self.key(both)
            value = self.value_out(jax.nn.elu(self.value_norm(self.value_in(b))))
        else:
            query, key, value = self.query(a), self.query(b), self.value(b)
        scores = jnp.einsum("bic,bjc->bij", query, key) / query.shape[-1] ** 0.5
        shown = jnp.einsum("bij,bjc->bic", jax.nn.softmax(scores, axis=-1), value)
        logits = _upsample(shown.reshape(batch, height, width, 1), self.scale, self.upsample)
        return jax.nn.sigmoid(-logits)


def mask_mean_loss(mask: Array, weight: Array, *, margin: float = 0.1, variance: float = 0.0) -> Array:
    """Keep the mask's area near λ: `max(|mean(M) - λ| - margin, 0) - variance · Var(M)`.

    Args:
        mask: own shares [B, H, W, 1].
        weight: λ, scalar.
        margin: free deviation.
        variance: 2 for SAMix, 0 for AutoMix.
    Returns:
        Scalar.
    Raises:
        InputError: negative margin or variance.
    Example:
        >>> float(mask_mean_loss(jnp.full((1, 2, 2, 1), 0.5), jnp.float32(0.75), margin=0.25))
        0.0

    Reference:
        Liu et al., "AutoMix", 2022
    """
    if margin < 0 or variance < 0:
        raise InputError(f"margin and variance must be ≥ 0; got {margin}, {variance}.")
    mask = mask.astype(wide_dtype(mask.dtype))
    loss = jnp.maximum(jnp.abs(mask.mean() - weight) - margin, 0.0)
    return loss - variance * mask.var() if variance else loss


def automix(block: MixBlock, features: Array, partner: Array, weight: Array, *, margin: float = -1.0) -> Plan:
    """A plan from the learned mask; `min(λ, 1-λ) ≤ margin` falls back on plain mixup.

    Args:
        block: `MixBlock`.
        features: teacher features of the clean batch [B, h, w, C].
        partner: int [B].
        weight: λ, scalar.
        margin: 0.08 for the student's mix, where the mask is also taken as a constant (`stop_gradient` of the plan).
    Returns:
        Plan with mask [B, H, W, 1]; targets use λ.
    Raises:
        InputError: partner of another batch.
    Example:
        >>> block = MixBlock(8, 4, rngs=nnx.Rngs(0))
        >>> automix(block, jnp.ones((2, 4, 4, 8)), jnp.array([1, 0]), jnp.float32(0.3)).mask.shape
        (2, 16, 16, 1)

    Reference:
        Liu et al., "AutoMix", 2022
    """
    if partner.shape != features.shape[:1]:
        raise InputError(f"partner must be [{features.shape[0]}]; got {list(partner.shape)}.")
    weight = jnp.asarray(weight, jnp.float32)
    mask = block(features, features[partner], weight)
    plain = jnp.minimum(weight, 1.0 - weight) <= margin
    return Plan(partner, jnp.broadcast_to(weight, partner.shape), jnp.where(plain, weight, mask))


class AdaptiveMask(nnx.Module):
    """AdAutoMix's generator: each of k images asks all others where it is salient; a softmax over images shares pixels.

    `S_i = softmax(Σ_{j≠i} q_i k_jᵀ / √(C/2)) v_i`, q and k after ReLU; `M = softmax_i(upsample(S_i))`. An image of
    weight 0 takes no part: so one program serves a number of sources that is drawn.

    Args:
        channels: C of the features.
        scale: pixels per feature place.
        upsample: "nearest" or "bilinear".
        weight_channel: append each image's λ as a feature channel.
        norm: batch norm of q and k before the ReLU, over each source apart (the published ImageNet ResNet-50).
        rngs: nnx random streams.
    Example:
        >>> net = AdaptiveMask(8, 4, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((3, 2, 4, 4, 8)), jnp.full(3, 1 / 3)).shape
        (2, 16, 16, 3)

    Reference:
        Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", 2024
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        *,
        rngs: nnx.Rngs,
        upsample: Upsample = "nearest",
        weight_channel: bool = False,
        norm: bool = False,
    ):
        self.scale, self.upsample, self.weight_channel, self.norm = scale, upsample, weight_channel, norm
        seen, inner = channels + weight_channel, channels // 2
        self.query = nnx.Linear(seen, inner, use_bias=not norm, kernel_init=SMALL, rngs=rngs)
        self.key = nnx.Linear(seen, inner, use_bias=not norm, kernel_init=SMALL, rngs=rngs)
        self.value = nnx.Linear(seen, 1, kernel_init=SMALL, rngs=rngs)
        if norm:
            self.query_norm = nnx.BatchNorm(inner, momentum=0.9, epsilon=1e-5, rngs=rngs)
            self.key_norm = nnx.BatchNorm(inner, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, features: Array, weight: Array) -> Array:
        """Masks [B, H, W, k] that sum to one, from features [k, B, h, w, C] and weights [k]."""
        count, batch, height, width, _ = features.shape
        if count < 2 or weight.shape != (count,):
            raise InputError(f"want k ≥ 2 sources and weights [k]; got {list(features.shape)}, {list(weight.shape)}.")
        tokens = jax.vmap(_tokens)(features)
        if self.weight_channel:
            level = jnp.broadcast_to(weight.reshape(count, 1, 1, 1).astype(tokens.dtype), (*tokens.shape[:3], 1))
            tokens = jnp.concatenate([tokens, level], axis=-1)
        present = weight > 0
        query, key = self.query(tokens), self.key(tokens)
        if self.norm:
            query = jnp.stack([self.query_norm(source) for source in query])
            key = jnp.stack([self.key_norm(source) for source in key])
        query, key = jax.nn.relu(query), jax.nn.relu(key)
        key = jnp.where(present.reshape(count, 1, 1, 1), key, 0.0)
        others = key.sum(axis=0, keepdims=True) - key  # Σ_{j≠i} q_i k_jᵀ = q_i (Σ_{j≠i} k_j)ᵀ
        scores = jnp.einsum("nbic,nbjc->nbij", query, others) / query.shape[-1] ** 0.5
        shown = jnp.einsum("nbij,nbjc->nbi", jax.nn.softmax(scores, axis=-1), self.value(tokens))
        maps = jnp.moveaxis(shown.reshape(count, batch, height, width), 0, -1)
        maps = jnp.where(present.reshape(1, 1, 1, count), _upsample(maps, self.scale, self.upsample), ABSENT)
        return jax.nn.softmax(maps, axis=-1)


def adautomix(net: AdaptiveMask, features: Array, sources: Array, weight: Array, *, margin: float = -1.0) -> Plan:
    """A k-source plan from the adaptive masks; near-empty weights fall back on linear mixing.

    Args:
        net: `AdaptiveMask`.
        features: teacher features of the clean batch [B, h, w, C].
        sources: int [B, k], the images of each mix.
        weight: λ [k], summing to one.
        margin: 0.03 for the classifier's mix: linear if λ_1 or 1 - λ_1 is not above it.
    Returns:
        Plan with partner, weight [B, k] and mask [B, H, W, k].
    Raises:
        InputError: sources of another batch or count.
    Example:
        >>> net = AdaptiveMask(8, 4, rngs=nnx.Rngs(0))
        >>> index = jnp.array([[0, 1, 0], [1, 0, 1]])
        >>> adautomix(net, jnp.ones((2, 4, 4, 8)), index, jnp.full(3, 1 / 3)).mask.shape
        (2, 16, 16, 3)

    Reference:
        Qin et al., "Adversarial AutoMixup", 2024
    """
    if sources.ndim != 2 or sources.shape != (features.shape[0], weight.shape[0]):
        raise InputError(f"sources must be [{features.shape[0]}, {weight.shape[0]}]; got {list(sources.shape)}.")
    weight = weight.astype(jnp.float32)
    mask = net(features[sources.T], weight)
    plain = (margin >= weight[0]) | (margin >= 1.0 - weight[0])
    mask = jnp.where(plain, weight.reshape(1, 1, 1, -1), mask)
    return Plan(sources.astype(jnp.int32), jnp.broadcast_to(weight[None], sources.shape), mask)


def weighted_logit_cosine(mixed: Array, clean: Array, weight: Array) -> Array:
    """`mean_b Σ_i λ_i cos(u_b, u_ib)` between a mix's logits and those of its sources.

    Args:
        mixed: [B, K].
        clean: [k, B, K].
        weight: λ [k].
    Returns:
        Scalar.
    Example:
        >>> float(weighted_logit_cosine(jnp.ones((1, 2)), jnp.ones((1, 1, 2)), jnp.ones(1)).round(4))
        1.0

    Reference:
        Qin et al., "Adversarial AutoMixup", 2024
    """
    norms = jnp.linalg.norm(mixed, axis=-1)[None] * jnp.linalg.norm(clean, axis=-1)
    cosine = (mixed[None] * clean).sum(axis=-1) / jnp.maximum(norms, 1e-8)
    return (weight[:, None].astype(cosine.dtype) * cosine).sum(axis=0).mean()


def adversarial_generator_loss(
    mix_loss: Array, cosine: Array, adversarial: Array, *, beta: float = 0.3, cosine_sign: float = 1.0
) -> Array:
    """AdAutoMix's generator: `-β L + (1-β) cos` in an adversarial step, `L` in a cooperative one; one trace for both.

    Args:
        mix_loss: the teacher's cross-entropy L on the generator's mix.
        cosine: `weighted_logit_cosine`.
        adversarial: bool [], e.g. `step % 2 == 0`.
        beta: β in [0, 1].
        cosine_sign: +1 as the published code, -1 to keep the mix like its sources.
    Returns:
        Scalar.
    Raises:
        InputError: β outside [0, 1].
    Example:
        >>> float(adversarial_generator_loss(jnp.float32(2.0), jnp.float32(1.0), jnp.bool_(False)))
        2.0

    Reference:
        Qin et al., "Adversarial AutoMixup", 2024
    """
    if not 0.0 <= beta <= 1.0:
        raise InputError(f"beta must lie in [0, 1]; got {beta}.")
    return jnp.where(adversarial, -beta * mix_loss + (1.0 - beta) * cosine_sign * cosine, mix_loss)
