"""Mixers that look: saliency, attention or class activations, given as data, decide what is pasted where."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, draws, image_size, mask_weight, own_weight, spread, spread_mask
from mixcon.mixers.partner import How, choose_partner, one_cycle_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.region import box, centers, cutmix_mask, inside, masked_plan, spread_rows
from mixcon.mixers.saliency import normalise_saliency, peak
from mixcon.mixers.warp import Grid, corner_rows


def check_map(name: str, value: Array, x: Array, shape: tuple[int, ...] | None = None) -> None:
    """Refuse a map that is not [B, *shape] (the image's places by default)."""
    want = (x.shape[0], *(x.shape[1:3] if shape is None else shape))
    if value.shape != want:
        raise InputError(f"{name} must be {list(want)}; got {list(value.shape)}.")


def saliencymix(
    key: Array,
    x: Array,
    *,
    saliency: Array,
    alpha: float | Array = 1.0,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """SaliencyMix: CutMix whose box is centred on the partner's saliency peak.

    With `per="batch"` the peak of the first example's partner serves the whole batch, as published.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        saliency: [B, H, W], e.g. `fine_grained_saliency(image_uint8, bgr=True)`.
        alpha, weight, per, partner: as in `cutmix`.
    Returns:
        Plan with a binary mask.
    Raises:
        InputError: saliency not [B, H, W]; as `cutmix`.
    Example:
        >>> s = jnp.zeros((2, 8, 8)).at[:, 4, 4].set(1.0)
        >>> plan = saliencymix(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), saliency=s, weight=0.75)
        >>> float(plan.mask[0, 4, 4, 0])
        0.0

    Reference:
        Uddin, Monira, Shin, Chung, Bae, "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
        Regularization", 2021
    """
    batch, height, width = image_size(x)
    check_map("saliency", saliency, x)
    key_partner, key_weight = jax.random.split(key)
    partners = choose_partner(key_partner, batch, partner, per)
    own = own_weight(key_weight, batch, alpha, weight, per)
    looked_at = saliency[partners[: draws(batch, per)]]
    return masked_plan(partners, cutmix_mask(own, peak(looked_at), (height, width)), per)


def top_cells(score: Array, count: Array) -> Array:
    """1 on the `count` highest cells of each row (ties: the lowest index first), else 0. [n, P], [n] → float32 [n,
    P]."""
    rank = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1)
    return (rank < count[:, None]).astype(jnp.float32)


def upsample_cells(cells: Array, shape: tuple[int, int]) -> Array:
    """Nearest-neighbour cells [n, h, w] to pixels [n, H, W, 1], pixel i reading cell ⌊i h/H⌋."""
    rows, cols = (
        (jnp.arange(n, dtype=jnp.float32) * jnp.float32(m / n)).astype(jnp.int32)
        for n, m in zip(shape, cells.shape[1:], strict=True)
    )
    rows, cols = jnp.minimum(rows, cells.shape[1] - 1), jnp.minimum(cols, cells.shape[2] - 1)
    return jnp.take(jnp.take(cells, rows, axis=1), cols, axis=2)[..., None]


def attentivemix(
    key: Array,
    x: Array,
    *,
    features: Array,
    alpha: float | Array = 2.0,
    top_k: int | None = None,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """AttentiveMix(+): each example keeps its k most active cells; the partner fills the rest.

    "+" (top_k=None): `k = clip(⌊a² λ₀⌋, 1, a²)`; the original keeps a fixed k = 6 of 49.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        features: last map of a frozen network, [B, a, b, D] (averaged over D) or activations [B, a, b].
        alpha: Beta parameter of λ₀ for the "+" form.
        top_k: fixed number of cells instead.
        weight, per, partner: as in `cutmix`.
    Returns:
        Plan with a binary mask per example.
    Raises:
        InputError: features of another batch; top_k outside 1..a·b.
    Example:
        >>> f = jnp.array([[[1.0, 0.0], [0.0, 0.0]]] * 2)
        >>> plan = attentivemix(jax.random.key(0), jnp.zeros((2, 4, 4, 3)), features=f, top_k=1)
        >>> plan.mask[0, :, :, 0].sum(), plan.weight[0]
        (Array(4., dtype=float32), Array(0.25, dtype=float32))

    Reference:
        Walawalkar, Shen, Liu, Savvides, "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning
        Based
        Image Classification", 2020.
    """
    batch, height, width = image_size(x)
    score = features.astype(jnp.float32).mean(axis=-1) if features.ndim == 4 else features.astype(jnp.float32)
    if score.ndim != 3 or score.shape[0] != batch:
        raise InputError(f"features must be [{batch}, a, b, D] or [{batch}, a, b]; got {list(features.shape)}.")
    cells = score.shape[1] * score.shape[2]
    key_partner, key_weight = jax.random.split(key)
    if top_k is None:
        own = spread(own_weight(key_weight, batch, alpha, weight, per), batch, per)
        count = jnp.clip(jnp.floor(cells * own), 1, cells).astype(jnp.int32)
    elif 1 <= top_k <= cells:
        count = jnp.full(batch, top_k, jnp.int32)
    else:
        raise InputError(f"top_k must lie in 1..{cells}; got {top_k}.")
    kept = top_cells(score.reshape(batch, cells), count).reshape(score.shape)
    return masked_plan(
        choose_partner(key_partner, batch, partner, per), upsample_cells(kept, (height, width)), "example"
    )


def guidedmixup(
    key: Array,
    x: Array,
    *,
    saliency: Array,
    blur: int = 7,
    pairing: Literal["one_cycle", "given"] = "one_cycle",
    partner: How | Array = "permutation",
) -> Plan:
    """GuidedMixup: every pixel is shared by relative saliency, `M_A = s_A / (s_A + s_B)`, `w = mean(M_A)`.

    Args:
        key: PRNG key (read only with `pairing="given"`).
        x: images [B, H, W, C]; only the shape is read.
        saliency: ≥ 0, [B, H, W]: `spectral_residual_saliency` or `input_gradient_saliency`.
        blur: width of the Gaussian that smooths the maps; 0 for maps already normalised.
        pairing: "one_cycle" pairs unlike maps, as the paper; "given" uses `partner` (the published code's random
        pairs).
        partner: as in `cutmix`, for `pairing="given"`.
    Returns:
        Plan with a soft mask per example.
    Raises:
        InputError: saliency not [B, H, W]; unknown pairing.
    Example:
        >>> s = jnp.ones((2, 8, 8))
        >>> guidedmixup(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), saliency=s).weight.tolist()
        [0.5, 0.5]

    Reference:
        Kang, Kim, "GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps", 2023
    """
    batch, _, _ = image_size(x)
    check_map("saliency", saliency, x)
    if pairing not in ("one_cycle", "given"):
        raise InputError(f"pairing must be 'one_cycle' or 'given'; got {pairing!r}.")
    share = normalise_saliency(saliency, blur=blur)
    partners = one_cycle_partner(share) if pairing == "one_cycle" else choose_partner(key, batch, partner)
    total = share + share[partners]
    mask = jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), 0.5)[..., None]
    return masked_plan(partners, mask, "example")


