"""InfoNCE whose negatives have weights: by shared clusters, or learned for each pair; and contrast with prototypes.

Everything is one cross-entropy with a weighted denominator, so that a weight matrix is described, never formed.
Shapes: B rows, D features, M clusterings, K_k clusters of the k-th, H hidden units of the pair network.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import batch_mean, global_size, inverse_temperature, same_shape, unit_rows
from mixcon.ops import Impl, Pairs, checks, pairs
from mixcon.ops.pairs import Block


def weighted_info_nce(
    anchor: Array,
    target: Array,
    weights: Pairs | ArrayLike | None,
    *,
    temperature: ArrayLike,
    include_positive: bool = True,
    symmetric: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Each anchor picks its target among all, every pair of the denominator with a weight of its own.

    `loss = mean_i [ log Σ_j w_ij exp(a_i·t_j/τ) - a_i·t_i/τ ]`; symmetric: averaged with the same of the targets over
    the anchors (with wᵀ). Not normalised: it is below 0 when the weights are small.

    Args:
      anchor, target: [B, D] unit rows, row i of each a pair.
      weights: w [B, B] not negative, a factored description (`mixcon.ops.pairs`) or a small matrix; None: all 1.
      temperature: τ > 0.
      include_positive: False leaves out w_ii.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar; not finite if an anchor has no weight above 0 at all.

    Raises:
      InputError: shapes that do not fit, negative weights, a temperature not above zero, rows not of unit length
        (outside jit).

    Example:
      >>> loss = weighted_info_nce(coarse, fine, ~pairs.same_label(cluster), temperature=0.4)

    Reference: Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4, with
      weights.
    """
    same_shape("anchor", anchor, "target", target)
    anchor, target = unit_rows("anchor", anchor, normalize), unit_rows("target", target, normalize)
    if weights is not None and not isinstance(weights, Pairs):
        weights = jnp.asarray(weights)
        if weights.shape != (anchor.shape[0], target.shape[0]) and axis_name is None:
            raise InputError(f"weights must be [B, B] for B = {anchor.shape[0]}, got shape {weights.shape}.")
        weights = pairs.dense(weights)
    if not include_positive:
        weights = pairs.not_self() if weights is None else weights & pairs.not_self()

    def one_way(queries: Array, keys: Array, denominator: Pairs | None) -> Array:
        rows, _ = ops.contrastive_cross_entropy(
            queries,
            keys,
            scale=inverse_temperature(temperature),
            denominator=denominator,
            impl=impl,
            axis_name=axis_name,
        )
        return batch_mean(rows.loss, axis_name)

    loss = one_way(anchor, target, weights)
    if symmetric:
        loss = (loss + one_way(target, anchor, None if weights is None else weights.T)) / 2
    return loss


