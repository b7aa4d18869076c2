"""Instance discrimination: each example against all others, its other view the only positive."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    LossOrAux,
    batch_logsumexp,
    batch_mean,
    global_size,
    interleave,
    inverse_temperature,
    own_places,
    row_dot,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.ops import Bank, Impl, Pairs, pairs


def info_nce(
    queries: Array,
    keys: Array,
    *,
    temperature: ArrayLike,
    bank: Array | None = None,
    positive_index: ArrayLike | None = None,
    symmetric: bool = False,
    mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Each query picks its key among all keys of the batch, and of a bank when given.

    `loss = mean_i [ log( Σ_j exp(q_i·k_j/τ) + Σ_m exp(q_i·n_m/τ) ) - q_i·k_i/τ ]`; symmetric: averaged with the same of
    the keys over the queries (the bank stays with the queries).

    Args:
      queries, keys: [B, D] unit rows, row i of each a pair.
      temperature: τ > 0, a scalar (differentiable).
      bank: [M, D] unit rows, further negatives such as a momentum queue; under `axis_name` the same on every device.
      positive_index: [B], place of each query's own among keys [N, D], a memory of all examples that is the same on
        every device; default the key beside it.
      mask: [B] bool, False for padding. normalize: divide rows by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`. has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also {"probability": mean softmax probability of the positive}.

    Raises:
      InputError: shapes that differ, a temperature not above zero, rows not of unit length (outside jit); a memory
        together with a bank, a mask or the symmetric form.

    Example:
      >>> loss = info_nce(query, key, temperature=0.2, bank=queue)

    Reference: Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4; with a
      bank, He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, eq. 1.
    """
    queries, keys = unit_rows("queries", queries, normalize), unit_rows("keys", keys, normalize)
    if bank is not None and symmetric:
        raise InputError("bank holds negatives of the queries only: use symmetric=False.")
    positives: Pairs | None = None
    placement: dict[str, Any] = {"impl": impl, "axis_name": axis_name}
    if positive_index is None:
        same_shape("queries", queries, "keys", keys)
    elif symmetric or bank is not None or mask is not None:
        raise InputError("positive_index makes keys a memory: without symmetric, bank or mask.")
    else:  # the memory is whole on every device: there is no axis to go around
        own, placement = own_places(positive_index, len(queries), len(keys)), {"impl": "auto" if axis_name else impl}
        positives = pairs.same_label(own, jnp.arange(len(keys), dtype=jnp.int32))
    banks = () if bank is None else (Bank(unit_rows("bank", bank, normalize)),)
    valid = None if mask is None else jnp.asarray(mask, bool)
    rows, cols = ops.contrastive_cross_entropy(
        queries,
        keys,
        scale=inverse_temperature(temperature),
        positives=positives,
        symmetric=symmetric,
        row_mask=valid,
        col_mask=valid,
        banks=banks,
        **placement,
    )
    loss = batch_mean(rows.loss, axis_name, valid)
    if cols is not None:
        loss = (loss + batch_mean(cols.loss, axis_name, valid)) / 2
    if not has_aux:
        return loss
    return with_aux(loss, {"probability": batch_mean(rows.probability, axis_name, valid)})


def nt_xent(
    first: Array,
    second: Array,
    *,
    temperature: ArrayLike,
    mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Normalised temperature-scaled cross-entropy over the 2B views of a batch (SimCLR).

    With z the 2B views and p(i) the other view of i:
    `loss = mean_i [ log Σ_{j≠i} exp(z_i·z_j/τ) - z_i·z_{p(i)}/τ ]`, over all 2B anchors.

    Args:
      first, second: [B, D] unit rows, two views of each example. temperature: τ > 0.
      mask, normalize, impl, axis_name, has_aux: as for `info_nce`.

    Returns:
      Scalar; with `has_aux` also {"probability": mean softmax probability of the positive}.

    Raises:
      InputError: as for `info_nce`.

    Example:
      >>> loss = nt_xent(z[0], z[1], temperature=0.5, normalize=True)

    Reference: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
      Representations", 2020, eq. 1.
    """
    same_shape("first", first, "second", second)
    views = interleave([unit_rows("first", first, normalize), unit_rows("second", second, normalize)])
    valid = None if mask is None else jnp.repeat(jnp.asarray(mask, bool), 2)
    rows, _ = ops.contrastive_cross_entropy(
        views,
        views,
        scale=inverse_temperature(temperature),
        positives=pairs.block(2, "both") & pairs.not_self(),
        denominator=pairs.not_self(),
        row_mask=valid,
        col_mask=valid,
        impl=impl,
        axis_name=axis_name,
    )
    loss = batch_mean(rows.loss, axis_name, valid)
    if not has_aux:
        return loss
    return with_aux(loss, {"probability": batch_mean(rows.probability, axis_name, valid)})


def decoupled(
    first: Array,
    second: Array,
    *,
    temperature: ArrayLike,
    weight_sigma: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """NT-Xent without the positive in the denominator (DCL), which learns from small batches.

    `loss = mean_i [ -w_i z_i·z_{p(i)}/τ + log Σ_{j≠i, j≠p(i)} exp(z_i·z_j/τ) ]` over the 2B views; `w = 1` (DCL), or
    with `weight_sigma` σ, `w_i = 2 - exp(z_i·z_{p(i)}/σ) / mean_j exp(z_j·z_{p(j)}/σ)` (DCLW; gradient included).

    Args:
      first, second: [B, D] unit rows, two views of each of B ≥ 2 examples. temperature: τ > 0.
      weight_sigma: σ > 0 of the von Mises-Fisher weights (0.5 in the paper), None for equal weights.
      normalize, impl, axis_name: as for `info_nce`.

    Returns:
      Scalar, unbounded below.

    Raises:
      InputError: as for `info_nce`, and a batch of one example, which has no negatives.

    Example:
      >>> loss = decoupled(z[0], z[1], temperature=0.1, weight_sigma=0.5)

    Reference: Yeh et al., "Decoupled Contrastive Learning", 2022, section 3 (L_DC and L_DCW).
    """
    first, second = two_views(first, second, normalize, axis_name)
    scale = inverse_temperature(temperature)
    views = interleave([first, second])
    same = pairs.block(2, "both")
    rows, _ = ops.pair_statistics(
        views,
        views,
        scale=scale,
        positives=same & pairs.not_self(),
        denominator=~same,
        impl=impl,
        axis_name=axis_name,
    )
    if weight_sigma is None:
        return batch_mean(rows.log_denominator - rows.positive, axis_name)
    agreement = row_dot(first, second)
    sharp = agreement * inverse_temperature(weight_sigma, "weight_sigma").astype(agreement.dtype)
    count = jnp.asarray(global_size(first.shape[0], axis_name), sharp.dtype)
    weight = 2 - jnp.exp(sharp - batch_logsumexp(sharp, axis_name)) * count
    pull = weight * agreement * scale.astype(agreement.dtype)
    return batch_mean(rows.log_denominator, axis_name) - batch_mean(pull, axis_name)


def two_views(first: Array, second: Array, normalize: bool, axis_name: str | None) -> tuple[Array, Array]:
    """Checked unit views of at least two examples."""
    same_shape("first", first, "second", second)
    if global_size(first.shape[0], axis_name) < 2:
        raise InputError("first and second hold one example: without a second one there are no negatives.")
    return unit_rows("first", first, normalize), unit_rows("second", second, normalize)
