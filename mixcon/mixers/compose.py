"""Plans from plans: no mixing now and then, one policy out of several, a mix of mixes, several mixes at once."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, image_size
from mixcon.mixers.linear import mixup
from mixcon.mixers.partner import How
from mixcon.mixers.plan import Plan, sources
from mixcon.mixers.region import cutmix
from mixcon.mixers.warp import Blocks, Grid, Move

Policy = Callable[[Array, Array], Plan]


def gate(plan: Plan, keep: Array) -> Plan:
    """Mix only where `keep` is true; elsewhere the example stays whole (weight and mask 1, sources unmoved).

    With a traced `keep` this is a schedule: `gate(plan, step < off_step)` is timm's off-epoch without a second trace.

    Args:
        plan: a two-source plan.
        keep: bool [] or [B].
    Returns:
        Plan.
    Raises:
        InputError: a k-source plan, or one with `Transport` moves of an own source.
    Example:
        >>> gate(Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5])), jnp.array([True, False])).weight.tolist()
        [0.5, 1.0]
    """
    batch = plan.partner.shape[0]
    if plan.partner.ndim != 1:
        raise InputError("gate needs a two-source plan [B].")
    keep = jnp.broadcast_to(jnp.asarray(keep, bool), (batch,))
    mask, warp = plan.mask, plan.warp
    if mask is not None:
        mask = jnp.where(keep.reshape(batch, *([1] * (mask.ndim - 1))), mask, 1.0)
    if warp is not None and warp[0] is not None:
        warp = (_still(warp[0], keep), warp[1])
    return Plan(plan.partner, jnp.where(keep, plan.weight, 1.0), mask, warp)


def _still(how: Move, keep: Array) -> Move:
    """The own source's move, undone where it is not to be mixed."""
    if isinstance(how, Blocks):
        return Blocks(jnp.where(keep[:, None], how.source, jnp.arange(how.source.shape[1], dtype=jnp.int32)[None]))
    if isinstance(how, Grid):
        return jax.tree.map(lambda v: jnp.where(keep[:, None], v, jnp.arange(v.shape[1], dtype=v.dtype)[None]), how)
    eye = jnp.eye(how.matrix.shape[1], dtype=how.matrix.dtype)[None]
    return how._replace(matrix=jnp.where(keep[:, None, None], how.matrix, eye))


def maybe(key: Array, plan: Plan, prob: float | Array, per: Per = "batch") -> Plan:
    """Mix with probability `prob`, drawn once per batch or per example.

    Args:
        key: PRNG key.
        plan: a two-source plan.
        prob: in [0, 1]; may be traced (a schedule).
        per: "batch" or "example".
    Returns:
        Plan.
    Raises:
        InputError: prob outside [0, 1]; per="pair".
    Example:
        >>> maybe(jax.random.key(0), Plan(jnp.array([1, 0]), jnp.zeros(2)), 0.0).weight.tolist()
        [1.0, 1.0]
    """
    if isinstance(prob, (int, float)) and not 0 <= prob <= 1:
        raise InputError(f"prob must lie in [0, 1]; got {prob}.")
    if per not in ("batch", "example"):
        raise InputError(f"per must be 'batch' or 'example' here; got {per!r}.")
    shape = () if per == "batch" else (plan.partner.shape[0],)
    return gate(plan, jax.random.uniform(key, shape) < prob)


