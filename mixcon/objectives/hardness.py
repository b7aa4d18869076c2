"""Contrast with and without hardness: negatives weighed alike, or only the nearest of them.

Every loss here takes its keys in one of two ways: the batch's own, row i of each a pair; or, with `positive_index`, a
memory of all examples that holds each query's own at a known place.

Shapes: B queries, N keys, D features.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    LossOrAux,
    all_devices,
    batch_mean,
    global_size,
    inverse_temperature,
    own_places,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.ops import Block, Impl, Kth, Pairs, Reduce, checks, pairs
from mixcon.ops.pairs import wide

Reduction = Literal["mean", "none"]


def hard_info_nce(
    queries: Array,
    keys: Array,
    *,
    temperature: ArrayLike,
    top_k: int | None = None,
    alpha: float | None = None,
    positive_index: ArrayLike | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Each query picks its key among its nearest negatives only: explicit hardness, whatever the temperature.

    With `I_i` the K negatives of largest similarity, `loss_i = log( exp(s_ii/τ) + Σ_{k∈I_i} exp(s_ik/τ) ) - s_ii/τ`.
    Which negatives are kept is not differentiated.

    Args:
      queries: [B, D] unit rows. keys: [B, D], or with `positive_index` [N, D], then the same on every device.
      temperature: τ > 0, a scalar (differentiable).
      top_k: K in 1..N-1; equal similarities at the end share what is left of K. alpha: in (0, 1], instead of it:
        K = max(1, ⌊α (N-1)⌋), and whatever equals the K-th is kept too. Exactly one of the two.
      positive_index: [B], place of each query's own key; default the key beside it.
      normalize: divide rows by their norm first. reduction: "mean", or "none" for one loss for each query.
      impl, axis_name: see `mixcon.ops.pair_reduce`. has_aux: return (loss, metrics) too.

    Returns:
      Scalar, or [B]; with `has_aux` also {"probability": mean softmax probability of the positive}.

    Raises:
      InputError: shapes that differ, no negatives, both or neither of top_k and alpha, or outside their range, a
        temperature not above zero, rows not of unit length or a place outside the keys (outside jit).

    Example:
      >>> loss = hard_info_nce(query, key, temperature=0.3, alpha=0.08)

    Reference: Wang, Liu, "Understanding the Behaviour of Contrastive Loss", 2021, eq. 8 and 9.
    """
    anchors = _Anchors(queries, keys, positive_index, normalize, impl, axis_name)
    scale = inverse_temperature(temperature).astype(anchors.positive.dtype)
    logits = anchors.hard({"log_sum": Reduce("logits", "logsumexp")}, top_k, alpha, scale)["log_sum"]
    return anchors.softmax(scale * anchors.positive, logits, reduction, has_aux)


