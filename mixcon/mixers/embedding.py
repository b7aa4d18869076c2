"""Mixing on the sphere and in the memory: geodesics, hard negatives, regression mixtures, metric-learning pairs."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan, check_unit
from mixcon.mixers.warp import wide_dtype
from mixcon.ops import checks


def normalise(x: Array, eps: float = 1e-12) -> Array:
    """Rows to unit length, `x / √(‖x‖² + ε)`; zero rows stay zero with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + eps)


def slerp(a: Array, b: Array, weight: Array | float) -> Array:
    """Point on the great circle, `sin(λθ)/sin θ a + sin((1-λ)θ)/sin θ b`, cos θ = a·b; λ is the share of a.

    The angle comes from `2 atan2(‖a-b‖, ‖a+b‖)` and the ratios from sinc, so that nearby points keep value and
    gradient. Equal points stay where they are. Opposite points have no geodesic of their own: theirs goes through the
    coordinate axis that is nearest to being orthogonal to a.

    Args:
        a, b: unit rows [..., D].
        weight: λ in [0, 1], scalar or [...].
    Returns:
        unit rows [..., D], in the dtype of a.
    Raises:
        InputError: shapes differ; weight outside [0, 1]; rows not of unit length (outside jit).
    Example:
        >>> bool(jnp.allclose(slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), 0.5), 0.5**0.5))
        True

    Reference:
        Oh, So, Byun, Lim, Shin, Jeon, Song, "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", 2023
    """
    if a.shape != b.shape:
        raise InputError(f"a and b must have one shape; got {list(a.shape)} and {list(b.shape)}.")
    check_unit("weight", weight)
    checks.unit_norm("a", a)
    checks.unit_norm("b", b)
    dtype = a.dtype
    wide = wide_dtype(dtype)  # an angle from bfloat16 products means nothing near 0
    a, b = a.astype(wide), b.astype(wide)
    share = jnp.asarray(weight, wide)
    share = share[..., None] if share.ndim else share
    gap, sum_ = (jnp.square(v).sum(axis=-1, keepdims=True) for v in (a - b, a + b))
    near, far = gap <= 1e-14, sum_ <= 1e-14
    safe = near | far
    angle = 2.0 * jnp.arctan2(jnp.sqrt(jnp.where(safe, 1.0, gap)), jnp.sqrt(jnp.where(safe, 1.0, sum_)))
    parts = [jnp.where(safe, s, s * _sinc(s * angle) / _sinc(angle)) for s in (share, 1.0 - share)]
    point = parts[0] * a + parts[1] * b
    return jnp.where(far & ~near, _around(a, (1.0 - share) * jnp.pi), point).astype(dtype)


def _sinc(x: Array) -> Array:
    """sin(x)/x, whose derivative near 0 is that of its series; `jnp.sinc` refuses to be mapped over devices."""
    square = jnp.square(x)
    series = jnp.ones_like(x)
    for divisor in (156.0, 110.0, 72.0, 42.0, 20.0, 6.0):  # (2k)(2k + 1), from the last term that counts in float64
        series = 1.0 - square / divisor * series
    near = jnp.abs(x) < 0.5
    far = jnp.where(near, 1.0, x)
    return jnp.where(near, series, jnp.sin(far) / far)


def _around(a: Array, angle: Array) -> Array:
    """The point that far from a, on the way through an axis made orthogonal to it."""
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(a), axis=-1), a.shape[-1], dtype=a.dtype)
    side = normalise(axis - (axis * a).sum(axis=-1, keepdims=True) * a)
    return jnp.cos(angle) * a + jnp.sin(angle) * side


def geodesic_mix(plan: Plan, x: Array, bank: Array | None = None) -> Array:
    """Apply a plan along great circles instead of straight lines; targets and pairs mix as ever.

    Args:
        plan: a two-source plan; its mask is not used.
        x: unit rows [B, D].
        bank: unit rows that partners are taken from (the other modality); x if None.
    Returns:
        unit rows [B, D].
    Raises:
        InputError: a k-source plan; as `slerp`.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([1.0, 0.5]))
        >>> bool(jnp.allclose(geodesic_mix(plan, jnp.eye(2)), jnp.array([[1, 0], [0.5**0.5, 0.5**0.5]])))
        True

    Reference:
        As `slerp`.
    """
    if plan.partner.ndim != 1:
        raise InputError("geodesic_mix needs a two-source plan [B].")
    return slerp(x, (x if bank is None else bank)[plan.partner], plan.weight)


class HardDraws(NamedTuple):
    """What MoCHi draws: ranks among each query's N hardest negatives, and shares."""

    first: Array  # int32 [B, s]
    second: Array  # int32 [B, s]
    alpha: Array  # [B, s]
    query: Array  # int32 [B, s']
    beta: Array  # [B, s']


