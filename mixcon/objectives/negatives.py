"""Estimates of what true negatives would contribute: debiased and hardness-weighted contrast."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import batch_mean, global_size, interleave, inverse_temperature, row_dot
from mixcon.objectives.instance import two_views
from mixcon.ops import Block, Impl, Reduce, checks, pairs


def debiased(
    first: Array,
    second: Array,
    *,
    temperature: ArrayLike,
    class_prior: float = 0.1,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Contrast corrected for negatives that are of the anchor's own class.

    With M negatives, p the exponentiated similarity of the positive and n_j those of negatives:
    `g = max( (Σ_j n_j - M τ⁺ p) / (1 - τ⁺), M exp(-1/τ) )`, `loss = mean -log( p / (p + g) )` over the 2B views.

    Args:
      first, second: [B, D] unit rows, two views of each of B ≥ 2 examples. temperature: τ > 0.
      class_prior: τ⁺ in [0, 1), the probability that a random example is of the anchor's class; 0 gives NT-Xent.
      normalize, impl, axis_name: as for `info_nce`.

    Returns:
      Scalar.

    Raises:
      InputError: as for `info_nce`; a class prior outside [0, 1); a batch of one example.

    Example:
      >>> loss = debiased(z[0], z[1], temperature=0.5, class_prior=0.1)

    Reference: Chuang et al., "Debiased Contrastive Learning", 2020, eq. 7 and 8.
    """
    return hard_negative_reweighted(
        first,
        second,
        temperature=temperature,
        hardness=None,
        class_prior=class_prior,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


def hard_negative_reweighted(
    first: Array,
    second: Array,
    *,
    temperature: ArrayLike,
    hardness: ArrayLike | None = 1.0,
    class_prior: float = 0.1,
    negatives: Literal["both_views", "other_view"] = "both_views",
    count_positive: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Debiased contrast whose negatives weigh more the closer they are (HCL).

    `debiased`, with `Σ_j n_j^β n_j / mean_j n_j^β` instead of `Σ_j n_j`. The weights carry gradient.

    Args:
      first, second: [B, D] unit rows, two views of each of B ≥ 2 examples. temperature: τ > 0.
      hardness: β ≥ 0, a scalar; None or 0 weighs all negatives alike. class_prior: τ⁺ in [0, 1).
      negatives: "both_views": anchors are all 2B views, each with 2B - 2 negatives; "other_view": anchors are `first`,
        each with its B - 1 negatives in `second` (two modalities).
      count_positive: M in the correction and the floor also counts the positive, as in the baseline of geodesic
        multi-modal mixup (there M = B).
      normalize, impl, axis_name: as for `info_nce`.

    Returns:
      Scalar.

    Raises:
      InputError: as for `debiased`; a hardness below zero.

    Example:
      >>> loss = hard_negative_reweighted(z[0], z[1], temperature=0.5, hardness=1.0, class_prior=0.1)

    Reference: Robinson, Chuang, Sra, Jegelka, "Contrastive Learning with Hard Negative Samples", 2021, eq. 4 and
      section 3.
    """
    if not 0 <= class_prior < 1:
        raise InputError(f"class_prior must be in [0, 1), got {class_prior}.")
    checks.nonnegative("hardness", hardness)
    first, second = two_views(first, second, normalize, axis_name)
    positive = row_dot(first, second)
    count = global_size(first.shape[0], axis_name) - 1
    if negatives == "both_views":
        queries = keys = interleave([first, second])
        positive, count, own = jnp.repeat(positive, 2), 2 * count, pairs.block(2, "both")
    elif negatives == "other_view":
        queries, keys, own = first, second, pairs.identity()
    else:
        raise InputError(f'negatives must be "both_views" or "other_view", got {negatives!r}.')
    dtype = positive.dtype
    scale = inverse_temperature(temperature).astype(dtype)
    beta = None if hardness is None else jnp.asarray(hardness, dtype)
    reductions = {"hard": Reduce("hard", "logsumexp")} | ({} if beta is None else {"mean": Reduce("mean", "logsumexp")})
    out = ops.pair_reduce(
        _Reweighted((~own).rule, beta is not None),
        queries,
        keys,
        reductions,
        shared=(scale, () if beta is None else beta, (~own).shared),
        impl=impl,
        axis_name=axis_name,
    )
    size = jnp.asarray(count, dtype)
    negative = out["hard"] if beta is None else out["hard"] - out["mean"] + jnp.log(size)  # log of their weighted sum
    positive = positive * scale
    # Everything relative to the larger of the two exponents: at temperature 0.01 they overflow float32 by themselves.
    top = lax.stop_gradient(jnp.maximum(positive, negative))
    p, n = jnp.exp(positive - top), jnp.exp(negative - top)
    size = size + 1 if count_positive else size
    floor = size * jnp.exp(-scale - top)
    g = jnp.maximum((n - size * class_prior * p) / (1 - class_prior), floor)
    return batch_mean(top + jnp.log(p + g) - positive, axis_name)


@dataclasses.dataclass(frozen=True)
class _Reweighted:
    negatives: Any
    weighted: bool

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        scale, beta, own = shared
        kept = self.negatives(Block(row.position, ()), Block(col.position, ()), own)
        logits = sim * scale
        if not self.weighted:
            return {"hard": jnp.where(kept, logits, -jnp.inf)}
        mean = jnp.where(kept, beta * logits, -jnp.inf)
        return {"hard": jnp.where(kept, (1 + beta) * logits, -jnp.inf), "mean": mean}
