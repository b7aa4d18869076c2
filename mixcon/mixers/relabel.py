"""Label laws: weights that follow what is visible (attention, confidence) instead of the pasted area.

They need the network's forward pass, so they are called inside the loss; all stop the gradient of what they read.
"""

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan, dense_targets, mix_targets, sources


def patch_attention(attention: Array, batch: int) -> Array:
    """Head-mean class-token attention over a square patch grid, float32 [B, P], without gradient; checked."""
    if attention.ndim == 3:
        attention = attention.mean(axis=1)
    side = round(attention.shape[-1] ** 0.5)
    if attention.ndim != 2 or attention.shape[0] != batch or side * side != attention.shape[-1]:
        raise InputError(
            f"attention must be [{batch}, P] or [{batch}, heads, P] over a square grid of patches, without class or "
            f"distillation tokens; got {list(attention.shape)}."
        )
    return jax.lax.stop_gradient(attention.astype(jnp.float32))


def patch_mask(mask: Array, grid: tuple[int, int]) -> Array:
    """The mask at the top-left pixel of each patch, `m[⌊iH/h⌋, ⌊jW/w⌋]`: [n, H, W, 1] → [n, h·w].

    (Image-resizing routines sample patch centres instead, which gives other labels.)
    """
    rows, cols = (jnp.arange(g) * s // g for g, s in zip(grid, mask.shape[1:3], strict=True))
    return mask[:, rows][:, :, cols].reshape(mask.shape[0], -1)


def _own_patches(plan: Plan, patches: int) -> Array:
    if plan.mask is None or plan.mask.ndim != 4 or plan.mask.shape[-1] != 1:
        raise InputError("this label law needs a plan with an image mask [B or 1, H, W, 1].")
    side = round(patches**0.5)
    return patch_mask(plan.mask, (side, side))


def attention_share(plan: Plan, attention: Array) -> Array:
    """Share of the attention on the example's own region, `Σ m a / Σ a`; its area where there is no attention. [B]."""
    own = _own_patches(plan, attention.shape[-1])
    total = attention.sum(axis=-1)
    share = (own * attention).sum(axis=-1) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, share, plan.weight)


def transmix_relabel(plan: Plan, attention: Array, *, attention_weight: float | Array = 0.5) -> Plan:
    """TransMix: `λ = (1 - ρ) λ_area + ρ λ_attention`, per example, from the mixed image's class-token attention.

    Args:
        plan: a region plan (CutMix) whose mask marks what the example keeps.
        attention: last block's class-token attention to the patches, [B, P] or [B, heads, P].
        attention_weight: ρ; 1 is the formula printed in the paper, 0.5 its code.
    Returns:
        The plan with new weights (its mask, hence the image, unchanged).
    Raises:
        InputError: attention not on a square patch grid; a plan without a mask.
    Example:
        >>> mask = jnp.ones((1, 4, 4, 1)).at[:, :2].set(0.0)
        >>> plan = Plan(jnp.array([0]), jnp.array([0.5]), mask)
        >>> transmix_relabel(plan, jnp.array([[0.0, 0.0, 1.0, 1.0]])).weight.tolist()
        [0.75]

    Reference:
        Chen, Sun, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers", 2022
    """
    share = attention_share(plan, patch_attention(attention, plan.partner.shape[0]))
    return plan._replace(weight=(1.0 - attention_weight) * plan.weight + attention_weight * share)


def tokenmix_relabel(plan: Plan, attention: Array, *, legacy: bool = False) -> Plan:
    """TokenMix: each source weighs the attention that its own image had in the region it kept.

    Args:
        plan: a region plan.
        attention: maps of the un-mixed images, [B, P] or [B, heads, P].
        legacy: the published code: regions swapped, maps not normalised.
    Returns:
        The plan in two-source form: weight [B, 2], which need not sum to one.
    Raises:
        InputError: as `transmix_relabel`.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]), jnp.ones((1, 2, 2, 1)).at[:, 0].set(0.0))
        >>> tokenmix_relabel(plan, jnp.ones((2, 4))).weight.tolist()
        [[0.5, 0.5], [0.5, 0.5]]

    Reference:
        Liu et al., "TokenMix", 2022
    """
    maps = patch_attention(attention, plan.partner.shape[0])
    own = _own_patches(plan, maps.shape[-1])
    if legacy:
        own = 1.0 - own
    else:
        maps = maps / jnp.maximum(maps.sum(axis=-1, keepdims=True), 1e-12)
    index, _ = sources(plan)
    weight = jnp.stack([(own * maps).sum(axis=-1), ((1.0 - own) * maps[plan.partner]).sum(axis=-1)], axis=1)
    return Plan(index, weight, plan.mask, plan.warp)


