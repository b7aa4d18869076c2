"""Several positives for each anchor: of the same class, or any weighted description of pairs."""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import LossOrAux, Metrics, batch_mean, batch_sum, inverse_temperature, unit_rows, with_aux
from mixcon.ops import Direction, Impl, Pairs, checks, pairs


def supcon(
    features: Array,
    labels: ArrayLike,
    *,
    temperature: ArrayLike,
    form: Literal["out", "in"] = "out",
    base_temperature: ArrayLike | None = None,
    empty: Literal["zero", "error"] = "zero",
    mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Supervised contrast: every other sample of the anchor's class is a positive.

    With P(i) the other samples of i's class and `L_ij = z_i·z_j/τ`, R_i = log Σ_{j≠i} exp L_ij:
    "out": `ℓ_i = (1/|P(i)|) Σ_{p∈P(i)} (R_i - L_ip)`; "in": `ℓ_i = R_i - log[ (1/|P(i)|) Σ_{p∈P(i)} exp L_ip ]`;
    `loss = mean ℓ_i` over the anchors that have a positive.

    Args:
      features: [B, D] unit rows, or [B, V, D] with V views of each sample (all of them anchors and positives).
      labels: [B] classes. temperature: τ > 0.
      form: mean outside ("out", the better one) or inside ("in") the logarithm.
      base_temperature: when given, the loss is multiplied by τ / base_temperature, as the reference code does.
      empty: an anchor without a positive costs nothing and is left out of the mean, or is an error (outside jit).
      mask: [B] bool, False for padding. normalize: divide rows by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`. has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also {"without_positive": how many anchors were skipped, "probability": mean softmax
      probability (geometric) of the positives}.

    Raises:
      InputError: labels of the wrong length, anchors without a positive when asked, a temperature not above zero, rows
        not of unit length (outside jit).

    Example:
      >>> loss = supcon(views, labels, temperature=0.1, normalize=True)  # views [B, 2, D]

    Reference: Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2 ("out") and 3 ("in").
    """
    if features.ndim not in (2, 3):
        raise InputError(f"features must be [B, D] or [B, V, D], got shape {features.shape}.")
    size, views = features.shape[0], 1 if features.ndim == 2 else features.shape[1]
    labels = class_labels(labels, size)
    rows = unit_rows("features", features.reshape(size * views, features.shape[-1]), normalize)
    labels = jnp.repeat(labels, views)
    valid = None if mask is None else jnp.repeat(jnp.asarray(mask, bool), views)
    scale = inverse_temperature(temperature)
    out, _ = ops.contrastive_cross_entropy(
        rows,
        rows,
        scale=scale,
        positives=pairs.same_label(labels) & pairs.not_self(),
        denominator=pairs.not_self(),
        form=form,
        empty=empty,
        row_mask=valid,
        col_mask=valid,
        impl=impl,
        axis_name=axis_name,
    )
    loss = batch_mean(out.loss, axis_name, out.has_positive)
    if base_temperature is not None:
        loss = loss / (scale * jnp.asarray(base_temperature, scale.dtype)).astype(loss.dtype)
    return with_aux(loss, positive_metrics(out, valid, axis_name)) if has_aux else loss


def multi_positive(
    queries: Array,
    keys: Array,
    positives: Pairs | ArrayLike,
    *,
    temperature: ArrayLike,
    denominator: Pairs | None = None,
    form: Literal["out", "in"] = "out",
    normalize_targets: bool = True,
    symmetric: bool = False,
    empty: Literal["zero", "error"] = "zero",
    query_mask: ArrayLike | None = None,
    key_mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Softmax of each query over the keys against any row of weighted positives: soft, mixed, multi-label, 1-to-K.

    With targets T, denominator weights D, `L_ij = q_i·k_j/τ`, R_i = log Σ_j D_ij exp L_ij, M_i = Σ_j T_ij:
    "out": `ℓ_i = (1/M_i) Σ_j T_ij (R_i - L_ij)`; "in": `ℓ_i = R_i - log[ (1/M_i) Σ_j T_ij exp L_ij ]`;
    `loss = mean ℓ_i` over the queries with a positive; symmetric: averaged with the same of the keys over the queries.

    Args:
      queries, keys: [B, D] and [N, D] unit rows.
      positives: T, a factored description (`mixcon.ops.pairs`), or a small matrix [B, N] of booleans or weights ≥ 0.
      temperature: τ > 0. denominator: D, default every pair with weight 1.
      form: see the formula. normalize_targets: False leaves out 1/M_i. empty: as for `supcon`.
      query_mask, key_mask: [B], [N] bool, False for padding. normalize: divide rows by their norm first.
      symmetric, impl, axis_name: see `mixcon.ops.contrastive_cross_entropy`. has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also the metrics of `supcon`, of the query direction.

    Raises:
      InputError: a matrix of the wrong shape, weights negative or not finite, and as for `supcon`.

    Example:
      >>> loss = multi_positive(mixed, clean, pairs.mixed(partner, weight), temperature=0.1)

    Reference: Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2 and 3, with weights in place of the
      same-class indicator.
    """
    queries, keys = unit_rows("queries", queries, normalize), unit_rows("keys", keys, normalize)
    if not isinstance(positives, Pairs):
        matrix = jnp.asarray(positives)
        expected = (queries.shape[0], keys.shape[0])
        if axis_name is None and matrix.shape != expected:
            raise InputError(f"positives must be [B, N] = {expected}, or a `pairs` description; got {matrix.shape}.")
        checks.nonnegative("positives", matrix)
        positives = pairs.dense(matrix)
    valid = None if query_mask is None else jnp.asarray(query_mask, bool)
    rows, cols = ops.contrastive_cross_entropy(
        queries,
        keys,
        scale=inverse_temperature(temperature),
        positives=positives,
        denominator=denominator,
        form=form,
        normalize_targets=normalize_targets,
        empty=empty,
        symmetric=symmetric,
        row_mask=valid,
        col_mask=key_mask,
        impl=impl,
        axis_name=axis_name,
    )
    loss = batch_mean(rows.loss, axis_name, rows.has_positive)
    if cols is not None:
        loss = (loss + batch_mean(cols.loss, axis_name, cols.has_positive)) / 2
    return with_aux(loss, positive_metrics(rows, valid, axis_name)) if has_aux else loss


def class_labels(labels: ArrayLike, size: int) -> Array:
    """One label for each sample, or a refusal that says so."""
    labels = jnp.asarray(labels)
    if labels.shape != (size,):
        raise InputError(f"labels must have one class for each of the {size} samples, got shape {labels.shape}.")
    return labels


def positive_metrics(rows: Direction, valid: Array | None, axis_name: str | None) -> Metrics:
    """How many anchors had no positive, and how likely the positives of the others are."""
    lonely = ~rows.has_positive if valid is None else ~rows.has_positive & valid
    return {
        "without_positive": batch_sum(lonely.astype(rows.loss.dtype), axis_name),
        "probability": batch_mean(rows.probability, axis_name, rows.has_positive),
    }