def cluster_weighted_info_nce(
    anchor: Array,
    target: Array,
    assignments: ArrayLike,
    *,
    temperature: ArrayLike,
    include_positive: bool = False,
    symmetric: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """InfoNCE in which a negative weighs less the more clusterings put it together with the anchor.

    `w_ij = M - #{k : y_ki = y_kj}`, so w_ii = 0: the positive is not in its denominator, unless `include_positive`
    gives it the full weight M.

    Args:
      anchor, target: [B, D] unit rows.
      assignments: [M, B] which cluster of each clustering a row belongs to.
      For the others see `weighted_info_nce`.

    Returns:
      Scalar, unbounded below; not finite if some row shares all clusters with every other.

    Raises:
      InputError: assignments of another shape or not whole numbers, all rows in one cluster of every clustering
        (outside jit), and as for `weighted_info_nce`.

    Example:
      >>> loss = cluster_weighted_info_nce(coarse, fine, jnp.stack([few, many]), temperature=0.4)

    Reference: Yu, Ge, Li, Zhou, "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Adaptively
      Weighted Negative Samples", 2024 (MEOW, SDM 2023).
    """
    assignments = cluster_ids(assignments, anchor.shape[0])
    known = checks.concrete(assignments)
    if known is not None and axis_name is None and not include_positive and (known == known[:, :1]).all():
        raise InputError("assignments put all rows in one cluster: no negative has a weight above 0.")
    weights = functools.reduce(operator.add, [~pairs.same_label(row) for row in assignments])
    if include_positive:
        weights = weights + float(len(assignments)) * pairs.identity()
    return weighted_info_nce(
        anchor,
        target,
        weights,
        temperature=temperature,
        symmetric=symmetric,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


def prototype_nce(
    anchor: Array,
    prototypes: Sequence[Array],
    densities: Sequence[Array],
    assignments: ArrayLike,
    *,
    normalize: bool = False,
    axis_name: str | None = None,
) -> Array:
    """Each anchor picks the prototype of its cluster, at the temperature of that prototype.

    `loss = mean_k mean_i [ log( (B/K_k) Σ_c exp(a_i·c/φ_c) ) - a_i·c_y/φ_y ]`, y the cluster of i in clustering k.
    No gradient through prototypes and densities.

    Args:
      anchor: [B, D] unit rows.
      prototypes: M arrays [K_k, D]. densities: M arrays [K_k], φ > 0. assignments: [M, B].
      normalize: divide the anchors by their norm first. axis_name: anchors and assignments are this device's.

    Returns:
      Scalar.

    Raises:
      InputError: lengths or shapes that do not fit, a density that is not above zero or an assignment outside the
        prototypes (outside jit), anchors not of unit length (outside jit).

    Example:
      >>> loss = prototype_nce(features, [centroids], [density], assignment[None])

    Reference: Li, Zhou, Xiong, Hoi, "Prototypical Contrastive Learning of Unsupervised Representations", 2021, eq. 11,
      here with all prototypes as negatives.
    """
    anchor = unit_rows("anchor", anchor, normalize)
    assignments = cluster_ids(assignments, anchor.shape[0])
    if not len(prototypes) == len(densities) == len(assignments):
        raise InputError(
            f"prototypes, densities and assignments are one for each clustering, got {len(prototypes)}, "
            f"{len(densities)} and {len(assignments)}."
        )
    losses = []
    for centroids, density, own in zip(prototypes, densities, assignments, strict=True):
        if centroids.ndim != 2 or centroids.shape[1] != anchor.shape[1] or density.shape != centroids.shape[:1]:
            raise InputError(
                f"prototypes {centroids.shape} and densities {density.shape} must be [K, {anchor.shape[1]}] and [K]."
            )
        checks.positive("densities", density)
        known = checks.concrete(own)
        if known is not None and not 0 <= known.min() <= known.max() < len(density):
            raise InputError(f"assignments must be in range({len(density)}), got {known.min()} .. {known.max()}.")
        centroids, density = jax.lax.stop_gradient((centroids, density))
        logits = ops.similarity(anchor, centroids)
        logits = logits / density[None].astype(logits.dtype)
        positive = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
        shift = math.log(global_size(anchor.shape[0], axis_name) / len(density))
        losses.append(batch_mean(jax.nn.logsumexp(logits, axis=1) - positive, axis_name) + shift)
    return sum(losses[1:], losses[0]) / len(losses)


class PairMlp(NamedTuple):
    """`g_ij = sigmoid( output · tanh(hidden (p_i + q_j) + hidden_bias) + output_bias )`."""

    hidden: Array  # [D, H]
    hidden_bias: Array  # [H]
    output: Array  # [H]
    output_bias: Array  # scalar


def pair_mlp(key: Array, dim: int, hidden: int = 16) -> PairMlp:
    """Fresh parameters, uniform in ±1/√inputs.

    Example:
      >>> network = pair_mlp(jax.random.key(0), dim=64)
    """
    keys = jax.random.split(key, 4)

    def uniform(key: Array, shape: tuple[int, ...], inputs: int) -> Array:
        return jax.random.uniform(key, shape, jnp.float32, -(inputs**-0.5), inputs**-0.5)

    return PairMlp(
        uniform(keys[0], (dim, hidden), dim),
        uniform(keys[1], (hidden,), dim),
        uniform(keys[2], (hidden,), hidden),
        uniform(keys[3], (), hidden),
    )


def adaptive_weighted_info_nce(
    anchor: Array,
    target: Array,
    network: PairMlp,
    *,
    temperature: ArrayLike,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """InfoNCE in which a small network, trained by the same loss, weighs every pair.

    `loss = mean_i [ log Σ_j g_ij exp(a_i·t_j/τ) - a_i·t_i/τ ]` with g of `PairMlp`, j = i included with its weight.
    All gradients flow, through g too: nothing keeps the network from lowering the loss by shrinking all weights.
    The hidden layer is linear in a_i + t_j, so it is computed for each row and each column once.

    Args:
      anchor, target: [B, D] unit rows.
      network: see `pair_mlp`.
      For the others see `weighted_info_nce`; streamed in tiles when large, tiles are recomputed for the gradient.

    Returns:
      Scalar, unbounded below.

    Raises:
      InputError: a network of another D, and as for `weighted_info_nce`.

    Example:
      >>> loss = adaptive_weighted_info_nce(fine, coarse, pair_mlp(key, dim=64), temperature=1.0)

    Reference: Yu, Ge, Li, Zhou, "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Adaptively
      Weighted Negative Samples", 2024 (AdaMEOW).
    """
    same_shape("anchor", anchor, "target", target)
    if network.hidden.shape[:1] != anchor.shape[1:]:
        raise InputError(f"network takes {network.hidden.shape[0]} features, anchor has {anchor.shape[-1]}.")
    rows = anchor @ network.hidden + network.hidden_bias[None]
    weights = Pairs(_gate, rows, target @ network.hidden, (network.output, network.output_bias))
    return weighted_info_nce(
        anchor,
        target,
        weights,
        temperature=temperature,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


def _gate(row: Block, col: Block, shared: Any) -> Array:
    output, bias = shared
    total = jnp.full((row.data.shape[0], col.data.shape[0]), bias, row.data.dtype)
    for unit in range(output.shape[0]):  # one unit at a time: nothing of size pairs × units is ever there
        total += output[unit] * jnp.tanh(row.data[:, unit, None] + col.data[None, :, unit])
    return jax.nn.sigmoid(total)


def cluster_ids(assignments: ArrayLike, size: int) -> Array:
    """[M, B] whole numbers, or a refusal that says so."""
    assignments = jnp.asarray(assignments)
    if assignments.ndim != 2 or assignments.shape[1] != size or assignments.shape[0] < 1:
        raise InputError(f"assignments must be [M, B] with B = {size}, got shape {assignments.shape}.")
    if not jnp.issubdtype(assignments.dtype, jnp.integer):
        raise InputError(f"assignments must be whole numbers, got {assignments.dtype}.")
    return assignments
