"""Mixers on the patch grid of a vision transformer."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, draws, image_size, own_weight, spread
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.region import centers, cutmix_mask, inside, masked_plan
from mixcon.mixers.relabel import patch_attention, tokenmix_relabel
from mixcon.mixers.salient import top_cells, upsample_cells
from mixcon.mixers.warp import Grid

ATTEMPTS = 10  # tries to place one block before giving up
LOG_ASPECT = 1.2039728  # -log 0.3


def token_cutmix(
    key: Array,
    x: Array,
    *,
    patch: int = 16,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """TL-Align's input: a CutMix box drawn on the patch grid, so that every token has one source.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        patch: side of a patch, pixels; divides H and W.
        alpha, weight, per, partner: as in `cutmix`.
    Returns:
        Plan with a binary mask constant on patches. Align the label afterwards with `align_labels`.
    Raises:
        InputError: patch does not divide the image; as `cutmix`.
    Example:
        >>> token_cutmix(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), patch=8).mask.shape
        (1, 32, 32, 1)

    Reference:
        Xiao et al., "Token-Label Alignment for Vision Transformers", 2022
    """
    batch, height, width = image_size(x)
    grid = _grid(x, patch)
    key_partner, key_weight, key_place = jax.random.split(key, 3)
    own = own_weight(key_weight, batch, alpha, weight, per)
    cells = cutmix_mask(own, centers(key_place, draws(batch, per), grid), grid)[..., 0]
    return masked_plan(choose_partner(key_partner, batch, partner, per), upsample_cells(cells, (height, width)), per)


def _grid(x: Array, patch: int) -> tuple[int, int]:
    if patch < 1 or x.shape[1] % patch or x.shape[2] % patch:
        raise InputError(f"patch {patch} must divide the image {x.shape[1]}×{x.shape[2]}.")
    return x.shape[1] // patch, x.shape[2] // patch


def block_tokens(target: Array, unit: Array, side: int = 14) -> Array:
    """Blocks of tokens placed one after another until `target` of them are covered (BEiT's sampler, bounded).

    Each try draws an area, an aspect and a place; it counts if it adds between 1 and the missing number of tokens. Ten
    failures in a row end it, and so does the end of the draws.

    Args:
        target: K, int32 [].
        unit: uniform draws in [0, 1), [tries, 4]: area, log aspect, top, left.
        side: tokens per side.
    Returns:
        float32 [side, side], 1 on the chosen tokens.
    """
    rows, cols = jnp.arange(side)[:, None], jnp.arange(side)[None, :]

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        mask, count, failures, i = state
        missing = target - count
        area = 1.0 + unit[i, 0] * (missing - 1).astype(jnp.float32)
        aspect = jnp.exp((2.0 * unit[i, 1] - 1.0) * LOG_ASPECT)
        height, width = (jnp.round(jnp.sqrt(a)).astype(jnp.int32) for a in (area * aspect, area / aspect))
        top = jnp.floor(unit[i, 2] * (side - height + 1).astype(jnp.float32)).astype(jnp.int32)
        left = jnp.floor(unit[i, 3] * (side - width + 1).astype(jnp.float32)).astype(jnp.int32)
        block = (rows >= top) & (rows < top + height) & (cols >= left) & (cols < left + width)
        added = (block & ~mask).sum()
        good = (height < side) & (width < side) & (added > 0) & (added <= missing)
        mask = jnp.where(good, mask | block, mask)
        return mask, count + jnp.where(good, added, 0), jnp.where(good, 0, failures + 1), i + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, count, failures, i = state
        return (count < target) & (failures < ATTEMPTS) & (i < unit.shape[0])

    start = (jnp.zeros((side, side), bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    return jax.lax.while_loop(unfinished, step, start)[0].astype(jnp.float32)


def tokenmix(
    key: Array,
    x: Array,
    *,
    attention: Array | None = None,
    mode: Literal["block", "random"] = "block",
    side: int = 14,
    minimum: int = 14,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    legacy_label: bool = False,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """TokenMix: K = min(side², ⌊(1-λ) side²⌋ + minimum) tokens of the partner, in blocks or one by one.

    With attention the label is `Σ (1-M) S_A y_A + Σ M S_B y_B`, S the maps normalised to one; without it the area.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        attention: class-token attention of the un-mixed images, [B, side²] or [B, heads, side²].
        mode: "block" (nearby tokens) or "random".
        side: tokens per side, dividing H and W.
        minimum: tokens always taken.
        alpha, weight, per, partner: as in `cutmix`.
        legacy_label: the published code's label, which swaps the two regions.
    Returns:
        Plan with a binary mask; with attention in two-source form [B, 2], whose weights need not sum to one.
    Raises:
        InputError: side does not divide the image; attention of the wrong shape; unknown mode.
    Example:
        >>> plan = tokenmix(jax.random.key(0), jnp.zeros((2, 28, 28, 3)), mode="random", weight=0.5)
        >>> round(float(1 - plan.weight[0]) * 196)
        112

    Reference:
        Liu, Liu, Zhou, Hu, Yu, Ouyang, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision
        Transformers",
        2022
    """
    batch, height, width = image_size(x)
    if mode not in ("block", "random"):
        raise InputError(f"mode must be 'block' or 'random'; got {mode!r}.")
    if height % side or width % side:
        raise InputError(f"side {side} must divide the image {height}×{width}.")
    key_partner, key_weight, key_tokens = jax.random.split(key, 3)
    own = own_weight(key_weight, batch, alpha, weight, per)
    tokens = side * side
    target = jnp.minimum(tokens, jnp.floor((1.0 - own) * tokens).astype(jnp.int32) + minimum)
    n = draws(batch, per)
    if mode == "random":
        taken = top_cells(jax.random.uniform(key_tokens, (n, tokens)), target).reshape(n, side, side)
    else:
        taken = jax.vmap(lambda t, u: block_tokens(t, u, side))(target, jax.random.uniform(key_tokens, (n, 512, 4)))
    partners = choose_partner(key_partner, batch, partner, per)
    plan = masked_plan(partners, 1.0 - upsample_cells(taken, (height, width)), per)
    return plan if attention is None else tokenmix_relabel(plan, attention, legacy=legacy_label)


def maskmix_mask(score: Array, weight: Array, cell: int, shape: tuple[int, int]) -> tuple[Array, Array]:
    """The ⌈q²λ⌉ highest-scored cells stay; returns the own mask [n, H, W, 1] and the share of cells [n].

    score: [n, q·q]; weight: [n]; cell: side in pixels (the last cells are cropped).
    """
    q = -(-shape[0] // cell)
    count = jnp.ceil(q * q * weight.astype(jnp.float32)).astype(jnp.int32)
    kept = top_cells(score, count).reshape(-1, q, score.shape[1] // q)
    pixels = jnp.repeat(jnp.repeat(kept, cell, axis=1), cell, axis=2)[:, : shape[0], : shape[1], None]
    return pixels, count.astype(jnp.float32) / score.shape[1]


def maskmix(
    key: Array,
    x: Array,
    *,
    cell: int = 64,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """MixPro's MaskMix: each example keeps ⌈q²λ⌉ random square cells of its own.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        cell: side of a cell in pixels, a multiple of the patch size; cells at the border are cropped.
        alpha: Beta parameter of λ.
        weight, partner: as in `cutmix`; per: how often λ is drawn (cells are always each example's own).
    Returns:
        Plan with a binary mask per example. Relabel inside the loss with `mixpro_relabel`.
    Raises:
        InputError: cell < 1 or larger than the image; as `cutmix`.
    Example:
        >>> plan = maskmix(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), cell=8, weight=0.5)
        >>> plan.weight.tolist()
        [0.5, 0.5]

    Reference:
        Zhao et al., "MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer",
        2023
    """
    batch, height, width = image_size(x)
    if not 1 <= cell <= min(height, width):
        raise InputError(f"cell must lie in 1..{min(height, width)}; got {cell}.")
    key_partner, key_weight, key_cells = jax.random.split(key, 3)
    own = spread(own_weight(key_weight, batch, alpha, weight, per), batch, per)
    cells = -(-height // cell) * -(-width // cell)
    mask, _ = maskmix_mask(jax.random.uniform(key_cells, (batch, cells)), own, cell, (height, width))
    return masked_plan(choose_partner(key_partner, batch, partner, per), mask, "example")


def smmix_plan(attention: Array, side: Array, shape: tuple[int, int]) -> Plan:
    """SMMix from its draw: the partner's most attended window of `side` tokens goes where the example attends least.

    attention: [B, S·S]; side: int32 []; shape: (H, W). Even B; the partner is B-1-i.
    """
    batch = attention.shape[0]
    tokens = round(attention.shape[1] ** 0.5)
    maps = attention.reshape(batch, tokens, tokens).astype(jnp.float32)
    integral = jnp.pad(jnp.cumsum(jnp.cumsum(maps, axis=1), axis=2), ((0, 0), (1, 0), (1, 0)))
    start = jnp.arange(tokens)
    end = jnp.minimum(start + side, tokens)
    rows = integral[:, end] - integral[:, start]
    window = rows[:, :, end] - rows[:, :, start]
    fits = (start <= tokens - side)[None, :, None] & (start <= tokens - side)[None, None, :]
    low = jnp.argmin(jnp.where(fits, window, jnp.inf).reshape(batch, -1), axis=1)
    high = jnp.argmax(jnp.where(fits, window, -jnp.inf).reshape(batch, -1), axis=1)[::-1]
    target, source = (jnp.stack(jnp.divmod(v, tokens), axis=1) for v in (low, high))
    mask = 1.0 - inside(target, target + side, (tokens, tokens))[..., 0]
    shift = (source - target)[:, :, None] * jnp.array([[[shape[0] // tokens], [shape[1] // tokens]]])
    rows, cols = (jnp.clip(jnp.arange(n)[None, :] + shift[:, i], 0, n - 1) for i, n in enumerate(shape))
    plan = masked_plan(jnp.arange(batch, dtype=jnp.int32)[::-1], upsample_cells(mask, shape), "example")
    return plan._replace(warp=(None, Grid(rows, cols)))


def smmix(key: Array, x: Array, *, attention: Array, ratio: tuple[float, float] = (0.25, 0.75)) -> Plan:
    """SMMix: a window moves from where the partner attends most to where the example attends least.

    Args:
        key: PRNG key.
        x: images [B, H, W, C], B even; only the shape is read.
        attention: class-token attention of the un-mixed images, [B, S²] or [B, heads, S²], S dividing H and W.
        ratio: range of the window's side over S; one side per batch.
    Returns:
        Plan with a binary mask and a `Grid` per example; `w = 1 - r²/S²`.
    Raises:
        InputError: odd batch; attention not on a square grid that divides the image; bad ratio.
    Example:
        >>> a = jnp.ones((2, 16))
        >>> smmix(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), attention=a).mask.shape
        (2, 8, 8, 1)

    Reference:
        Chen et al., "SMMix: Self-Motivated Image Mixing for Vision Transformers", 2023
    """
    batch, height, width = image_size(x)
    if batch % 2:
        raise InputError(f"smmix pairs i with B-1-i and needs an even batch; got {batch}.")
    attention = patch_attention(attention, batch)
    tokens = round(attention.shape[1] ** 0.5)
    if height % tokens or width % tokens:
        raise InputError(f"a {tokens}×{tokens} attention grid does not divide the image {height}×{width}.")
    low, high = int(ratio[0] * tokens), int(ratio[1] * tokens)
    if not 1 <= low <= high <= tokens:
        raise InputError(f"ratio {ratio} gives windows of {low} to {high} of {tokens} tokens; want 1 ≤ low ≤ high.")
    return smmix_plan(attention, jax.random.randint(key, (), low, high + 1), (height, width))


def mergemix(
    key: Array,
    x: Array,
    *,
    attention: Array,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    drawn_label: bool = False,
    merged: float = 0.5,
    per: Per = "batch",
    partner: How | Array = "derangement",
) -> Plan:
    """MergeMix: each example keeps the ⌊λP⌋ of its P tokens that are attended to most; the partner fills the rest.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        attention: score of each token [B, P], or a token-token map [B, heads, P, P] of a vision transformer that merges
            tokens, un-merged to P tokens on a square grid (heads are added and the first column read, as published).
        alpha, weight, per, partner: as in `cutmix`.
        drawn_label: the toolbox's other label: a normal draw around `merged` with deviation λ, scaled to [0, 1] over
            the batch.
        merged: share of the tokens that are left after merging (98 of 196), used by `drawn_label`.
    Returns:
        Plan with a binary mask per example. Its loss also takes a mixup of the same batch (`mixup(..., alpha=0.8)`).
    Raises:
        InputError: attention of another batch or not on a square grid; as `cutmix`.
    Example:
        >>> a = jnp.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
        >>> mergemix(jax.random.key(0), jnp.zeros((2, 4, 4, 3)), attention=a, weight=0.5).mask[0, :, 0, 0].tolist()
        [1.0, 1.0, 0.0, 0.0]

    Reference:
        Li et al., "OpenMixup: Open Mixup Toolbox and Benchmark for Visual Representation Learning", 2022 (its mode
        "mergemix", added in 2025).
    """
    batch, height, width = image_size(x)
    if attention.ndim == 4:
        attention = attention.sum(axis=1)[..., 0]
    score = patch_attention(attention, batch)
    key_partner, key_weight, key_label = jax.random.split(key, 3)
    own = spread(own_weight(key_weight, batch, alpha, weight, per), batch, per)
    tokens, side = score.shape[1], round(score.shape[1] ** 0.5)
    kept = top_cells(score, jnp.floor(tokens * own).astype(jnp.int32)).reshape(batch, side, side)
    plan = masked_plan(
        choose_partner(key_partner, batch, partner, per), upsample_cells(kept, (height, width)), "example"
    )
    if not drawn_label:
        return plan
    drawn = merged + own * jax.random.normal(key_label, (batch,))
    span = drawn.max() - drawn.min()
    return plan._replace(weight=(drawn - drawn.min()) / jnp.where(span > 0, span, 1.0))