def switch(
    key: Array, x: Array, policies: Sequence[Policy], probs: Sequence[float] | None = None, per: Per = "batch"
) -> Plan:
    """Draw one of several image policies, for the batch or for each example.

    Per batch only the drawn policy runs; per example all do and one plan is picked for each. Every plan is brought
    to one
    form (a full mask, [B] or [B, 2] weights), so that shapes are fixed.

    Args:
        key: PRNG key.
        x: images [B, H, W, C].
        policies: functions (key, x) → Plan, e.g. `functools.partial(cutmix, alpha=1.0)`; two-source plans whose
        moves, if
            any, are of one kind: `Grid` of the partner (ResizeMix) can be switched with plans that move nothing.
        probs: their probabilities; equal if None.
        per: "batch" or "example".
    Returns:
        Plan.
    Raises:
        InputError: no policy, probabilities that are negative or do not sum to one, plans that cannot be brought
        together.
    Example:
        >>> plan = switch(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), [mixup, cutmix])
        >>> plan.mask.shape
        (2, 8, 8, 1)

    Reference:
        Wightman, Touvron, Jégou, "ResNet Strikes Back: An Improved Training Procedure in timm", 2021
    """
    batch, height, width = image_size(x)
    count = len(policies)
    if count == 0:
        raise InputError("switch needs at least one policy.")
    chances = [1.0 / count] * count if probs is None else [float(p) for p in probs]
    if len(chances) != count or min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
        raise InputError(f"probs must be {count} numbers ≥ 0 that sum to 1; got {probs}.")
    if per not in ("batch", "example"):
        raise InputError(f"per must be 'batch' or 'example' here; got {per!r}.")
    key_choice, key_plan = jax.random.split(key)
    shapes = [jax.eval_shape(p, key, x) for p in policies]
    two_weights = any(s.weight.ndim == 2 for s in shapes)
    moved = any(s.warp is not None for s in shapes)
    runs = [partial(_common, p, (height, width), two_weights, moved) for p in policies]
    chosen = jax.random.choice(key_choice, count, () if per == "batch" else (batch,), p=jnp.array(chances))
    if per == "batch":
        return jax.lax.switch(chosen, runs, key_plan, x)
    plans = [run(k, x) for run, k in zip(runs, jax.random.split(key_plan, count), strict=True)]
    rows = jnp.arange(batch)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[chosen, rows], *plans)


def _common(policy: Policy, shape: tuple[int, int], two_weights: bool, moved: bool, key: Array, x: Array) -> Plan:
    """One policy's plan in the form that all policies of a switch share."""
    plan = policy(key, x)
    batch = x.shape[0]
    if plan.partner.ndim == 2 and (plan.partner.shape[1] != 2 or plan.mask is None):
        raise InputError("switch takes plans of two sources.")
    mask = plan.weight.reshape(batch, 1, 1, 1) if plan.mask is None else plan.mask
    plan = plan._replace(mask=jnp.broadcast_to(mask, (batch, *shape, 1)))
    if two_weights:
        index, weight = sources(plan)
        plan = plan._replace(partner=index, weight=weight)
    if not moved:
        return plan
    own, other = (None, None) if plan.warp is None else plan.warp
    if own is not None or not (other is None or isinstance(other, Grid)):
        raise InputError("switch can only bring together plans that move nothing or resample the partner by a Grid.")
    still = Grid(*(jnp.arange(n, dtype=jnp.float32)[None] for n in shape))
    axes = [v.astype(jnp.float32) for v in jax.tree.leaves(still if other is None else other)]
    rows, cols = (jnp.broadcast_to(a, (batch, a.shape[1])) for a in axes)
    return plan._replace(warp=(None, Grid(rows, cols)))


def mixup_or_cutmix(
    key: Array,
    x: Array,
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_prob: float = 0.5,
    prob: float | Array = 1.0,
    per: Per = "batch",
    partner: How | Array = "reverse",
) -> Plan:
    """The DeiT recipe: CutMix with probability `switch_prob`, else mixup; nothing at all with probability 1 - `prob`.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        mixup_alpha, cutmix_alpha: Beta parameters, > 0.
        switch_prob: probability of CutMix.
        prob: probability of mixing; may be traced.
        per: draws per "batch", "pair" (weights; the switch is per batch) or "example".
        partner: the reversed batch by default, as timm.
    Returns:
        Plan with a mask.
    Raises:
        InputError: as the two policies; probabilities outside [0, 1].
    Example:
        >>> mixup_or_cutmix(jax.random.key(0), jnp.zeros((2, 8, 8, 3))).partner.tolist()
        [1, 0]

    Reference:
        Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention", 2021
    """
    if not 0 <= switch_prob <= 1:
        raise InputError(f"switch_prob must lie in [0, 1]; got {switch_prob}.")
    often: Per = "example" if per == "example" else "batch"
    key_plan, key_gate = jax.random.split(key)
    policies = [
        partial(mixup, alpha=mixup_alpha, per=per, partner=partner),
        partial(cutmix, alpha=cutmix_alpha, per=per, partner=partner),
    ]
    return maybe(key_gate, switch(key_plan, x, policies, (1 - switch_prob, switch_prob), often), prob, often)