def simple_contrastive(
    queries: Array,
    keys: Array,
    *,
    negative_weight: float | None = None,
    positive_index: ArrayLike | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Contrast in which all negatives weigh alike: `loss_i = -s_ii + λ Σ_{j≠i} s_ij`.

    Args:
      queries, keys, positive_index, normalize, reduction, axis_name, has_aux: as for `hard_info_nce`. impl: not used,
        as the sum over negatives is the product with their sum.
      negative_weight: λ ≥ 0; None for 1/(N-1), their mean: the limit of the softmax at a large temperature.

    Returns:
      Scalar, or [B]; with `has_aux` also {"positive": mean similarity of positives, "negative": of negatives}.

    Raises:
      InputError: as for `hard_info_nce`; a weight below zero.

    Example:
      >>> loss = simple_contrastive(query, key)

    Reference: Wang, Liu, "Understanding the Behaviour of Contrastive Loss", 2021, eq. 3.
    """
    checks.nonnegative("negative_weight", negative_weight)
    anchors = _Anchors(queries, keys, positive_index, normalize, impl, axis_name)
    total = anchors.keys.astype(anchors.positive.dtype).sum(0)
    total = total if anchors.whole else all_devices(total, axis_name)
    negative = (anchors.queries.astype(total.dtype) @ total - anchors.positive) / anchors.count
    weight = 1.0 if negative_weight is None else negative_weight * anchors.count
    return anchors.spread(weight * negative, negative, reduction, has_aux)


def hard_simple_contrastive(
    queries: Array,
    keys: Array,
    *,
    top_k: int | None = None,
    alpha: float | None = None,
    positive_index: ArrayLike | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """The nearest negatives, weighed alike: `loss_i = -s_ii + (1/K) Σ_{k∈I_i} s_ik`.

    Args: as for `hard_info_nce`.

    Returns:
      Scalar, or [B]; with `has_aux` also {"positive": mean similarity of positives, "negative": of kept negatives}.

    Raises:
      InputError: as for `hard_info_nce`.

    Example:
      >>> loss = hard_simple_contrastive(features, bank, top_k=4095, positive_index=index)

    Reference: Wang, Liu, "Understanding the Behaviour of Contrastive Loss", 2021, section 5.
    """
    anchors = _Anchors(queries, keys, positive_index, normalize, impl, axis_name)
    sums = {"total": Reduce("total", "sum"), "mass": Reduce("mass", "sum")}
    found = anchors.hard(sums, top_k, alpha, jnp.ones((), anchors.positive.dtype))
    negative = found["total"] / found["mass"]
    return anchors.spread(negative, negative, reduction, has_aux)


class _Anchors:
    """Checked queries and keys, their positives, and where the pairs of both are reduced."""

    def __init__(
        self,
        queries: Array,
        keys: Array,
        positive_index: ArrayLike | None,
        normalize: bool,
        impl: Impl,
        axis_name: str | None,
    ):
        self.queries, self.keys = unit_rows("queries", queries, normalize), unit_rows("keys", keys, normalize)
        self.axis_name, self.whole = axis_name, positive_index is not None
        checks.features(self.queries, self.keys)
        dtype = wide(self.queries.dtype)
        if positive_index is None:
            same_shape("queries", queries, "keys", keys)
            number, own, index = global_size(len(keys), axis_name), self.keys, None
            self.own: Pairs = pairs.identity()
            self.placement: dict[str, Any] = {"impl": impl, "axis_name": axis_name}
        else:  # the keys are whole on every device: there is no axis to go around
            number, index = len(keys), own_places(positive_index, len(queries), len(keys))
            own = self.keys[index]
            self.own = pairs.same_label(index, jnp.arange(number, dtype=jnp.int32))
            self.placement = {"impl": "auto" if axis_name else impl}
        if number < 2:
            raise InputError("keys hold one row: there are no negatives.")
        self.count = number - 1
        self.positive = jnp.einsum("bd,bd->b", self.queries, own, preferred_element_type=dtype)

    def hard(
        self, reductions: dict[str, Reduce], top_k: int | None, alpha: float | None, scale: Array
    ) -> dict[str, Array]:
        """Reductions over the nearest negatives."""
        kept = number_kept(top_k, alpha, self.count)
        kth = ops.kth_largest(self.queries, self.keys, kept, included=~self.own, **self.placement)
        share = kth.share if top_k is not None else jnp.ones_like(kth.share)
        return ops.pair_reduce(
            _HardTile((~self.own).rule),
            self.queries,
            self.keys,
            reductions,
            rows=(self.own.rows, lax.stop_gradient((kth.low, kth.high, share))),
            cols=self.own.cols,
            shared=(self.own.shared, scale),
            **self.placement,
        )

    def softmax(self, positive: Array, negatives: Array, reduction: Reduction, has_aux: bool) -> LossOrAux:
        """A softmax over the positive and the log-sum of the negatives."""
        loss = jax.nn.softplus(negatives - positive)
        return self._out(loss, {"probability": jnp.exp(-loss)}, reduction, has_aux)

    def spread(self, push: Array, negative: Array, reduction: Reduction, has_aux: bool) -> LossOrAux:
        """The positive pulls, a sum of negatives pushes."""
        return self._out(push - self.positive, {"positive": self.positive, "negative": negative}, reduction, has_aux)

    def _out(self, loss: Array, of_rows: dict[str, Array], reduction: Reduction, has_aux: bool) -> LossOrAux:
        if reduction not in ("mean", "none"):
            raise InputError(f'reduction must be "mean" or "none", got {reduction!r}.')
        loss = batch_mean(loss, self.axis_name) if reduction == "mean" else loss
        if not has_aux:
            return loss
        return with_aux(loss, {name: batch_mean(x, self.axis_name) for name, x in of_rows.items()})


def number_kept(top_k: int | None, alpha: float | None, negatives: int) -> int:
    """How many negatives are kept, K itself or a share of them.

    Example:
      >>> number_kept(None, 0.0819, 49_999)
      4094
    """
    if (top_k is None) == (alpha is None):
        raise InputError(f"pass one of top_k and alpha, got top_k={top_k} and alpha={alpha}.")
    if alpha is not None:
        if not 0 < alpha <= 1:
            raise InputError(f"alpha must lie in (0, 1], got {alpha}.")
        return max(1, int(alpha * negatives + 1e-9))
    assert top_k is not None
    if not 1 <= top_k <= negatives:
        raise InputError(f"top_k must lie in 1..{negatives}, the number of negatives, got {top_k}.")
    return top_k


@dataclasses.dataclass(frozen=True)
class _HardTile:
    """Weights of the kept negatives, as logits, sums and mass; static, hence hashable."""

    negatives: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        (own, kth), (own_shared, scale) = row.data, shared
        weight = jnp.where(self.negatives(Block(row.position, own), col, own_shared), Kth.weights(sim, *kth), 0)
        kept = weight > 0
        log_weight = jnp.log(jnp.where(kept, weight, 1))
        return {
            "logits": jnp.where(kept, sim * scale + log_weight, -jnp.inf),
            "total": jnp.where(kept, weight * sim, 0),
            "mass": weight,
        }