def mixpro_relabel(plan: Plan, attention: Array, logits: Array, labels: Array, *, smoothing: float = 0.1) -> Plan:
    """MixPro: trust the attention as far as the prediction already agrees with the area label, `c λ_attn + (1-c)
    λ_area`.

    `c = cos(smoothed area target, softmax(logits))` per example.

    Args:
        plan: MaskMix's plan.
        attention: class-token attention, [B, P] or [B, heads, P]: of the mixed image (paper).
        logits: of the mixed image, [B, C].
        labels: int [B].
        smoothing: ε of the label that the prediction is compared with.
    Returns:
        The plan with new weights.
    Raises:
        InputError: as `transmix_relabel`.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]), jnp.ones((1, 2, 2, 1)).at[:, 0].set(0.0))
        >>> mixpro_relabel(plan, jnp.ones((2, 4)), jnp.zeros((2, 2)), jnp.array([0, 1])).weight.tolist()
        [0.5, 0.5]

    Reference:
        Zhao et al., "MixPro", 2023
    """
    share = attention_share(plan, patch_attention(attention, plan.partner.shape[0]))
    target = mix_targets(plan, labels, num_classes=logits.shape[-1], smoothing=smoothing)
    guess = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)
    norms = jnp.linalg.norm(target, axis=-1) * jnp.linalg.norm(guess, axis=-1)
    trust = (target * guess).sum(axis=-1) / jnp.maximum(norms, 1e-8)
    return plan._replace(weight=trust * share + (1.0 - trust) * plan.weight)


def align_labels(plan: Plan, labels: Array, attention: Array, *, num_classes: int, smoothing: float = 0.1) -> Array:
    """TL-Align: carry token labels through the network's attention, `L ← ½ (Ā L + L)` per block; the class token's row.

    Args:
        plan: a plan whose mask is constant on patches (`token_cutmix`).
        labels: int [B].
        attention: every block's attention, [layers, B, heads, 1 + P, 1 + P].
        num_classes: C.
        smoothing: ε of the sources' labels.
    Returns:
        float32 targets [B, C].
    Raises:
        InputError: attention of another batch or not [layers, B, heads, 1 + P, 1 + P].
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([1.0, 1.0]), jnp.ones((1, 2, 2, 1)))
        >>> eye = jnp.broadcast_to(jnp.eye(5), (1, 2, 1, 5, 5))
        >>> align_labels(plan, jnp.array([0, 1]), eye, num_classes=2, smoothing=0.0).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Reference:
        Xiao et al., "Token-Label Alignment for Vision Transformers", 2022
    """
    batch = plan.partner.shape[0]
    if attention.ndim != 5 or attention.shape[1] != batch or attention.shape[3] != attention.shape[4]:
        raise InputError(f"attention must be [layers, {batch}, heads, 1+P, 1+P]; got {list(attention.shape)}.")
    own = _own_patches(plan, attention.shape[-1] - 1)[..., None]
    y = dense_targets(labels, num_classes, smoothing)
    tokens = own * y[:, None, :] + (1.0 - own) * y[plan.partner][:, None, :]
    first = mix_targets(plan, labels, num_classes=num_classes, smoothing=smoothing)[:, None, :]
    state = jnp.concatenate([first, jnp.broadcast_to(tokens, (batch, own.shape[1], num_classes))], axis=1)
    for layer in jax.lax.stop_gradient(attention.astype(jnp.float32)).mean(axis=2):
        state = 0.5 * (jnp.einsum("bij,bjc->bic", layer, state) + state)
    return state[:, 0]
