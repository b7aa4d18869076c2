"""Looking at mixes: utilisation, manifold intrusion, and whether labels say what is visible."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan, sources
from mixcon.mixers.warp import wide_dtype


def _squared_distances(a: Array, b: Array) -> Array:
    a, b = (v.reshape(v.shape[0], -1).astype(wide_dtype(v.dtype)) for v in (a, b))
    squared = jnp.square(a).sum(axis=1)[:, None] + jnp.square(b).sum(axis=1)[None, :] - 2.0 * a @ b.T
    return jnp.maximum(squared, 0.0)


def utilization(queries: Array, train: Array, mixed: Array | None = None) -> Array:
    """How near unseen examples lie to the training set: `mean_q min_x ‖f(q) - f(x)‖²`, lower is nearer.

    Args:
        queries: features of unseen examples [Q, D].
        train: features of training examples [N, D].
        mixed: features of mixed examples [M, D], added to the training set.
    Returns:
        Scalar; with `mixed` it can only fall.
    Raises:
        InputError: feature widths differ, or an empty set.
    Example:
        >>> float(utilization(jnp.zeros((1, 2)), jnp.ones((1, 2)), mixed=jnp.full((1, 2), 0.5)))
        0.5

    Reference:
        Venkataramanan et al., "It Takes Two to Tango: Mixup for Deep Metric Learning", 2022
    """
    pool = train if mixed is None else jnp.concatenate([train, mixed])
    if queries.ndim != 2 or pool.ndim != 2 or queries.shape[1] != pool.shape[1] or 0 in (len(queries), len(pool)):
        raise InputError(f"want features [Q, D] and [N, D]; got {list(queries.shape)}, {list(pool.shape)}.")
    return _squared_distances(queries, pool).min(axis=1).mean()


class Intrusion(NamedTuple):
    """rate: share of mixes that intrude; each: bool [B]; nearest: int32 [B], the real example that each lies next
    to."""

    rate: Array
    each: Array
    nearest: Array


def manifold_intrusion(
    plan: Plan, mixed: Array, real: Array, labels: Array, real_labels: Array, *, radius: float | Array | None = None
) -> Intrusion:
    """Mixes that land on a real example of a class that they do not contain, where their soft label is wrong.

    A mix intrudes if its nearest real example is within `radius` and belongs to neither (none) of its sources' classes.

    Args:
        plan: the draw.
        mixed: mixed examples or their features [B, ...].
        real: real ones [N, ...].
        labels: int [B], of the batch that was mixed.
        real_labels: int [N].
        radius: distance that counts as landing on; by default the median distance of real examples to their nearest
            neighbour.
    Returns:
        `Intrusion`.
    Raises:
        InputError: arrays that do not belong together; radius ≤ 0.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]))
        >>> mixed, real = jnp.zeros((2, 1)), jnp.array([[0.0], [1.0], [-1.0]])
        >>> y = jnp.array([0, 1, 1])
        >>> float(manifold_intrusion(plan, mixed, real, jnp.array([1, 1]), y, radius=0.5).rate)
        1.0

    Reference:
        Guo, Mao, Zhang, "MixUp as Locally Linear Out-of-Manifold Regularization", 2019
    """
    if mixed.shape[0] != labels.shape[0] or real.shape[0] != real_labels.shape[0] or mixed.shape[1:] != real.shape[1:]:
        raise InputError(
            f"mixed {list(mixed.shape)} with labels {list(labels.shape)}, real {list(real.shape)} with labels "
            f"{list(real_labels.shape)} do not belong together."
        )
    if isinstance(radius, (int, float)) and radius <= 0:
        raise InputError(f"radius must be > 0; got {radius}.")
    squared = _squared_distances(mixed, real)
    nearest = squared.argmin(axis=1)
    if radius is None:
        among = _squared_distances(real, real)
        among = jnp.where(jnp.eye(len(real), dtype=bool), jnp.inf, among)
        limit = jnp.median(among.min(axis=1))
    else:
        limit = jnp.square(jnp.asarray(radius, squared.dtype))
    index, weight = sources(plan)
    found = real_labels[nearest]
    present = ((labels[index] == found[:, None]) & (weight > 0)).any(axis=1)
    each = (squared.min(axis=1) <= limit) & ~present
    return Intrusion(each.mean(), each, nearest.astype(jnp.int32))


class LabelQuality(NamedTuple):
    """How well weights follow what is visible. error, correlation: scalars; visible: [B], the share that is shown."""

    error: Array
    correlation: Array
    visible: Array


def label_quality(plan: Plan, importance: Array) -> LabelQuality:
    """Compare a two-source plan's weights with the share of *important* content that each source shows.

    `v = Σ m s_i / (Σ m s_i + Σ (1-m) s_partner)`: ink, an object mask, or a saliency map. Where nothing important is
    visible the area stands in.

    Args:
        plan: an image plan with a mask; its weights may come from any label law.
        importance: ≥ 0, [B, H, W].
    Returns:
        `LabelQuality`: mean |w - v|, Pearson correlation of w and v, and v.
    Raises:
        InputError: no mask; importance not on the mask's places; a moved partner.
    Example:
        >>> mask = jnp.ones((1, 2, 2, 1)).at[:, 0].set(0.0)
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]), mask)
        >>> label_quality(plan, jnp.ones((2, 2, 2))).visible.tolist()
        [0.5, 0.5]

    Reference:
        Chen et al., "TransMix: Attend to Mix for Vision Transformers", 2022 (the premise).
    """
    if plan.mask is None or plan.partner.ndim != 1 or plan.warp is not None:
        raise InputError("label_quality needs a two-source plan with a mask and without moves.")
    if importance.shape[1:] != plan.mask.shape[1:-1] or importance.shape[0] != plan.partner.shape[0]:
        raise InputError(
            f"importance {list(importance.shape)} is not on the places of the mask {list(plan.mask.shape)}."
        )
    importance = importance.astype(jnp.float32)
    mask = plan.mask[..., 0]
    own = (mask * importance).sum(axis=(1, 2))
    other = ((1.0 - mask) * importance[plan.partner]).sum(axis=(1, 2))
    total = own + other
    area = jnp.broadcast_to(mask.mean(axis=(1, 2)), total.shape)
    visible = jnp.where(total > 0, own / jnp.where(total > 0, total, 1.0), area)
    gaps = [v - v.mean() for v in (plan.weight, visible)]
    spread = jnp.sqrt(jnp.square(gaps[0]).mean() * jnp.square(gaps[1]).mean())
    correlation = jnp.where(spread > 0, (gaps[0] * gaps[1]).mean() / jnp.where(spread > 0, spread, 1.0), 0.0)
    return LabelQuality(jnp.abs(plan.weight - visible).mean(), correlation, visible)
