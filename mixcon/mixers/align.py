"""AlignMix: feature maps are matched place by place with optimal transport before they are averaged."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, check_positive, own_weight, spread
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import Transport


def sinkhorn(cost: Array, *, eps: float = 0.1, max_iter: int = 100, tolerance: float = 0.1) -> Array:
    """Entropic transport between uniform marginals, in the log domain; no gradient.

    `u ← ε (log μ - LSE_j((-D + u + v)/ε)) + u`, then v likewise, until the batch mean of Σ|Δu| falls under the
    tolerance.

    Args:
        cost: D, [B, r, r].
        eps: ε > 0.
        max_iter: most rounds.
        tolerance: where to stop; the batch stops together.
    Returns:
        float32 plans [B, r, r], rows and columns summing to about 1/r.
    Raises:
        InputError: eps ≤ 0.
    Example:
        >>> sinkhorn(jnp.zeros((1, 2, 2)))[0].round(3).tolist()
        [[0.25, 0.25], [0.25, 0.25]]

    Reference:
        Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", 2013.
    """
    check_positive("eps", eps)
    cost = jax.lax.stop_gradient(cost).astype(jnp.float32)
    batch, rows, cols = cost.shape
    log_rows, log_cols = (jnp.log(1.0 / jnp.float32(n) + 1e-8) for n in (rows, cols))

    def scores(u: Array, v: Array) -> Array:
        return (-cost + u[:, :, None] + v[:, None, :]) / eps

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        u, v, _, count = state
        new = eps * (log_rows - jax.nn.logsumexp(scores(u, v), axis=2)) + u
        v = eps * (log_cols - jax.nn.logsumexp(scores(new, v), axis=1)) + v
        return new, v, jnp.abs(new - u).sum(axis=1).mean(), count + 1

    start = (jnp.zeros((batch, rows)), jnp.zeros((batch, cols)), jnp.float32(jnp.inf), jnp.int32(0))
    u, v, _, _ = jax.lax.while_loop(lambda s: (s[2] >= tolerance) & (s[3] < max_iter), step, start)
    return jnp.exp(scores(u, v))


def alignmix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 2.0,
    align: Literal["random", "partner", "own"] = "random",
    eps: float = 0.1,
    weight: float | Array | None = None,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Plan:
    """AlignMix: `λ F_i + (1 - λ) P F_j` (the partner aligned to the example) or `λ Pᵀ F_i + (1 - λ) F_j`.

    P is the transport between the places of the two feature maps under squared distances, times r. Gradient flows
    through
    both maps, not through P.

    Args:
        key: PRNG key.
        x: feature maps [B, h, w, C] (the plan is for features of this size).
        alpha: Beta parameter, > 0.
        align: which side is aligned; "random" tosses a coin for the batch.
        eps: ε of the transport.
        weight, per, partner: as in `mixup`.
    Returns:
        Plan with `Transport` moves and no mask; targets as mixup.
    Raises:
        InputError: as `mixup`; x not maps; unknown `align`.
    Example:
        >>> f = jax.random.normal(jax.random.key(0), (2, 2, 2, 4))
        >>> alignmix(jax.random.key(1), f, align="partner").warp[1].matrix.shape
        (2, 4, 4)

    Reference:
        Venkataramanan, Kijak, Amsaleg, Avrithis, "AlignMixup: Improving Representations by Interpolating Aligned
        Features", 2022
    """
    if x.ndim != 4:
        raise InputError(f"x must be feature maps [B, h, w, C]; got {list(x.shape)}.")
    if align not in ("random", "partner", "own"):
        raise InputError(f"align must be 'random', 'partner' or 'own'; got {align!r}.")
    key_partner, key_weight, key_coin = jax.random.split(key, 3)
    batch, places = x.shape[0], x.shape[1] * x.shape[2]
    partners = choose_partner(key_partner, batch, partner, per)
    share = spread(own_weight(key_weight, batch, alpha, weight, per), batch, per)
    match = transport_between(x, x[partners], eps=eps)
    if align == "partner":
        return Plan(partners, share, None, (None, Transport(match)))
    turned = match.transpose(0, 2, 1)
    if align == "own":
        return Plan(partners, share, None, (Transport(turned), None))
    still = jnp.eye(places, dtype=match.dtype)[None]
    coin = jax.random.bernoulli(key_coin)
    return Plan(
        partners, share, None, (Transport(jnp.where(coin, turned, still)), Transport(jnp.where(coin, still, match)))
    )


def transport_between(a: Array, b: Array, *, eps: float = 0.1) -> Array:
    """r · P for the places of two maps [B, h, w, C], by `sinkhorn` on squared distances; float32 [B, r, r]."""
    a, b = (jax.lax.stop_gradient(v).reshape(v.shape[0], -1, v.shape[-1]).astype(jnp.float32) for v in (a, b))
    cost = jnp.square(a[:, :, None, :] - b[:, None, :, :]).sum(axis=-1)
    return sinkhorn(cost, eps=eps) * a.shape[1]