def mochi_draws(
    key: Array, batch: int, *, num_hard: int, num_mix: int, num_query_mix: int, replace: bool = False
) -> HardDraws:
    """MoCHi's draws: two of the N hardest and α ~ U(0, 1); one of them and β ~ U(0, ½) for mixes with the query.

    Args:
        key: PRNG key.
        batch: B.
        num_hard: N.
        num_mix: s, mixes of two negatives.
        num_query_mix: s', mixes with the query.
        replace: let the two negatives coincide (needed for N = 1).
    Returns:
        `HardDraws`.
    Raises:
        InputError: N < 1 with mixes wanted, N = 1 without `replace`, negative counts.
    Example:
        >>> d = mochi_draws(jax.random.key(0), 2, num_hard=4, num_mix=3, num_query_mix=1)
        >>> bool((d.first != d.second).all())
        True

    Reference:
        Kalantidis, Sariyildiz, Pion, Weinzaepfel, Larlus, "Hard Negative Mixing for Contrastive Learning", 2020
    """
    if min(num_mix, num_query_mix) < 0 or num_hard < 1:
        raise InputError(f"want num_hard ≥ 1 and counts ≥ 0; got {num_hard}, {num_mix}, {num_query_mix}.")
    if num_hard == 1 and num_mix and not replace:
        raise InputError("two distinct negatives cannot be drawn from num_hard=1; pass replace=True.")
    keys = jax.random.split(key, 5)
    first = jax.random.randint(keys[0], (batch, num_mix), 0, num_hard)
    if replace:
        second = jax.random.randint(keys[1], (batch, num_mix), 0, num_hard)
    else:
        second = (first + jax.random.randint(keys[1], (batch, num_mix), 1, max(num_hard, 2))) % num_hard
    return HardDraws(
        first,
        second,
        jax.random.uniform(keys[2], (batch, num_mix)),
        jax.random.randint(keys[3], (batch, num_query_mix), 0, num_hard),
        jax.random.uniform(keys[4], (batch, num_query_mix), maxval=0.5),
    )


def hardest(query: Array, bank: Array, num_hard: int) -> Array:
    """Rows of the bank most similar to each query, hardest first (ties: the lower row). int32 [B, N]."""
    if not 1 <= num_hard <= bank.shape[0]:
        raise InputError(f"num_hard must lie in 1..{bank.shape[0]}; got {num_hard}.")
    wide = wide_dtype(query.dtype)
    scores = jax.lax.stop_gradient(query.astype(wide) @ bank.astype(wide).T)
    return jax.lax.top_k(scores, num_hard)[1].astype(jnp.int32)


def hard_negative_mix(bank: Array, hard: Array, draws: HardDraws) -> Array:
    """MoCHi's first kind, `norm(α n_i + (1-α) n_j)` of two hard negatives; constants. [B, s, D].

    Args:
        bank: unit rows [K, D].
        hard: `hardest` rows [B, N].
        draws: `mochi_draws`.
    Returns:
        unit rows [B, s, D].
    Example:
        >>> draws = mochi_draws(jax.random.key(0), 1, num_hard=2, num_mix=3, num_query_mix=0)
        >>> hard_negative_mix(jnp.eye(2), jnp.array([[0, 1]]), draws).shape
        (1, 3, 2)

    Reference:
        Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", 2020
    """
    a, b = (bank[jnp.take_along_axis(hard, ranks, axis=1)] for ranks in (draws.first, draws.second))
    alpha = draws.alpha[..., None].astype(bank.dtype)
    return jax.lax.stop_gradient(normalise(alpha * a + (1.0 - alpha) * b))


def query_mix(query: Array, bank: Array, hard: Array, draws: HardDraws) -> Array:
    """MoCHi's second kind, `norm(β q + (1-β) n_j)`, β < ½: harder still; constants, q included. [B, s', D].

    Args, Returns: as `hard_negative_mix`; query: unit rows [B, D].
    Example:
        >>> draws = mochi_draws(jax.random.key(0), 1, num_hard=2, num_mix=0, num_query_mix=4)
        >>> query_mix(jnp.array([[0.0, 1.0]]), jnp.eye(2), jnp.array([[0, 1]]), draws).shape
        (1, 4, 2)

    Reference:
        Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", 2020
    """
    negative = bank[jnp.take_along_axis(hard, draws.query, axis=1)]
    beta = draws.beta[..., None].astype(bank.dtype)
    return jax.lax.stop_gradient(normalise(beta * query[:, None, :] + (1.0 - beta) * negative))


def anchor_inclusive(labels: Array, weight: Array) -> tuple[Array, Array]:
    """SupReMix's hard negatives `λ_ik z_i + (1-λ_ik) z_k`, y_k ≠ y_i, as labels and a mask (λ weighs the anchor).

    The mixtures are linear and not normalised, so their logits are `λ_ik S_ii + (1-λ_ik) S_ik`: no tensor of mixtures.

    Args:
        labels: regression targets [N].
        weight: λ ~ Beta(2, 8), [N, N].
    Returns:
        mixed labels [N, N] and mask bool [N, N].
    Raises:
        InputError: weight not [N, N] or outside [0, 1].
    Example:
        >>> y, mask = anchor_inclusive(jnp.array([0.0, 10.0]), jnp.full((2, 2), 0.25))
        >>> y.tolist(), mask.tolist()
        ([[0.0, 7.5], [2.5, 10.0]], [[False, True], [True, False]])

    Reference:
        Wu, Dong, Chen, Zhou, Zhou, "Mixup Your Own Pairs", 2023
    """
    n = labels.shape[0]
    if labels.ndim != 1 or weight.shape != (n, n):
        raise InputError(f"labels must be [N] and weight [N, N]; got {list(labels.shape)}, {list(weight.shape)}.")
    check_unit("weight", weight)
    own, other = labels[:, None], labels[None, :]
    return weight * own + (1 - weight) * other, own != other


