"""Mixers that give each place to one of the two pictures: boxes, blurs, grids and pasted miniatures.

Masks are the example's own share, float32 [n, H, W, 1]; weights are the masks' means. n is the number of draws.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import (
    Per,
    check_positive,
    draws,
    image_size,
    mask_weight,
    own_weight,
    spread,
    spread_mask,
)
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import Grid, bilinear_rows, nearest_rows


def box(side: Array, center: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Bounds of a box of relative side s around a centre, clipped to the picture: it reaches `⌊H s⌋ // 2` each way.

    side: [n] in [0, 1]; center: int [n, 2] (row, column). Returns low, high: int32 [n, 2].
    """
    size = jnp.array([shape], jnp.int32)
    reach = (size.astype(jnp.float32) * side.astype(jnp.float32)[:, None]).astype(jnp.int32) // 2
    center = center.astype(jnp.int32)
    return jnp.clip(center - reach, 0, size), jnp.clip(center + reach, 0, size)


def inside(low: Array, high: Array, shape: tuple[int, int]) -> Array:
    """1 in the boxes [low, high), else 0: float32 [n, H, W, 1] from int [n, 2] bounds."""
    rows, cols = (jnp.arange(size)[None, :] for size in shape)
    in_rows = (rows >= low[:, :1]) & (rows < high[:, :1])
    in_cols = (cols >= low[:, 1:]) & (cols < high[:, 1:])
    return (in_rows[:, :, None] & in_cols[:, None, :])[..., None].astype(jnp.float32)


def cutmix_mask(weight: Array, center: Array, shape: tuple[int, int]) -> Array:
    """CutMix's mask: 0 in the box of side `√(1 - w)` around the centre, 1 elsewhere. float32 [n, H, W, 1]."""
    return 1.0 - inside(*box(jnp.sqrt(1.0 - weight.astype(jnp.float32)), center, shape), shape)


def centers(key: Array, n: int, shape: tuple[int, int]) -> Array:
    """n uniform centres (row, column), int32 [n, 2]."""
    key_row, key_col = jax.random.split(key)
    return jnp.stack(
        [jax.random.randint(k, (n,), 0, s) for k, s in zip((key_row, key_col), shape, strict=True)], axis=1
    )


def masked_plan(partner: Array, mask: Array, per: Per, weight: Array | None = None) -> Plan:
    """A plan from the masks [n, H, W, 1] of its draws, the weight corrected to the mask's mean."""
    batch = partner.shape[0]
    mask = spread_mask(mask, batch, per)
    return Plan(partner, mask_weight(mask, batch) if weight is None else weight, mask)


def cutmix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "derangement",
) -> Plan:
    """CutMix: a box of the partner is pasted in; `λ = 1 - box area / HW` after clipping.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        alpha: Beta parameter of the drawn λ₀, > 0.
        weight: a given λ₀ instead of a draw.
        per: one box per "batch", "pair" or "example".
        partner: a rule of `choose_partner`, or indices [B].
    Returns:
        Plan with a binary mask.
    Raises:
        InputError: alpha ≤ 0, weight outside [0, 1], x not images, odd batch for `per="pair"`.
    Example:
        >>> plan = cutmix(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), weight=1.0)
        >>> float(plan.mask.min()), plan.weight.tolist()
        (1.0, [1.0, 1.0])

    Reference:
        Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", 2019
    """
    batch, height, width = image_size(x)
    key_partner, key_weight, key_place = jax.random.split(key, 3)
    partners = choose_partner(key_partner, batch, partner, per)
    own = own_weight(key_weight, batch, alpha, weight, per)
    place = centers(key_place, draws(batch, per), (height, width))
    return masked_plan(partners, cutmix_mask(own, place, (height, width)), per)


def smoothmix_mask(center: Array, spread_unit: Array, size: int) -> Array:
    """One minus a Gaussian bump, σ = (s/4 + 1/4) H, shifted by ⌊c - H/2⌋ (towards zero) from the middle.

    center: int [n, 2] (row, column); spread_unit: s in [0, 1), [n]. Returns float32 [n, H, H, 1].
    """
    sigma = (spread_unit.astype(jnp.float32) / 4.0 + 0.25) * size
    shift = jnp.trunc(center.astype(jnp.float32) - size / 2)
    line = jnp.arange(size, dtype=jnp.float32)[None, :] - (size - 1) / 2
    squared = (jnp.square(line - shift[:, axis, None]) for axis in (0, 1))
    rows, cols = (jnp.exp(-s / (2.0 * jnp.square(sigma))[:, None]) for s in squared)  # 2 H exponentials, not H²
    return 1.0 - (rows[:, :, None] * cols[:, None, :])[..., None]


