"""The plan: one draw of a mix, and the pure functions that apply it.

Shapes: B batch, k sources of one mixed example, H×W or T places, C channels or classes, N keys.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.warp import Move, move, wide_dtype
from mixcon.ops.pairs import Pairs, slots


class Plan(NamedTuple):
    """One draw of a mix: who is mixed with whom, how much, and where.

    The two-source form is `x'_i = s_i ⊙ x_i + (1 - s_i) ⊙ x_{partner_i}` with `s = mask` where `x` has places and
    `s = weight` where it has none. The k-source form is `x'_i = Σ_k s_ik ⊙ x_{partner_ik}`. Either way it is a linear
    operator on the batch, so the same plan mixes images, tokens, features, targets and the matrix of positive pairs.

    partner: int32 [B], or [B, k]: the index of each source (the example itself is not implied in the k-source form).
    weight:  float32 [B], the example's own share; or [B, k], the share of each source. Targets always use it.
    mask:    None, or [B or 1, *places, 1], the own share of each place; [..., k] the share of each source.
    warp:    None, or (own, partner) moves from `mixcon.mixers.warp`: what happens to a source before it is mixed.
    """

    partner: Array
    weight: Array
    mask: Array | None = None
    warp: tuple[Move | None, Move | None] | None = None


def make_plan(partner: Array, weight: Array | float, mask: Array | None = None) -> Plan:
    """A plan from explicit draws, with its values checked where they are known.

    Args:
        partner: [B] or [B, k] indices.
        weight: own share, scalar or [B]; or the shares [B, k]; in [0, 1].
        mask: optional own share of each place, [B or 1, *places, 1], in [0, 1].
    Returns:
        A `Plan`.
    Raises:
        InputError: weight or mask outside [0, 1], or of the wrong shape; partner not an index array.
    Example:
        >>> plan = make_plan(jnp.array([1, 0]), 0.25)
        >>> mix(plan, jnp.array([[0.0], [4.0]])).tolist()
        [[3.0], [1.0]]
    """
    partner = jnp.asarray(partner)
    if partner.ndim not in (1, 2) or not jnp.issubdtype(partner.dtype, jnp.integer):
        raise InputError(f"partner must be an integer array [B] or [B, k]; got {partner.dtype}{list(partner.shape)}.")
    check_unit("weight", weight)
    weight = jnp.asarray(weight, jnp.float32)
    if weight.ndim == 0:
        weight = jnp.full(partner.shape, weight)
    if weight.shape != partner.shape:
        raise InputError(f"weight has shape {list(weight.shape)}, partner {list(partner.shape)}: they must agree.")
    if mask is not None:
        check_unit("mask", mask)
        mask = jnp.asarray(mask, jnp.float32)
        if mask.ndim < 3 or mask.shape[0] not in (1, partner.shape[0]):
            raise InputError(f"mask must be [B or 1, *places, 1] for B={partner.shape[0]}; got {list(mask.shape)}.")
    return Plan(partner.astype(jnp.int32), weight, mask)


def mix(plan: Plan, x: Array, bank: Array | None = None) -> Array:
    """Apply a plan: `x'_i = s_i ⊙ x_i + (1 - s_i) ⊙ bank_{partner_i}`, or `Σ_k s_ik ⊙ bank_{partner_ik}`.

    Arrays with places ([B, H, W, C] or [B, T, D]) use the mask where the plan has one; vectors [B, D] use the weight.
    Integer token ids [B, T] are selected by the mask, never averaged. Sums are taken in float32 or wider.

    Args:
        plan: the draw.
        x: [B, ...] the batch.
        bank: [M, ...] where partners are taken from (a queue, the other modality, the data set); `x` if None.
    Returns:
        Mixed batch, in the shape and dtype of `x`.
    Raises:
        InputError: the mask is not on the places of `x`; images of integers; integer `x` with a plan without a mask;
            indices outside the bank.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([1.0, 0.5]))
        >>> mix(plan, jnp.array([[0.0], [4.0]])).tolist()
        [[0.0], [2.0]]
    """
    bank = x if bank is None else bank
    if x.ndim == 0 or bank.shape[1:] != x.shape[1:] or x.shape[0] != plan.partner.shape[0]:
        raise InputError(
            f"x {list(x.shape)} and the bank {list(bank.shape)} do not fit a plan for {plan.partner.shape[0]} examples."
        )
    ids = jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_
    if ids and x.ndim == 4:
        raise InputError(f"x holds {x.dtype} images, and integers are not averaged: convert them to float first.")
    parts = _shares(plan, x, ids)
    if ids:
        x, bank = x[..., None], bank[..., None]
    if plan.partner.ndim == 1:
        found = [x, _rows(bank, plan.partner)]
    else:
        found = [_rows(bank, plan.partner[:, k]) for k in range(plan.partner.shape[1])]
    if plan.warp is not None and x.ndim > 2:
        found = [move(how, source) for how, source in zip(plan.warp, found, strict=True)]
    if ids:
        return jnp.where(parts[0] >= 0.5, found[0], found[1])[..., 0]
    dtype = wide_dtype(x.dtype)
    total = parts[0].astype(dtype) * found[0].astype(dtype)
    for part, source in zip(parts[1:], found[1:], strict=True):
        total = total + part.astype(dtype) * source.astype(dtype)
    return total.astype(x.dtype)


def _rows(bank: Array, index: Array) -> Array:
    """Rows of the bank; indices known to be outside it are refused, so that inside jit nothing has to be checked."""
    if (
        not isinstance(index, jax.core.Tracer)
        and index.size
        and not 0 <= np.asarray(index).min() <= np.asarray(index).max() < len(bank)  # numpy: known inside jit, too
    ):
        raise InputError(f"partner holds indices outside 0..{len(bank) - 1}, the rows of the bank.")
    return jnp.take(bank, index, axis=0, mode="clip")


def mix_targets(
    plan: Plan, y: Array, *, num_classes: int | None = None, smoothing: float = 0.0, bank: Array | None = None
) -> Array:
    """Mix targets by the plan's weights: `y'_i = w_i y_i + (1 - w_i) y_{partner_i}`.

    Args:
        plan: the draw.
        y: class indices [B] (integers), one-hot or multi-label rows [B, C], or regression targets [B] or [B, D].
        num_classes: C, needed for class indices.
        smoothing: ε of label smoothing, applied to each source before it is mixed: `(1 - ε) y + ε / C`.
        bank: targets of the bank that partners are taken from, when that is not the batch.
    Returns:
        float targets [B, C], [B] or [B, D].
    Raises:
        InputError: class indices without `num_classes`, or not below it; smoothing outside [0, 1) or of regression
            targets.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.75, 1.0]))
        >>> mix_targets(plan, jnp.array([0, 1]), num_classes=2).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    y = dense_targets(y, num_classes, smoothing)
    other = y if bank is None else dense_targets(bank, num_classes, smoothing)
    flat = Plan(plan.partner, plan.weight)
    if y.ndim > 2:
        raise InputError(f"y must be [B], [B, C] or [B, D]; got {list(y.shape)}.")
    if y.ndim == 1:
        return mix(flat, y[:, None], other[:, None])[:, 0]
    return mix(flat, y, other)


def dense_targets(y: Array, num_classes: int | None, smoothing: float = 0.0) -> Array:
    """Class indices to (smoothed) one-hot rows; anything else to float, unchanged."""
    y = jnp.asarray(y)
    if isinstance(smoothing, (int, float)) and not 0.0 <= smoothing < 1.0:
        raise InputError(f"smoothing must lie in [0, 1); got {smoothing}.")
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        if num_classes is None:
            raise InputError("y holds class indices: give num_classes=C (or pass float targets for regression).")
        if not isinstance(y, jax.core.Tracer) and y.size:
            known = np.asarray(y)  # also of a constant inside jit, where jnp's minimum would be traced
            if not 0 <= known.min() <= known.max() < num_classes:
                raise InputError(f"y holds classes {known.min()} to {known.max()}, num_classes is {num_classes}.")
        y = jax.nn.one_hot(y, num_classes, dtype=jnp.float32)
    elif not jnp.issubdtype(y.dtype, jnp.floating):
        y = y.astype(jnp.float32)
    elif not isinstance(y, jax.core.Tracer) and not np.isfinite(np.asarray(y, np.float32)).all():
        raise InputError("y holds values that are not finite; leave those examples out.")
    if isinstance(smoothing, (int, float)) and smoothing == 0.0:
        return y
    if y.ndim != 2:
        raise InputError("smoothing needs class rows [B, C]; regression targets [B] cannot be smoothed.")
    return (1.0 - smoothing) * y + smoothing / y.shape[-1]


def sources(plan: Plan) -> tuple[Array, Array]:
    """The rows of the mixing matrix M, factored: `M[i, index_ik] += weight_ik`.

    Args:
        plan: the draw.
    Returns:
        index int32 [B, k] and weight float32 [B, k]; k = 2 (own, partner) for a two-source plan.
    Example:
        >>> index, weight = sources(Plan(jnp.array([1, 0]), jnp.array([0.75, 0.5])))
        >>> index.tolist(), weight.tolist()
        ([[0, 1], [1, 0]], [[0.75, 0.25], [0.5, 0.5]])
    """
    if plan.partner.ndim == 2:
        return plan.partner, plan.weight
    own = jnp.arange(plan.partner.shape[0], dtype=jnp.int32)
    return jnp.stack([own, plan.partner], axis=1), jnp.stack([plan.weight, 1.0 - plan.weight], axis=1)


def mix_pairs(
    plan: Plan,
    pairs: Array | None = None,
    side: Literal["rows", "columns", "both"] = "rows",
    *,
    labels: Array | None = None,
) -> Array | Pairs:
    """Mix the matrix of positive pairs: `M T` (rows were mixed), `T Mᵀ` (columns) or `M T Mᵀ` (both).

    Without `pairs` the answer is factored, in the form that the engine of `mixcon.ops` builds tiles from: T is the
    identity, or "same label" if labels are given. A dense T is mixed by gathering its rows; M is never formed.

    Args:
        plan: the draw.
        pairs: a dense T, [B, N] with the mixed side of length B (both: [B, B]); None for the factored form.
        side: which side of T was mixed.
        labels: int [B]; T_ij = [y_i = y_j] (factored form only).
    Returns:
        T' as `Pairs`, or dense in the shape and dtype of T.
    Raises:
        InputError: T does not fit the plan; labels together with a dense T.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.75, 1.0]))
        >>> mix_pairs(plan, jnp.eye(2)).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
        >>> mix_pairs(plan).matrix(2, 2).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    batch = plan.partner.shape[0]
    if side not in ("rows", "columns", "both"):
        raise InputError(f"side must be 'rows', 'columns' or 'both'; got {side!r}.")
    if pairs is None:
        return _factored_pairs(plan, side, labels)
    if labels is not None:
        raise InputError("labels make the factored form; with a dense matrix of pairs leave them out.")
    sizes = pairs.shape if side == "both" else (pairs.shape[0 if side == "rows" else -1],)
    if pairs.ndim != 2 or any(n != batch for n in sizes):
        raise InputError(f"pairs {list(pairs.shape)} does not fit a plan for {batch} examples on its {side}.")
    flat = Plan(plan.partner, plan.weight)
    if side in ("rows", "both"):
        pairs = mix(flat, pairs)
    if side in ("columns", "both"):
        pairs = mix(flat, pairs.T).T
    return pairs


def _factored_pairs(plan: Plan, side: str, labels: Array | None) -> Pairs:
    index, weight = sources(plan)
    if labels is not None and labels.shape != (index.shape[0],):
        raise InputError(f"labels must be [{index.shape[0]}]; got {list(labels.shape)}.")
    ids = index if labels is None else labels[index]
    if side == "both":
        return slots(ids, weight, ids, weight)
    rows = slots(ids, weight, labels)
    return rows if side == "rows" else rows.T


def at(plan: Plan, places: tuple[int, ...], flatten: bool = False) -> Plan:
    """The same plan on a coarser grid: the mask is averaged over the pixels of each cell.

    Args:
        plan: a plan, with or without a mask.
        places: (h, w) or (t,) of the feature map; each must divide the mask's.
        flatten: give the mask as tokens [B, h·w, 1], for a feature [B, T, D].
    Returns:
        A plan with its mask on `places`.
    Raises:
        InputError: the grid does not divide the mask's, or the plan moves its sources.
    Example:
        >>> mask = jnp.ones((1, 4, 4, 1)).at[:, :2].set(0.0)
        >>> at(Plan(jnp.array([0]), jnp.array([0.5]), mask), (2, 1)).mask[0, :, 0, 0].tolist()
        [0.0, 1.0]
    """
    if plan.mask is None:
        return plan
    if plan.warp is not None:
        raise InputError(
            "this plan moves its sources before mixing; it applies only at the resolution it was drawn for."
        )
    old = plan.mask.shape[1:-1]
    if len(old) != len(places) or any(o % p for o, p in zip(old, places, strict=True)):
        raise InputError(f"places {list(places)} must divide the mask's places {list(old)}.")
    shape = [plan.mask.shape[0]]
    for o, p in zip(old, places, strict=True):
        shape += [p, o // p]
    mask = plan.mask.reshape(*shape, plan.mask.shape[-1]).mean(axis=tuple(range(2, 2 * len(places) + 1, 2)))
    return plan._replace(mask=mask.reshape(mask.shape[0], -1, mask.shape[-1]) if flatten else mask)


def check_unit(name: str, value: object) -> None:
    """Refuse a known value outside [0, 1]; traced values pass (they cannot be read before compilation)."""
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value, dtype=np.float32)
    if not ((known >= 0.0) & (known <= 1.0)).all():
        raise InputError(f"{name} must lie in [0, 1]; got values from {known.min()} to {known.max()}.")


def _shares(plan: Plan, x: Array, ids: bool) -> list[Array]:
    """The share of each source, broadcastable to x (to x[..., None] for token ids)."""
    mask, rank = plan.mask, x.ndim + 1 if ids else x.ndim
    if ids and mask is None:
        raise InputError(f"x is {x.dtype}: integers are selected, not averaged, so the plan needs a mask.")
    if mask is None or rank <= 2:
        columns = [plan.weight, 1.0 - plan.weight] if plan.weight.ndim == 1 else list(plan.weight.T)
        return [c.reshape(c.shape[0], *([1] * (rank - 1))) for c in columns]
    places = x.shape[1 : rank - 1]
    if mask.ndim != rank or any(m not in (1, p) for m, p in zip(mask.shape[1:-1], places, strict=True)):
        raise InputError(
            f"the mask {list(mask.shape)} is not on the places {list(places)} of x {list(x.shape)}; "
            "use mixers.at(plan, places) to mix a feature map of another size."
        )
    return [mask, 1.0 - mask] if mask.shape[-1] == 1 else [mask[..., k, None] for k in range(mask.shape[-1])]
