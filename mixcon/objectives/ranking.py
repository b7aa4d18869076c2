"""Retrieval losses with in-batch negatives on raw or scaled similarities: multiple negatives ranking, N-pairs."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, batch_mean, same_shape, unit_rows
from mixcon.objectives.supervised import class_labels
from mixcon.ops import Impl, pairs


def multiple_negatives_ranking(
    anchors: Array,
    positives: Array,
    hard_negatives: Array | None = None,
    *,
    scale: ArrayLike = 20.0,
    symmetric: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Each anchor ranks its positive above the positives and the hard negatives of the whole batch.

    `loss = mean_i [ log( Σ_j exp(s a_i·p_j) + Σ_j Σ_h exp(s a_i·n_jh) ) - s a_i·p_i ]`; symmetric: averaged with the
    loss of the positives over the anchors (then without hard negatives).

    Args:
      anchors, positives: [B, D] unit rows (cosine), row i of each a pair.
      hard_negatives: [B, D] or [B, H, D] unit rows mined for each anchor, and negatives of every other one too.
      scale: s, 1/temperature, a scalar.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, a scale not above zero, rows not of unit length (outside jit).

    Example:
      >>> loss = multiple_negatives_ranking(question, answer, wrong_answer, scale=20.0, normalize=True)

    Reference: Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply", 2017, section 4.4.
    """
    same_shape("anchors", anchors, "positives", positives)
    anchors, keys = unit_rows("anchors", anchors, normalize), unit_rows("positives", positives, normalize)
    if hard_negatives is None:
        target = None
    else:
        size, dim = anchors.shape
        hard = hard_negatives[:, None] if hard_negatives.ndim == 2 else hard_negatives
        if hard.ndim != 3 or hard.shape[::2] != (size, dim):
            shapes = f"[{size}, {dim}] or [{size}, H, {dim}]"
            raise InputError(f"hard_negatives must be {shapes}, got {hard_negatives.shape}.")
        if symmetric:
            raise InputError("hard_negatives belong to the anchors: use symmetric=False with them.")
        # Keys of one example beside each other, its positive first: a batch split over devices stays split by examples.
        flat = unit_rows("hard_negatives", hard.reshape(-1, dim), normalize).reshape(hard.shape)
        group = 1 + hard.shape[1]
        keys = jnp.concatenate([keys[:, None], flat], axis=1).reshape(size * group, dim)
        first = jnp.arange(size * group) % group == 0
        target = pairs.block(group, "keys") & pairs.valid(jnp.ones(size, bool), first)
    rows, cols = ops.contrastive_cross_entropy(
        anchors, keys, scale=scale, positives=target, symmetric=symmetric, impl=impl, axis_name=axis_name
    )
    loss = batch_mean(rows.loss, axis_name)
    return loss if cols is None else (loss + batch_mean(cols.loss, axis_name)) / 2


def n_pairs(
    anchors: Array,
    positives: Array,
    labels: ArrayLike | None = None,
    *,
    l2_weight: ArrayLike = 2e-3,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Multi-class N-pair loss: softmax over inner products of rows of any norm, and a pull on that norm.

    `loss = mean_i log( 1 + Σ_{j≠i} exp(a_i·p_j - a_i·p_i) ) + λ mean_i (‖a_i‖² + ‖p_i‖²) / 2`; with `labels`, the
    target of anchor i is spread evenly over the positives of its class.

    Args:
      anchors, positives: [B, D], one pair of each class, or of the class in `labels` [B].
      l2_weight: λ. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, labels of the wrong length.

    Example:
      >>> loss = n_pairs(anchor, positive, l2_weight=2e-3)

    Reference: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", 2016, eq. 7 and
      section 3.2.2.
    """
    same_shape("anchors", anchors, "positives", positives)
    target = None if labels is None else pairs.same_label(class_labels(labels, anchors.shape[0]))
    rows, _ = ops.contrastive_cross_entropy(anchors, positives, positives=target, impl=impl, axis_name=axis_name)
    dtype = accumulator(anchors)
    square = jnp.sum(jnp.square(anchors.astype(dtype)) + jnp.square(positives.astype(dtype)), axis=1)
    return batch_mean(rows.loss, axis_name) + jnp.asarray(l2_weight, dtype) / 2 * batch_mean(square, axis_name)
