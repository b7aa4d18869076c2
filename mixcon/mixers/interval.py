"""AdaMixUp: a policy network draws each pair's weight from an interval of its own, an intrusion head watches it.

B pairs. The heads wrap the features of any trunk; their parameters live in the train state like any model's.
"""

from typing import Literal, NamedTuple

import jax
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.plan import Plan
from mixcon.mixers.warp import wide_dtype


class Interval(NamedTuple):
    """A policy's interval [alpha, alpha + delta] and the weight drawn from it, each [B]."""

    weight: Array
    alpha: Array
    delta: Array


def interval_weight(policy_logits: Array, unit: Array) -> Interval:
    """AdaMixUp's weight, `γ = α + u Δ` with (α, Δ, rest) = softmax(logits), so that gradient reaches α and Δ.

    Args:
        policy_logits: [B, 3].
        unit: u in [0, 1), [B].
    Returns:
        `Interval`.
    Raises:
        InputError: logits not [B, 3], u of another length.
    Example:
        >>> interval_weight(jnp.zeros((1, 3)), jnp.array([0.5])).weight.tolist()
        [0.5]

    Reference:
        Guo, Mao, Zhang, "MixUp as Locally Linear Out-of-Manifold Regularization", 2019
    """
    if policy_logits.ndim != 2 or policy_logits.shape[1] != 3 or unit.shape != policy_logits.shape[:1]:
        raise InputError(f"want logits [B, 3] and u [B]; got {list(policy_logits.shape)}, {list(unit.shape)}.")
    region = jax.nn.softmax(policy_logits.astype(wide_dtype(policy_logits.dtype)), axis=-1)
    alpha, delta = region[:, 0], region[:, 1]
    return Interval(alpha + unit.astype(alpha.dtype) * delta, alpha, delta)


def policy_gate(noise_a: Array, noise_b: Array, a: Array, b: Array) -> Array:
    """What AdaMixUp's policy sees of a pair, `(m₁ a + m₂ b) / 2` with m ~ N(0, 1) truncated to [-2, 2], per pixel.

    Args:
        noise_a, noise_b: m₁, m₂ in the shape of a, e.g. `jax.random.truncated_normal(key, -2, 2, a.shape)`.
        a, b: the pair.
    Returns:
        In the shape of a.
    Example:
        >>> policy_gate(jnp.ones(2), jnp.ones(2), jnp.zeros(2), jnp.ones(2)).tolist()
        [0.5, 0.5]

    Reference:
        As `interval_weight`.
    """
    return (noise_a * a + noise_b * b) / 2.0


class PolicyHead(nnx.Module):
    """Trunk features to interval logits: linear, linear; starts at γ ~ U(1/3, 2/3). rngs: nnx random streams.

    Example:
        >>> PolicyHead(8, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
        (2, 3)

    Reference:
        As `interval_weight`.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, hidden: int = 100):
        init = nnx.initializers.normal(1e-3)
        self.inner = nnx.Linear(features, hidden, kernel_init=init, rngs=rngs)
        self.outer = nnx.Linear(hidden, 3, kernel_init=init, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        return self.outer(self.inner(features))


class IntrusionHead(nnx.Module):
    """Trunk features to two logits, mixed (0) or real (1): linear, linear.

    Example:
        >>> IntrusionHead(8, 10, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
        (2, 2)

    Reference:
        As `interval_weight`.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1e-3)
        self.inner = nnx.Linear(features, hidden, kernel_init=init, rngs=rngs)
        self.outer = nnx.Linear(hidden, 2, kernel_init=init, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        return self.outer(self.inner(features))


def intrusion_loss(
    real_logits: Array, mixed_logits: Array, *, weighting: Literal["pooled", "balanced"] = "pooled"
) -> Array:
    """Two-way cross-entropy that keeps mixed examples distinguishable from real ones; minimised by everyone.

    Args:
        real_logits: [R, 2].
        mixed_logits: [M, 2].
        weighting: "pooled" is the mean over all R + M rows (published code); "balanced" half and half (paper).
    Returns:
        Scalar.
    Raises:
        InputError: unknown weighting; logits not two columns wide.
    Example:
        >>> round(float(intrusion_loss(jnp.zeros((2, 2)), jnp.zeros((1, 2)))), 4)
        0.6931

    Reference:
        Guo, Mao, Zhang, "MixUp as Locally Linear Out-of-Manifold Regularization", 2019
    """
    if weighting not in ("pooled", "balanced"):
        raise InputError(f"weighting must be 'pooled' or 'balanced'; got {weighting!r}.")
    if real_logits.shape[-1] != 2 or mixed_logits.shape[-1] != 2:
        raise InputError(f"want two logits per row; got {real_logits.shape[-1]} and {mixed_logits.shape[-1]}.")
    real = -jax.nn.log_softmax(real_logits, axis=-1)[:, 1]
    mixed = -jax.nn.log_softmax(mixed_logits, axis=-1)[:, 0]
    if weighting == "balanced":
        return (real.mean() + mixed.mean()) / 2.0
    return (real.sum() + mixed.sum()) / (real.shape[0] + mixed.shape[0])


def stop_weights(plan: Plan) -> Plan:
    """The plan with constant weights, for targets that must not be differentiated (AdaMixUp's labels)."""
    return plan._replace(weight=jax.lax.stop_gradient(plan.weight))
