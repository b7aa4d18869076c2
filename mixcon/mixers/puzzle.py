"""PuzzleMix: which blocks to keep is a convex labelling of a grid; where salient blocks go is a greedy transport."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import image_size, mask_weight, own_weight
from mixcon.mixers.graphcut import convex_label_mincut
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.salient import check_map
from mixcon.mixers.warp import Blocks


class PuzzleCosts(NamedTuple):
    """Integer costs of the labelling, and the block saliencies they were made from."""

    unary: Array  # int32 [N, B, B, L]
    vertical: Array  # int32 [N, B-1, B]
    horizontal: Array  # int32 [N, B, B-1]


def block_mean(x: Array, blocks: int) -> Array:
    """Means over a grid of blocks: [N, H, W, ...] → [N, blocks, blocks, ...]."""
    n, height, width = x.shape[:3]
    shape = (n, blocks, height // blocks, blocks, width // blocks, *x.shape[3:])
    return x.reshape(shape).mean(axis=(2, 4))


def block_share(saliency: Array, blocks: int) -> Array:
    """Block saliency that sums to one per image, float32 [N, blocks, blocks]."""
    mean = block_mean(saliency.astype(jnp.float32), blocks)
    return mean / jnp.maximum(mean.sum(axis=(1, 2), keepdims=True), 1e-12)


def puzzle_costs(
    image: Array,
    saliency: Array,
    partner: Array,
    weight: Array,
    *,
    blocks: int,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    neighbourhood: int = 4,
) -> PuzzleCosts:
    """The energy of a labelling, scaled by 1000 B² and truncated.

    Unary: the saliency that a label gives up, half of the seams' data term, and the prior `-η/B² log Bin(l; λ)`.
    Pairwise:
    `w (l - l')² / (L-1)²` with `w = (V₁₂ + V₂₁ - V₁₁ - V₂₂)/2 + β/16B`, V the colour steps across a seam.

    Args:
        image: [N, H, H, C] in [0, 1].
        saliency: ≥ 0, [N, H, H].
        partner: int [N].
        weight: own share λ, scalar.
        blocks: B, a power of two.
        labels: L; label l keeps the share 1 - l/(L-1) of the image itself.
        beta, gamma, eta: weights of smoothness, data term and prior.
        neighbourhood: side of the patches whose colours are compared, pixels.
    Returns:
        `PuzzleCosts`.
    Example:
        >>> x, s = jnp.zeros((2, 8, 8, 3)), jnp.ones((2, 8, 8))
        >>> puzzle_costs(x, s, jnp.array([1, 0]), jnp.float32(0.5), blocks=2).unary.shape
        (2, 2, 2, 3)

    Reference:
        Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", 2020
    """
    size = image.shape[1] // blocks
    per_block = size // min(neighbourhood, size)
    smooth = beta / blocks / 16
    own = block_share(saliency, blocks)
    keep_own, keep_other = own, own[partner]  # U1, U2: what is lost when the partner (the image) is chosen
    colour = block_mean(image.astype(jnp.float32), blocks * per_block)
    pair = {1: colour, 2: colour[partner]}
    edges = []
    for axis in (1, 2):
        steps = {}
        for p, q in ((1, 1), (1, 2), (2, 1), (2, 2)):
            upper, lower = (jnp.moveaxis(v, axis, 1) for v in (pair[p], pair[q]))
            step = jnp.abs(upper[:, per_block - 1 : -1 : per_block] - lower[:, per_block::per_block]).mean(axis=-1)
            step = step.reshape(*step.shape[:2], blocks, per_block).mean(axis=-1) * (smooth * gamma)
            steps[p, q] = jnp.moveaxis(step, 1, axis)
        first = [(0, 0)] * 3
        second = [(0, 0)] * 3
        first[axis], second[axis] = (0, 1), (1, 0)
        keep_other = keep_other + jnp.pad((steps[1, 2] + steps[1, 1]) / 2, first)
        keep_own = keep_own + jnp.pad((steps[2, 1] + steps[2, 2]) / 2, first)
        keep_other = keep_other + jnp.pad((steps[2, 1] + steps[1, 1]) / 2, second)
        keep_own = keep_own + jnp.pad((steps[1, 2] + steps[2, 2]) / 2, second)
        edges.append(jnp.maximum((steps[1, 2] + steps[2, 1] - steps[1, 1] - steps[2, 2]) / 2 + smooth, 0.0))
    share = jnp.arange(labels, dtype=jnp.float32) / (labels - 1)
    row = (1, 1, 1, labels)
    unary = (1.0 - share).reshape(row) * keep_other[..., None] + share.reshape(row) * keep_own[..., None]
    unary = unary + _prior(weight, blocks, labels, eta).reshape(row)
    scale = 1000.0 * blocks * blocks
    return PuzzleCosts(*(jnp.trunc(scale * c).astype(jnp.int32) for c in (unary, *edges)))


def _prior(weight: Array, blocks: int, labels: int, eta: float) -> Array:
    count = jnp.arange(labels, dtype=jnp.float32)
    choose = jnp.array([float(_choose(labels - 1, q)) for q in range(labels)], jnp.float32)
    weight = weight.astype(jnp.float32)
    chance = choose * weight ** (labels - 1 - count) * (1.0 - weight) ** count
    return -eta / blocks**2 * jnp.log(chance + 1e-8)


def _choose(n: int, k: int) -> int:
    return 1 if k == 0 else _choose(n, k - 1) * (n - k + 1) // k


def greedy_transport(share: Array, wanted: Array, *, t_eps: float = 0.8) -> Array:
    """Move salient blocks into wanted places: each source proposes its cheapest place, each place takes one proposal.

    `cost_ij = t_eps d²_ij - share_i wanted_j`; losers pay 1 more for that place, T rounds; the last round's winners
    move.

    Args:
        share: block saliency [N, T, T].
        wanted: [N, T, T], 1 where the mask shows this image.
        t_eps: price of distance (squared, in units of the grid).
    Returns:
        int32 [N, T·T]: the place that each source block goes to, or -1.
    Example:
        >>> greedy_transport(jnp.array([[[1.0, 0], [0, 0]]]), jnp.ones((1, 2, 2)))[0, 0]
        Array(0, dtype=int32)

    Reference:
        Kim, Choo, Song, "Puzzle Mix", 2020
    """
    n, side, _ = share.shape
    places = side * side
    place = np.stack(np.divmod(np.arange(places), side), axis=1).astype(np.float32)
    squared = np.square(place[:, None] - place[None]).sum(axis=-1) / max(side - 1, 1) ** 2
    gain = share.reshape(n, places, 1) * wanted.reshape(n, 1, places).astype(jnp.float32)
    cost = t_eps * jnp.asarray(squared, jnp.float32)[None] - gain
    identity = jnp.arange(places)

    def one_round(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        cost = state[0]
        plan = jnp.argmin(cost, axis=2)[:, :, None] == identity[None, None, :]
        winner = jnp.argmin(jnp.where(plan, cost, 0.0), axis=1)[:, None, :] == identity[None, :, None]
        won = plan & winner
        return cost + (plan & ~won).astype(jnp.float32), won

    _, won = jax.lax.fori_loop(0, side, one_round, (cost, jnp.zeros(cost.shape, bool)))
    return jnp.where(won.any(axis=2), jnp.argmax(won, axis=2), -1).astype(jnp.int32)


def moved_blocks(target: Array) -> Blocks:
    """The move of `greedy_transport`: place j reads the source sent to it, or itself when there is none."""
    n, places = target.shape
    arrival = (target[:, :, None] == jnp.arange(places)[None, None, :]).transpose(0, 2, 1)
    itself = jnp.broadcast_to(jnp.arange(places)[None, :], (n, places))
    return Blocks(jnp.where(arrival.any(axis=2), jnp.argmax(arrival, axis=2), itself).astype(jnp.int32))


def finer_blocks(move: Blocks, factor: int) -> Blocks:
    """The same move with every block cut into factor × factor blocks."""
    places = move.source.shape[1]
    side = round(places**0.5)
    row, col = jnp.divmod(jnp.arange(places * factor**2), side * factor)
    coarse = move.source[:, (row // factor) * side + col // factor]
    source_row, source_col = jnp.divmod(coarse, side)
    fine = (source_row * factor + (row % factor)[None, :]) * (side * factor)
    return Blocks((fine + source_col * factor + (col % factor)[None, :]).astype(jnp.int32))


def puzzle_plan(
    image: Array,
    saliency: Array,
    partner: Array,
    weight: Array,
    *,
    blocks: int,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    neighbourhood: int = 4,
    transport: bool = True,
    t_size: int = 4,
    t_eps: float = 0.8,
    grid: int | None = None,
) -> Plan:
    """PuzzleMix from its draws; arguments as `puzzlemix` and `puzzle_costs`. `grid`: blocks per side of the plan's
    moves."""
    batch, height, _, _ = image.shape
    costs = puzzle_costs(
        image, saliency, partner, weight,
        blocks=blocks, labels=labels, beta=beta, gamma=gamma, eta=eta, neighbourhood=neighbourhood,
    )  # fmt: skip
    chosen = convex_label_mincut(*costs)
    mask = 1.0 - chosen.astype(jnp.float32) / (labels - 1)
    pixels = _repeat(mask, height // blocks)[..., None]
    plan = Plan(partner, mask_weight(pixels, batch), pixels)
    if not transport:
        return plan
    places = height // t_size if 0 < t_size < height // blocks else blocks
    share, shown = block_share(saliency, places), _repeat(mask, places // blocks)
    grid = places if grid is None else grid
    own, other = (
        finer_blocks(moved_blocks(greedy_transport(s, m > 0, t_eps=t_eps)), grid // places)
        for s, m in ((share, shown), (share[partner], 1.0 - shown))
    )
    return plan._replace(warp=(own, other))


def _repeat(cells: Array, times: int) -> Array:
    return jnp.repeat(jnp.repeat(cells, times, axis=1), times, axis=2)


def puzzlemix(
    key: Array,
    x: Array,
    *,
    saliency: Array,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    alpha: float | Array = 1.0,
    block_nums: tuple[int, ...] | None = None,
    transport: bool = True,
    t_size: int | None = None,
    t_eps: float = 0.8,
    weight: float | Array | None = None,
    partner: How | Array = "permutation",
) -> Plan:
    """PuzzleMix: keep salient blocks with smooth seams (an exact min-cut), and move them to where they show.

    One λ and one number of blocks per batch; the mask, the moves and the weight `mean(mask_i)` are each example's own.

    Args:
        key: PRNG key.
        x: square images [B, H, H, C], normalised by mean and std.
        saliency: ≥ 0, [B, H, H]: `input_gradient_saliency` of the network in evaluation mode.
        mean, std: per channel (or one for all); `x · std + mean` must lie in [0, 1] and is clipped to it.
        alpha: Beta parameter of λ.
        block_nums: numbers of blocks per side to draw from; if None (2, 4, 8, 16) up to 64 pixels, (2, 4, 8) above.
        transport: move blocks. t_size: side of a moved block in pixels, -1 for the mask's; if None 4 up to 64 pixels,
            -1 above. t_eps: price of distance.
        weight: a given λ instead of a draw.
        partner: a rule of `choose_partner`, or indices [B].
    Returns:
        Plan with a mask of levels 0, ½, 1 and, with transport, `Blocks` moves for both sources.
    Raises:
        InputError: blocks that are not 2, 4, 8 or 16, do not divide the image or are no whole number of 4-pixel
            patches; an image that is not square; saliency of another shape.
    Example:
        >>> x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
        >>> plan = puzzlemix(jax.random.key(1), x, saliency=x.mean(-1), block_nums=(2, 4))
        >>> plan.mask.shape
        (2, 16, 16, 1)

    Reference:
        Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", 2020
    """
    batch, height, _ = image_size(x, square=True)
    check_map("saliency", saliency, x)
    small = height <= 64
    block_nums = ((2, 4, 8, 16) if small else (2, 4, 8)) if block_nums is None else block_nums
    t_size = (4 if small else -1) if t_size is None else t_size
    if not block_nums or any(b not in (2, 4, 8, 16) or height % b for b in block_nums):
        raise InputError(f"block_nums {block_nums} must be among 2, 4, 8, 16 and divide the image size {height}.")
    if any(height // b % min(4, height // b) for b in block_nums):
        raise InputError(
            f"block_nums {block_nums}: blocks of a {height} pixel image must hold whole patches of 4 pixels; "
            "leave out the largest number of blocks."
        )
    if transport and t_size > 0 and height % t_size:
        raise InputError(f"t_size {t_size} must divide the image size {height} (or be -1).")
    key_partner, key_weight, key_blocks = jax.random.split(key, 3)
    partners = choose_partner(key_partner, batch, partner)
    own = own_weight(key_weight, batch, alpha, weight, "batch")[0]
    shift, scale = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
    image = jnp.clip(x.astype(jnp.float32) * scale + shift, 0.0, 1.0)
    sides = [height // t_size if 0 < t_size < height // b else b for b in block_nums]

    plans = [
        partial(puzzle_plan, blocks=b, transport=transport, t_size=t_size, t_eps=t_eps, grid=max(sides))
        for b in block_nums
    ]
    choice = jax.random.randint(key_blocks, (), 0, len(block_nums))
    return jax.lax.switch(choice, plans, image, saliency, partners, own)