def unmix(key: Array, x: Array, *, alpha: float = 1.0, cut_prob: float = 0.5) -> Plan:
    """Un-Mix: the batch mixed with its own reverse, globally (mixup) or by a region (CutMix).

    The loss is `λ InfoNCE(f(mix), f(x)) + (1-λ) InfoNCE(f(mix), f(x) reversed)`: exactly `mix_pairs(plan)` as targets.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        alpha: Beta parameter of λ.
        cut_prob: probability of the regional form.
    Returns:
        Plan with a mask, partner B-1-i.
    Raises:
        InputError: as `mixup_or_cutmix`.
    Example:
        >>> unmix(jax.random.key(0), jnp.zeros((2, 8, 8, 3))).partner.tolist()
        [1, 0]

    Reference:
        Shen, Liu, Liu, Savvides, Darrell, Xing, "Un-Mix: Rethinking Image Mixtures for Unsupervised Visual
        Representation Learning", 2022.
    """
    return mixup_or_cutmix(key, x, mixup_alpha=alpha, cutmix_alpha=alpha, switch_prob=cut_prob)


def compose(second: Plan, first: Plan) -> Plan:
    """A mix of mixes as one plan: mixing by `first`, then by `second`, is four sources with multiplied shares.

    Args:
        second, first: two-source plans that move nothing, for one batch.
    Returns:
        Plan in k-source form [B, 4]; its matrix is M₂ M₁.
    Raises:
        InputError: k-source plans, or plans that move their sources.
    Example:
        >>> half = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]))
        >>> compose(half, half).weight[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if any(p.partner.ndim != 1 or p.warp is not None for p in (second, first)):
        raise InputError("compose needs two-source plans that do not move their sources.")
    other = second.partner
    own = jnp.arange(other.shape[0], dtype=jnp.int32)
    partner = jnp.stack([own, first.partner, other, first.partner[other]], axis=1)
    weight = jnp.stack(_products(second.weight, first.weight, other), axis=1)
    if second.mask is None and first.mask is None:
        return Plan(partner, weight)
    masks = [_full_mask(p, second, first) for p in (second, first)]
    mask = jnp.concatenate(_products(masks[0], masks[1], other), axis=-1)
    mean = mask.mean(axis=tuple(range(1, mask.ndim - 1)))  # overlapping masks: what is shown, not the product
    return Plan(partner, mean, mask)


def _products(second: Array, first: Array, other: Array) -> list[Array]:
    theirs = first[other]
    return [second * first, second * (1.0 - first), (1.0 - second) * theirs, (1.0 - second) * (1.0 - theirs)]


def _full_mask(plan: Plan, *plans: Plan) -> Array:
    batch = plan.partner.shape[0]
    places = next(p.mask.shape[1:] for p in plans if p.mask is not None)
    mask = plan.weight.reshape(batch, *([1] * len(places))) if plan.mask is None else plan.mask
    return jnp.broadcast_to(mask, (batch, *places))


def repeat(key: Array, x: Array, policy: Policy, times: int) -> Plan:
    """R independent plans of one batch, with a leading axis R (`jax.vmap(mix, (0, None))` applies them).

    Args:
        key: PRNG key.
        x: the batch.
        policy: function (key, x) → Plan.
        times: R ≥ 1; divide each loss by R and add.
    Returns:
        Plan whose leaves have a leading axis R.
    Raises:
        InputError: times < 1.
    Example:
        >>> repeat(jax.random.key(0), jnp.zeros((2, 3)), mixup, 4).weight.shape
        (4, 2)
    """
    if times < 1:
        raise InputError(f"times must be ≥ 1; got {times}.")
    return jax.vmap(lambda k: policy(k, x))(jax.random.split(key, times))
