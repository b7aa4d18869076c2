"""Contrast of paired modalities with targets that are not one-hot: M3Co (mixed) and soft CLIP (self-similar).

Shapes: N examples, D features.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    accumulator,
    batch_mean,
    inverse_temperature,
    same_shape,
    unit_rows,
)
from mixcon.ops import Block, Impl, Pairs, Reduce, checks, pairs


def multimodal_pairs(modalities: int) -> list[tuple[int, int]]:
    """Ordered pairs that losses of paired modalities are summed over: both orders of two, a cycle of more.

    Args:
      modalities: how many, at least 2.

    Returns:
      Pairs (first, second): the mixed one and its partner (M3Co), the predicting one and its target (soft CLIP).

    Raises:
      InputError: fewer than two modalities.

    Example:
      >>> multimodal_pairs(2), multimodal_pairs(3)
      ([(0, 1), (1, 0)], [(0, 1), (1, 2), (2, 0)])

    Reference: Kumar et al., "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for Multimodal
      Classification", 2025.
    """
    if modalities < 2:
        raise InputError(f"contrast needs at least two modalities, got {modalities}; train one with weight 0.")
    return [(m, (m + 1) % modalities) for m in range(modalities)]


def m3co(
    mixed: Array,
    partner: Array,
    perm: ArrayLike,
    lam: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    bidirectional: bool = True,
    fixed_point: Literal["accumulate", "overwrite"] = "accumulate",
    normalize: bool = True,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Multimodal mixup contrast: a mixed example of one modality matches both of its parts in the other.

    `S_ij = x̃_i·z_j/τ`; `T_ii = λ_i`, `T_i,perm(i) += 1-λ_i`;
    `loss = ½ [mean_i -Σ_j T_ij log softmax_j(S_ij) + mean_j -Σ_i T_ij log softmax_i(S_ij)]`, the first alone (without
    the half) when not bidirectional. The targets of a column need not sum to one, and are left so.

    Args:
      mixed: [N, D], row i is `λ_i x_i + (1-λ_i) x_perm(i)`. partner: [N, D], the other modality, in order.
      perm: [N] int, permutation of the whole batch. lam: λ in [0, 1], [N], 1 where an example was not mixed.
      temperature: τ > 0.
      bidirectional: add the direction from the partners to the mixed examples.
      fixed_point: where perm(i) = i, the two parts of the target "accumulate" to 1, or the second "overwrite"s the
        first, which leaves 1-λ_i (what the published code does).
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar float32.

    Raises:
      InputError: other shapes, fewer than two examples, perm not a permutation, λ outside [0, 1], τ not above zero.

    Example:
      >>> loss = m3co(mix(plan, image), text, plan.partner, plan.weight)

    Reference: Kumar et al., "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for Multimodal
      Classification", 2025, M3Co loss.
    """
    mixed, partner = _paired(mixed, partner, normalize)
    perm, lam = jnp.asarray(perm), jnp.asarray(lam)
    size = mixed.shape[0]
    if perm.shape != (size,) or lam.shape != (size,):
        raise InputError(f"perm and lam must both be [{size}], one for each example; got {perm.shape}, {lam.shape}.")
    checks.unit_interval("lam", lam)
    if axis_name is None:
        checks.permutation("perm", perm)
    rows, cols = ops.contrastive_cross_entropy(
        mixed,
        partner,
        scale=inverse_temperature(temperature),
        positives=_mixed_targets(perm.astype(jnp.int32), lam.astype(accumulator(mixed)), fixed_point, axis_name),
        normalize_targets=False,
        symmetric=bidirectional,
        impl=impl,
        axis_name=axis_name,
    )
    loss = batch_mean(rows.loss, axis_name)  # rows and columns without a target count in N
    return loss if cols is None else (loss + batch_mean(cols.loss, axis_name)) / 2


def _mixed_targets(perm: Array, lam: Array, fixed_point: str, axis_name: str | None) -> Pairs:
    if fixed_point == "accumulate":
        return pairs.mixed(perm, lam)
    if fixed_point != "overwrite":
        raise InputError(f"fixed_point must be 'accumulate' or 'overwrite', got {fixed_point!r}.")
    position = jnp.arange(len(perm), dtype=perm.dtype)
    if axis_name is not None:
        position = position + (lax.axis_index(axis_name) * len(perm)).astype(perm.dtype)
    own = jnp.where(perm == position, 0, lam)
    return pairs.slots(jnp.stack([position, perm], 1), jnp.stack([own, 1 - lam], 1))


def soft_clip(
    pred: Array,
    target: Array,
    *,
    temperature: ArrayLike = 0.125,
    detach_targets: bool = False,
    normalize: bool = True,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """CLIP whose targets are the similarities of the target modality with itself (MultiSClip).

    `W = softmax_rows(Q Qᵀ/τ)`, `S = P Qᵀ/τ`;
    `loss = ½ [mean_i -Σ_j W_ij log softmax_j(S_ij) + mean_i -Σ_j W_ij log softmax_j(S_ji)]`: the same W both ways, not
    its transpose. As its rows sum to one, the two sums of logits are `Σ_ij (W_ij + W_ji) S_ij`, one pass over the
    pairs; W itself is never formed.

    Args:
      pred: P [N, D]. target: Q [N, D], in order.
      temperature: τ > 0, of both.
      detach_targets: no gradient through W (the published loss has it).
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar float32.

    Raises:
      InputError: other shapes, fewer than two examples, τ not above zero.

    Example:
      >>> loss = soft_clip(text, image) + soft_clip(image, text)

    Reference: Kumar et al., "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for Multimodal
      Classification", 2025, MultiSClip loss.
    """
    pred, target = _paired(pred, target, normalize)
    scale = inverse_temperature(temperature).astype(accumulator(pred))
    own = lax.stop_gradient(target) if detach_targets else target
    placement: dict[str, Any] = {"shared": scale, "impl": impl, "axis_name": axis_name}
    mass = ops.pair_reduce(_logits, own, own, {"log": Reduce("logits", "logsumexp")}, **placement)["log"]
    out = ops.pair_reduce(
        _soft_tile,
        (pred, own),
        (target, own),
        {
            "rows": Reduce("logits", "logsumexp", "row"),
            "cols": Reduce("logits", "logsumexp", "col"),
            "agreement": Reduce("agreement", "sum", "row"),
        },
        rows=mass,
        cols=mass,
        **placement,
    )
    return batch_mean(out["rows"] + out["cols"] - out["agreement"], axis_name) / 2


def _logits(sim: Array, row: Block, col: Block, scale: Any) -> dict[str, Array]:
    return {"logits": sim * scale}


def _soft_tile(sims: Any, row: Block, col: Block, scale: Any) -> dict[str, Array]:
    cross, own = sims[0] * scale, sims[1] * scale
    weight = jnp.exp(own - row.data[:, None]) + jnp.exp(own - col.data[None, :])  # W_ij + W_ji
    return {"logits": cross, "agreement": weight * cross}


def _paired(a: Array, b: Array, normalize: bool) -> tuple[Array, Array]:
    """Unit rows of two modalities of the same examples."""
    same_shape("one modality", a, "the other", b)
    if a.ndim != 2 or a.shape[0] < 2:
        raise InputError(f"contrast needs [N, D] with at least two examples, got shape {a.shape}.")
    return unit_rows("one modality", a, normalize), unit_rows("the other modality", b, normalize)
