"""Contrast that moves one modality to a frozen one, with the frozen one's own similarities as weights: CWCL.

Shapes: N pairs, D features, E features of the reference.
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
    accumulator,
    all_devices,
    batch_mean,
    batch_sum,
    global_size,
    row_dot,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.ops import Block, Impl, Pairs, Reduce, checks, pairs

KINDS = ("affine", "relu", "exp", "identity", "labels")
LEAST_SUM = 1e-12  # of a row of weights


def cwcl(
    first: Array,
    second: Array,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike | None = None,
    weights: str | Pairs | ArrayLike = "affine",
    reference: Array | None = None,
    labels: ArrayLike | None = None,
    weight_temperature: float = 0.1,
    frozen: Literal["first", "second"] = "second",
    reduction: Literal["mean", "sum"] = "sum",
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Continuously weighted contrast: pulled to every frozen example by how similar it is to one's own.

    With p of the trained modality, q of the frozen one, r the frozen encoder's embeddings, `w_ij = (1 + r_i·r_j) / 2`:
    `ℓ_i = -(1 / Σ_j w_ij) Σ_j w_ij log softmax_j(s p_i·q_j)`, `ℓ'_i = -log softmax_j(s q_i·p_j) at j = i`;
    `loss = mean_i ℓ_i + mean_i ℓ'_i`, halved for "mean". The weights carry no gradient. With weights of unrelated
    examples near 1/2 the first term stays above its floor, the entropy of the weights (`target_entropy`).

    Args:
      first, second: [N, D] unit rows, row i of each a pair; one of them is of the frozen modality, see `frozen`.
      logit_scale: s, the multiplier itself (1/temperature), a scalar. logit_bias: both softmaxes are invariant to it.
      weights: "affine", as above (needs no pair: memory D×E); "relu": max(r_i·r_j, 0); "exp": exp((r_i·r_j - 1)/t);
        "identity": the pair alone, which is CLIP; "labels": 1 for equal labels; or one's own, as `Pairs` or as a
        matrix [N, N] (memory N×N: small batches).
      reference: r [N, E], unit rows; the frozen modality's own by default.
      labels: [N] int, for "labels". weight_temperature: t > 0, for "exp".
      frozen: which of the two is the frozen modality. Its encoder is locked elsewhere: gradients do reach it here.
      reduction: of the two directions.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.
      has_aux: return (loss, metrics) too; costs one more forward product of the reference with itself.

    Returns:
      Scalar float32; with `has_aux` also `loss_weighted`, `loss_contrastive` (the two means), `target_entropy` (the
      least that `loss_weighted` can be), `effective_positives` (mean of exp of it).

    Raises:
      InputError: unknown names, shapes that differ, labels or a reference where none is used, a scale or temperature
        not above zero, values that are not finite, rows not of unit length, a row of weights that sums to nothing.

    Example:
      >>> loss = cwcl(speech, jax.lax.stop_gradient(text), logit_scale=1 / 0.07)

    Reference: Srinivasa et al., "CWCL: Cross-Modal Transfer with Continuously Weighted Contrastive Loss", 2023.
    """
    same_shape("first", first, "second", second)
    if frozen not in ("first", "second") or reduction not in ("mean", "sum"):
        raise InputError(f"want frozen='first' or 'second', reduction='mean' or 'sum'; got {frozen!r}, {reduction!r}.")
    checks.positive("logit_scale", logit_scale)
    first, second = unit_rows("first", first, normalize), unit_rows("second", second, normalize)
    trained, known = (first, second) if frozen == "second" else (second, first)
    weights = weights if isinstance(weights, str | Pairs) else _matrix(weights, len(known), axis_name)
    target, reference = _target(weights, known, reference, labels, weight_temperature, normalize)
    dtype = accumulator(trained)
    scale = jnp.asarray(logit_scale, dtype)
    tiled = None if weights in ("affine", "identity") else target
    row, col = ops.pair_statistics(
        trained, known, scale=scale, positives=tiled, symmetric=True, impl=impl, axis_name=axis_name
    )
    assert col is not None  # symmetric
    own = scale * row_dot(trained, known)
    pull, mass = row.positive, row.mass
    if weights == "affine":
        pull, mass = _affine_sums(trained, known, reference, axis_name)
        pull = scale * pull
    known_mass = checks.concrete(mass)
    if known_mass is not None and (empty := int((known_mass < LEAST_SUM).sum())):
        raise InputError(f"weights: {empty} of {len(known_mass)} rows sum to less than {LEAST_SUM}; no target is left.")
    some = mass >= LEAST_SUM
    weighted = jnp.where(some, row.log_denominator - pull / jnp.where(some, mass, 1), 0)
    parts = {
        "loss_weighted": batch_mean(weighted, axis_name),
        "loss_contrastive": batch_mean(col.log_denominator - own, axis_name),
    }
    loss = parts["loss_weighted"] + parts["loss_contrastive"]
    loss = loss / 2 if reduction == "mean" else loss
    if not has_aux:
        return loss
    entropy = _entropy(target, lax.stop_gradient(mass), reference, impl, axis_name)
    floor = {
        "target_entropy": batch_mean(entropy, axis_name),
        "effective_positives": batch_mean(jnp.exp(entropy), axis_name),
    }
    return with_aux(loss, parts | floor)


