"""SUMix: how much of each class a mixed image really shows, learned from the change of the prediction."""

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import wide_dtype


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def sumix_relabel(plan: Plan, clean: Array, mixed: Array, labels: Array) -> tuple[Plan, tuple[Array, Array]]:
    """Weights `λ e^{-a[y_A]} / (λ e^{-a[y_A]} + (1-λ) e^{-a'[y_B]})` from the change a of each source's prediction.

    Args:
        plan: a two-source plan.
        clean, mixed: logits of the clean and the mixed batch, [N, K]; no gradient.
        labels: int [N].
    Returns:
        (plan with new weights, (a, a') float32 [N, K]).
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]))
        >>> z = jnp.zeros((2, 3))
        >>> sumix_relabel(plan, z, z, jnp.array([0, 1]))[0].weight.shape
        (2,)

    Reference:
        Qin et al., "SUMix: Mixup with Semantic and Uncertain Information", 2024
    """
    dtype = wide_dtype(clean.dtype)
    p, q = (jax.nn.softmax(jax.lax.stop_gradient(z).astype(dtype), axis=-1) for z in (clean, mixed))
    count, classes = p.shape
    hot = jax.nn.one_hot(labels, classes, dtype=bool)
    own = jnp.where(hot[plan.partner], 0.0, p)
    other = jnp.where(hot, 0.0, p[plan.partner])
    change = [count * _unit(jax.nn.softmax(q - v, axis=-1)) for v in (own, other)]  # N really is the batch size
    at = [
        jnp.take_along_axis(c, y[:, None], axis=1)[:, 0]
        for c, y in zip(change, (labels, labels[plan.partner]), strict=True)
    ]
    share = plan.weight.astype(dtype)
    shown = [share * jnp.exp(-at[0]), (1.0 - share) * jnp.exp(-at[1])]
    return plan._replace(weight=shown[0] / (shown[0] + shown[1])), (change[0], change[1])


def sumix_loss(
    plan: Plan,
    clean: Array,
    mixed: Array,
    uncertainty_clean: Array,
    uncertainty_mixed: Array,
    labels: Array,
    *,
    gamma: float = 0.1,
) -> Array:
    """SUMix's head: batch-mean cross-entropies weighed by the shown shares, plus γ times an uncertainty term.

    Args:
        plan: the plan that made the mixed batch, with its drawn weights.
        clean, mixed: logits [N, K].
        uncertainty_clean, uncertainty_mixed: outputs of the second linear head [N, K].
        labels: int [N].
        gamma: γ.
    Returns:
        Scalar.
    Example:
        >>> plan = Plan(jnp.array([1, 0]), jnp.array([0.5, 0.5]))
        >>> z = jnp.zeros((2, 3))
        >>> sumix_loss(plan, z, z, z, z, jnp.array([0, 1])).shape
        ()

    Reference:
        Qin et al., "SUMix: Mixup with Semantic and Uncertain Information", 2024
    """
    shown, (change_a, change_b) = sumix_relabel(plan, clean, mixed, labels)
    dtype = change_a.dtype
    y = (labels, labels[plan.partner])

    def cross_entropy(z: Array, target: Array) -> Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(z.astype(dtype), axis=-1), target[:, None], axis=1).mean()

    g, g_mixed = (_unit(jax.nn.softmax(u.astype(dtype), axis=-1)) for u in (uncertainty_clean, uncertainty_mixed))
    main = cross_entropy(mixed, y[0]) * shown.weight + cross_entropy(mixed, y[1]) * (1.0 - shown.weight)
    doubt = [jnp.exp(-(g + g_mixed + change_a)), jnp.exp(-(g[plan.partner] + g_mixed + change_b))]
    share = plan.weight.astype(dtype).mean()
    return main.mean() + gamma * (share * cross_entropy(doubt[0], y[0]) + (1.0 - share) * cross_entropy(doubt[1], y[1]))