def smoothmix(
    key: Array,
    x: Array,
    *,
    per: Per = "batch",
    partner: How | Array = "permutation",
    legacy_label: bool = False,
) -> Plan:
    """SmoothMix: the partner shows through a Gaussian bump G; `w = 1 - mean(G)`.

    Args:
        key: PRNG key.
        x: square images [B, H, H, C], H even; only the shape is read.
        per, partner: as in `cutmix`.
        legacy_label: the published code's reversed label, `w = mean(G)`.
    Returns:
        Plan with a soft mask.
    Raises:
        InputError: x not square, or of odd size.
    Example:
        >>> plan = smoothmix(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
        >>> bool(jnp.allclose(plan.weight, plan.mask.mean()))
        True

    Reference:
        Lee, Zaheer, Astrid, Lee, "SmoothMix: A Simple Yet Effective Data Augmentation to Train Robust Classifiers",
        2020.
    """
    batch, size, _ = image_size(x, square=True)
    if size % 2:
        raise InputError(f"smoothmix needs an even image size; got {size}.")
    key_partner, key_place, key_sigma = jax.random.split(key, 3)
    partners = choose_partner(key_partner, batch, partner, per)
    n = draws(batch, per)
    mask = smoothmix_mask(centers(key_place, n, (size, size)), jax.random.uniform(key_sigma, (n,)), size)
    plan = masked_plan(partners, mask, per)
    return plan._replace(weight=1.0 - plan.weight) if legacy_label else plan