def anchor_exclusive(labels: Array, window: float) -> tuple[Array, Array]:
    """SupReMix's hard positives `a z_j + (1-a) z_k` with y_j < y_i < y_k in the window and mixed label exactly y_i.

    `a = (y_k - y_i) / (y_k - y_j)`; the logit is `a S_ij + (1-a) S_ik`.

    Args:
        labels: regression targets [N].
        window: largest |y_i - y_j| and |y_k - y_i| (strict), in label units.
    Returns:
        a [N, N, N] (0 off the mask) and mask bool [N, N, N], indexed anchor, j, k.
    Raises:
        InputError: window ≤ 0.
    Example:
        >>> a, mask = anchor_exclusive(jnp.array([0.0, 1.0, 3.0]), window=5.0)
        >>> round(float(a[1, 0, 2]), 4), int(mask.sum())
        (0.6667, 1)

    Reference:
        Wu, Dong, Chen, Zhou, Zhou, "Mixup Your Own Pairs", 2023
    """
    if isinstance(window, (int, float)) and window <= 0:
        raise InputError(f"window must be > 0 (label units); got {window}.")
    anchor, low, high = labels[:, None, None], labels[None, :, None], labels[None, None, :]
    mask = (low < anchor) & (anchor < high) & (anchor - low < window) & (high - anchor < window)
    span = jnp.where(mask, high - low, 1)
    return jnp.where(mask, (high - anchor) / span, 0), mask


def metrix_pairs(
    key: Array,
    labels: Array,
    *,
    mode: Literal["pos_neg", "anchor_neg", "pos_pos", "neg_neg", "any"] = "pos_neg",
) -> tuple[Plan, Array, Array]:
    """Metrix in O(B²): B mixed vectors shared by all anchors, each with a target relative to each anchor.

    `y_av = λ [c_first = c_a] + (1-λ) [c_second = c_a]`; the mask keeps the pairs of the wanted kind for that anchor.
    Apply
    the plan with `mix` (input, feature or embedding) and normalise again.

    Args:
        key: PRNG key (λ ~ Beta(2, 2), one per batch; two permutations).
        labels: int [B].
        mode: kind of mixed pair: a positive with a negative, the anchor with a negative, two positives, two
        negatives, any.
    Returns:
        (plan in two-source form [B, 2], target [B anchors, B mixed], mask bool [B, B]).
    Raises:
        InputError: unknown mode.
    Example:
        >>> plan, target, mask = metrix_pairs(jax.random.key(0), jnp.array([0, 0, 1, 1]))
        >>> target.shape, bool(((target > 0) & (target < 1))[mask].all())
        ((4, 4), True)

    Reference:
        Venkataramanan, Psomas, Kijak, Amsaleg, Karantzalos, Avrithis, "It Takes Two to Tango: Mixup for Deep Metric
        Learning", 2022
    """
    if mode not in ("pos_neg", "anchor_neg", "pos_pos", "neg_neg", "any"):
        raise InputError(f"mode must be pos_neg, anchor_neg, pos_pos, neg_neg or any; got {mode!r}.")
    batch = labels.shape[0]
    keys = jax.random.split(key, 3)
    first, second = (jax.random.permutation(k, batch).astype(jnp.int32) for k in keys[:2])
    if mode == "anchor_neg":
        first = jnp.arange(batch, dtype=jnp.int32)
    share = jax.random.beta(keys[2], 2.0, 2.0, (), jnp.float32)
    weight = jnp.broadcast_to(jnp.stack([share, 1.0 - share])[None], (batch, 2))
    same = labels[:, None] == labels[None, :]
    itself = jnp.eye(batch, dtype=bool)
    positive = [(same & ~itself)[:, v] for v in (first, second)]
    negative = [~same[:, v] for v in (first, second)]
    if mode == "pos_neg":
        mask = (positive[0] & negative[1]) | (negative[0] & positive[1])
    elif mode == "anchor_neg":
        mask = itself & negative[1]
    elif mode == "any":
        mask = (positive[0] | negative[0]) & (positive[1] | negative[1])
    else:
        mask = positive[0] & positive[1] if mode == "pos_pos" else negative[0] & negative[1]
    target = share * same[:, first].astype(jnp.float32) + (1.0 - share) * same[:, second].astype(jnp.float32)
    return Plan(jnp.stack([first, second], axis=1), weight), target, mask