def snapmix_draw(
    weight: tuple[Array, Array], center: tuple[Array, Array], percent: Array, partner: Array, labels: Array, per: Per
) -> Plan:
    """SnapMix from its draws: two boxes (where to paste, what to crop), percent maps [B, H, W] and labels [B]."""
    batch, *shape = percent.shape
    size = (shape[0], shape[1])
    (low_a, high_a), (low_b, high_b) = (box(jnp.sqrt(1.0 - w), c, size) for w, c in zip(weight, center, strict=True))
    empty = ((high_a <= low_a) | (high_b <= low_b)).any(axis=1)
    mask = jnp.where(empty[:, None, None, None], 1.0, 1.0 - inside(low_a, high_a, size))
    cropped = inside(low_b, high_b, size)[..., 0]
    rows, cols = (
        spread_rows(corner_rows(low_a[:, i], high_a[:, i], low_b[:, i], high_b[:, i], size[i]), batch, per)
        for i in (0, 1)
    )
    mask, cropped, empty = (spread_mask(v, batch, per) for v in (mask, cropped, empty))
    given = percent[partner]
    total = percent.sum(axis=(1, 2))
    own = (percent * mask[..., 0]).sum(axis=(1, 2)) / (total + 1e-8)
    other = (given * cropped).sum(axis=(1, 2)) / (total[partner] + 1e-8)
    area = mask_weight(mask, batch)
    own, other = jnp.where(total > 0, own, area), jnp.where(total[partner] > 0, other, 1.0 - area)
    same = labels == labels[partner]
    own, other = jnp.where(same, own + other, own), jnp.where(same, own + other, other)
    own, other = jnp.where(empty, 1.0, own), jnp.where(empty, 0.0, other)
    sources = jnp.stack([jnp.arange(batch, dtype=jnp.int32), partner.astype(jnp.int32)], axis=1)
    return Plan(sources, jnp.stack([own, other], axis=1), mask, (None, Grid(rows, cols)))


def snapmix(
    key: Array,
    x: Array,
    *,
    percent: Array,
    labels: Array,
    alpha: float | Array = 5.0,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """SnapMix: a crop of the partner is stretched into a box of its own; each label weighs what its class shows.

    `w_A = 1 - Σ_box S_A`, `w_B = Σ_crop S_B`; the two need not sum to one. Equal labels: both weights become their sum.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        percent: semantic percent maps [B, H, W] (see `semantic_percent_map`).
        labels: classes, int [B].
        alpha: Beta parameter of both boxes.
        per, partner: as in `cutmix`.
    Returns:
        Plan in two-source form [B, 2] (own, partner), with a binary mask and a `Grid` for the partner.
    Raises:
        InputError: percent or labels of the wrong shape; alpha ≤ 0.
    Example:
        >>> s = jnp.full((2, 8, 8), 1 / 64)
        >>> plan = snapmix(jax.random.key(1), jnp.zeros((2, 8, 8, 3)), percent=s, labels=jnp.array([0, 1]))
        >>> plan.weight.shape
        (2, 2)

    Reference:
        Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", 2021
    """
    batch, height, width = image_size(x)
    check_map("percent", percent, x)
    check_map("labels", labels, x, ())
    key_partner, *keys = jax.random.split(key, 5)
    partners = choose_partner(key_partner, batch, partner, per)
    weights = (own_weight(keys[0], batch, alpha, None, per), own_weight(keys[1], batch, alpha, None, per))
    n = draws(batch, per)
    places = (centers(keys[2], n, (height, width)), centers(keys[3], n, (height, width)))
    return snapmix_draw(weights, places, percent.astype(jnp.float32), partners, labels, per)