@dataclasses.dataclass(frozen=True)
class Exponential:
    """Weight of a cosine: exp((s - 1) / t), 1 for equal directions."""

    temperature: float

    def __call__(self, similarity: Array) -> Array:
        return jnp.exp((similarity - 1) / self.temperature)


def clipped_affine(similarity: Array) -> Array:
    """`pairs.affine` of a cosine that rounding may have put outside [-1, 1]."""
    return jnp.clip(pairs.affine(similarity), 0, 1)


def _target(
    weights: str | Pairs, known: Array, reference: Array | None, labels: Any, temperature: float, normalize: bool
) -> tuple[Pairs, Array]:
    """The weights of all pairs in factored form, and the unit embeddings that they come from."""
    if isinstance(weights, str) and weights not in KINDS:
        raise InputError(f"weights={weights!r} is unknown; choose one of {', '.join(KINDS)}, or give Pairs.")
    compared = weights in ("affine", "relu", "exp")
    if (labels is None) == (weights == "labels") or (reference is not None and not compared):
        raise InputError(f"weights={weights!r}: labels belong to 'labels', a reference to 'affine', 'relu' and 'exp'.")
    if reference is None:
        reference = known
    elif reference.ndim != 2 or reference.shape[0] != known.shape[0]:
        raise InputError(f"reference must be [{known.shape[0]}, E], a row for each pair, got shape {reference.shape}.")
    checks.finite("reference", reference)
    reference = unit_rows("reference", lax.stop_gradient(reference), normalize).astype(accumulator(known))
    if isinstance(weights, Pairs):
        return jax.tree.map(lax.stop_gradient, weights), reference
    if weights == "identity":
        return pairs.identity(), reference
    if weights == "labels":
        labels = jnp.asarray(labels)
        if labels.shape != known.shape[:1]:
            raise InputError(f"labels must be [{known.shape[0]}], one for each pair, got shape {labels.shape}.")
        return pairs.same_label(labels), reference
    checks.positive("weight_temperature", temperature)
    kernels: dict[Any, Any] = {"affine": clipped_affine, "relu": jax.nn.relu, "exp": Exponential(temperature)}
    return pairs.similarity(reference, kernel=kernels[weights]), reference


def _matrix(weights: ArrayLike, count: int, axis_name: str | None) -> Pairs:
    """Weights written out, a row for each pair here and a column for each pair anywhere."""
    wanted = count, global_size(count, axis_name)
    if jnp.shape(weights) != wanted:
        raise InputError(f"weights must be a matrix {list(wanted)} of all pairs, got shape {jnp.shape(weights)}.")
    checks.finite("weights", weights)
    return pairs.dense(weights)


def _affine_sums(trained: Array, known: Array, reference: Array, axis_name: str | None) -> tuple[Array, Array]:
    """`Σ_j w_ij p_i·q_j` and `Σ_j w_ij` of affine weights, [N]: linear in q_j and r_j, hence without a pair."""
    dtype, highest = reference.dtype, lax.Precision.HIGHEST
    trained, known = trained.astype(dtype), known.astype(dtype)
    count = global_size(len(trained), axis_name)
    together = all_devices(jnp.einsum("ne,nd->ed", reference, known, precision=highest), axis_name)  # Σ_j r_j q_jᵀ
    mixed = jnp.dot(reference, together, precision=highest) + batch_sum(known, axis_name)[None]
    mass = (count + jnp.dot(reference, batch_sum(reference, axis_name), precision=highest)) / 2
    return row_dot(trained, mixed) / 2, mass


def _entropy(target: Pairs, mass: Array, reference: Array, impl: Impl, axis_name: str | None) -> Array:
    """[N] entropy of each row of weights divided by its sum: `log M_i - (1/M_i) Σ_j w_ij log w_ij`."""
    out = ops.pair_reduce(
        _EntropyTile(target.rule),
        reference,
        reference,
        {"negative": Reduce("negative", "sum")},
        rows=target.rows,
        cols=target.cols,
        shared=target.shared,
        impl=impl,
        axis_name=axis_name,
    )
    some = mass >= LEAST_SUM
    mass = jnp.where(some, mass, 1)
    return jnp.where(some, jnp.log(mass) - out["negative"] / mass, 0)


@dataclasses.dataclass(frozen=True)
class _EntropyTile:
    rule: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        weight = pairs.weights(self.rule(row, col, shared), sim.dtype)
        return {"negative": jnp.where(weight > 0, weight * jnp.log(jnp.where(weight > 0, weight, 1)), 0)}