def gridmix_mask(
    weight: Array,
    holes: Array,
    area: Array,
    aspect: Array,
    offset: Array,
    shape: tuple[int, int],
    *,
    hole_aspect: Array | float = 1.0,
    legacy_wrap: bool = False,
) -> Array:
    """GridMix's mask: 0 in a lattice of holes inside a random rectangle, 1 elsewhere.

    Rectangle: `cut_w = ⌊√(⌊HWa⌋ / g)⌋`, `cut_h = ⌊cut_w g⌋`; cell `pw = ⌈cut_w / n⌉`; hole `clip(⌊pw √(1-w)⌋, 1,
    pw-1)`.
    The lattice is an outer product of one row pattern and one column pattern.

    weight, holes (n), area (a), aspect (g): [n]; offset: u in [0, 1), [n, 2] (row, column). Returns float32 [n, H,
    W, 1].
    """
    height, width = shape
    cut_w = jnp.floor(jnp.sqrt(jnp.floor(height * width * area) / aspect))
    cut_h = jnp.floor(cut_w * aspect)
    holes = jnp.clip(holes.astype(jnp.float32), 1.0, jnp.maximum(cut_w // 2, 1.0))
    cell_w = jnp.ceil(cut_w / holes)
    cell_h = jnp.floor(cell_w * hole_aspect)
    side = jnp.sqrt(1.0 - weight.astype(jnp.float32))
    patterns = []
    for size, cut, cell, u in ((height, cut_h, cell_h, offset[:, 0]), (width, cut_w, cell_w, offset[:, 1])):
        start = jnp.trunc((size - cut) * u).astype(jnp.int32)
        hole = jnp.clip(jnp.floor(cell * side), 1, jnp.maximum(cell - 1, 1)).astype(jnp.int32)
        patterns.append(_stripes(start, cut.astype(jnp.int32), cell.astype(jnp.int32), hole, size, legacy_wrap))
    return 1.0 - (patterns[0][:, :, None] & patterns[1][:, None, :])[..., None].astype(jnp.float32)


def _stripes(start: Array, cut: Array, cell: Array, hole: Array, size: int, legacy_wrap: bool) -> Array:
    """bool [n, size]: places start + t with 0 ≤ t < cut and t mod cell < hole."""
    start, cut, cell, hole = (v[:, None] for v in (start, cut, cell, hole))
    if not legacy_wrap:
        t = jnp.arange(size)[None, :] - start
        return (t >= 0) & (t < cut) & (t % jnp.maximum(cell, 1) < hole)
    # The published code slices with the bounds as they come: a negative one counts from the end of the picture.
    low = jnp.minimum(jnp.arange(size)[None, :] * cell, cut)
    low, high = start + low, start + jnp.minimum(low + hole, cut)
    low, high = (jnp.where(b < 0, jnp.maximum(b + size, 0), b) for b in (low, high))
    place = jnp.arange(size)[None, :, None]
    return ((place >= low[:, None, :]) & (place < high[:, None, :])).any(axis=-1)


def gridmix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 0.2,
    holes: tuple[int, int] = (2, 6),
    area: tuple[float, float] = (0.5, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
    legacy_wrap: bool = False,
) -> Plan:
    """GridMix: a lattice of partner holes inside a random rectangle; the weight is the mask's mean.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        alpha: Beta parameter of λ₀, > 0, which sets the holes' size.
        holes: inclusive range of holes per row.
        area: range of the rectangle's share of the picture.
        aspect: range of its height over its width.
        weight: a given λ₀ instead of a draw.
        per, partner: as in `cutmix`.
        legacy_wrap: rectangles that leave the picture wrap around, as in the published code.
    Returns:
        Plan with a binary mask.
    Raises:
        InputError: alpha ≤ 0; ranges reversed; more holes than the smallest rectangle can have (half its width).
    Example:
        >>> plan = gridmix(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
        >>> plan.mask.shape
        (1, 32, 32, 1)

    Reference:
        Baek, Bang, Shim, "GridMix: Strong Regularization Through Local Context Mapping", 2021.
    """
    batch, height, width = image_size(x)
    for name, (low, high) in (("holes", holes), ("area", area), ("aspect", aspect)):
        if not 0 < low <= high:
            raise InputError(f"{name} must be a range 0 < low ≤ high; got ({low}, {high}).")
    narrowest = int(math.sqrt(int(height * width * area[0]) / aspect[1]))
    if holes[1] > narrowest // 2:
        raise InputError(
            f"holes up to {holes[1]} do not fit a rectangle {narrowest} pixels wide (the smallest drawn); "
            f"use holes=(…, {narrowest // 2}) or larger images."
        )
    key_partner, key_weight, *keys = jax.random.split(key, 6)
    partners = choose_partner(key_partner, batch, partner, per)
    n = draws(batch, per)
    mask = gridmix_mask(
        own_weight(key_weight, batch, alpha, weight, per),
        jax.random.randint(keys[0], (n,), holes[0], holes[1] + 1),
        jax.random.uniform(keys[1], (n,), minval=area[0], maxval=area[1]),
        jax.random.uniform(keys[2], (n,), minval=aspect[0], maxval=aspect[1]),
        jax.random.uniform(keys[3], (n, 2)),
        (height, width),
        legacy_wrap=legacy_wrap,
    )
    return masked_plan(partners, mask, per)


def resizemix_draw(
    scale: Array, center: Array, shape: tuple[int, int], *, bilinear: bool = False
) -> tuple[Array, Grid]:
    """The mask and the move of a miniature of relative size τ around a centre.

    scale: τ [n]; center: int [n, 2] (row, column). Returns the own mask [n, H, W, 1] and the partner's `Grid`.
    """
    low, high = box(scale, center, shape)
    rows = bilinear_rows if bilinear else nearest_rows
    return 1.0 - inside(low, high, shape), Grid(
        rows(low[:, 0], high[:, 0], shape[0]), rows(low[:, 1], high[:, 1], shape[1])
    )


def resizemix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 1.0,
    scope: tuple[float, float] = (0.1, 0.8),
    uniform: bool = False,
    bilinear: bool = False,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """ResizeMix: the whole partner, shrunk by τ, is pasted in; `λ = 1 - pasted area / HW`.

    τ ~ Beta(α, α) where that falls inside `scope`, else τ ~ U(scope).

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        alpha: Beta parameter, > 0.
        scope: range of τ, the miniature's relative size.
        uniform: always τ ~ U(scope).
        bilinear: shrink by bilinear interpolation instead of nearest neighbour.
        per, partner: as in `cutmix`.
    Returns:
        Plan with a binary mask, whose partner is moved by a `Grid`.
    Raises:
        InputError: alpha ≤ 0; scope outside (0, 1] or giving miniatures under 2 pixels.
    Example:
        >>> plan = resizemix(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
        >>> plan.warp[1].rows.shape
        (1, 32)

    Reference:
        Qin, Fang, Zhang, Liu, Wang, Wang, "ResizeMix: Mixing Data with Preserved Object Information and True
        Labels", 2020.
    """
    batch, height, width = image_size(x)
    check_positive("alpha", alpha)
    if not 0.0 < scope[0] <= scope[1] <= 1.0 or scope[0] * min(height, width) < 2:
        raise InputError(
            f"scope {scope} must lie in (0, 1] and give miniatures of at least 2 pixels on {height}×{width}."
        )
    key_partner, key_beta, key_scale, key_place = jax.random.split(key, 4)
    partners = choose_partner(key_partner, batch, partner, per)
    n = draws(batch, per)
    drawn = jax.random.beta(key_beta, alpha, alpha, (n,), jnp.float32)
    flat = jax.random.uniform(key_scale, (n,), minval=scope[0], maxval=scope[1])
    scale = flat if uniform else jnp.where((drawn >= scope[0]) & (drawn <= scope[1]), drawn, flat)
    mask, grid = resizemix_draw(scale, centers(key_place, n, (height, width)), (height, width), bilinear=bilinear)
    grid = jax.tree.map(lambda v: spread_rows(v, batch, per), grid)
    return masked_plan(partners, mask, per)._replace(warp=(None, grid))


def spread_rows(rows: Array, batch: int, per: Per) -> Array:
    """Grid coordinates [n, H] to [B, H], left as [1, H] when the batch shares them."""
    return rows if per == "batch" else spread(rows, batch, per)
