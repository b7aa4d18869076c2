"""Contrast of two modalities by a softmax in both directions: CLIP and ALIGN."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    LossOrAux,
    Metrics,
    accumulator,
    batch_mean,
    batch_sum,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.ops import Block, Impl, Reduce, checks


def clip(
    image: Array,
    text: Array,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
    mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    stop_gradient_gathered: bool = False,
    has_aux: bool = False,
) -> LossOrAux:
    """Symmetric InfoNCE of matching pairs (CLIP); with `label_smoothing=0.1, reduction="sum"` the loss of ALIGN.

    `L_ij = s x_i·y_j + b`; `ℓ_i = log Σ_j exp L_ij - (1-ε) L_ii - (ε/B) Σ_j L_ij`, `ℓ'_j` the same over columns;
    `loss = (mean_i ℓ_i + mean_j ℓ'_j) / 2`, or without the half for "sum".

    Args:
      image, text: [B, D] unit rows, row i of each a pair; float32 or bfloat16.
      logit_scale: s, the multiplier itself (not its log; 1/temperature), a scalar. Its gradient is exact.
      logit_bias: b, a scalar; the softmax is invariant to it.
      label_smoothing: ε in [0, 1), spread over all B candidates, the positive included.
      reduction: over the two directions.
      mask: [B] bool, False for padding, which is then in no denominator and no mean.
      normalize: divide rows by their norm first. When False, rows not of unit length are refused outside jit.
      impl, axis_name: see `mixcon.ops.pair_reduce`; under `axis_name` every device returns the whole batch's loss.
      stop_gradient_gathered: no gradient through the candidates, only through each anchor, as when features are
        gathered without their gradient. Not the gradient of this loss; for reproducing papers trained that way.
      has_aux: return (loss, metrics) too; the accuracies cost one more forward product.

    Returns:
      Scalar float32; with `has_aux` also `loss_image_to_text`, `loss_text_to_image`, `accuracy_image_to_text`,
      `accuracy_text_to_image` (positive above every other candidate), `positive_logit`, `negative_logit` (means).

    Raises:
      InputError: shapes that differ, label smoothing outside [0, 1), a scale not above zero, rows not of unit length.

    Example:
      >>> loss = clip(image, text, logit_scale=jnp.exp(params["log_scale"]))

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, figure 3;
      Jia et al., "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision", 2021,
      eq. 1 and 2.
    """
    image, text = checked_pairs(image, text, normalize)
    if reduction not in ("mean", "sum"):
        raise InputError(f'reduction must be "mean" or "sum" (over the two directions), got {reduction!r}.')
    dtype = accumulator(image)
    scale = jnp.asarray(logit_scale, dtype)
    bias = jnp.zeros((), dtype) if logit_bias is None else jnp.asarray(logit_bias, dtype)
    valid = None if mask is None else jnp.asarray(mask, bool)
    options: dict[str, Any] = dict(label_smoothing=label_smoothing, impl=impl, axis_name=axis_name)
    losses = both_ways(image, text, scale, bias, valid, stop_gradient_gathered=stop_gradient_gathered, **options)
    loss = losses["loss_image_to_text"] + losses["loss_text_to_image"]
    loss = loss / 2 if reduction == "mean" else loss
    if not has_aux:
        return loss
    return with_aux(loss, losses | pair_metrics(image, text, scale, bias, valid, impl, axis_name))


def checked_pairs(image: Array, text: Array, normalize: bool) -> tuple[Array, Array]:
    """Unit rows of two modalities, refused when they are no pairs."""
    same_shape("image", image, "text", text)
    return unit_rows("image", image, normalize), unit_rows("text", text, normalize)


def both_ways(
    image: Array,
    text: Array,
    scale: Array,
    bias: Array,
    valid: Array | None = None,
    *,
    label_smoothing: float,
    stop_gradient_gathered: bool,
    impl: Impl,
    axis_name: str | None,
) -> Metrics:
    """The loss of `clip` in each direction, `loss_image_to_text` and `loss_text_to_image`; arguments as there."""
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    checks.positive("logit_scale", scale)
    dtype = scale.dtype

    def cross_entropy(queries: Array, keys: Array, symmetric: bool) -> ops.CrossEntropy:
        return ops.contrastive_cross_entropy(
            queries,
            keys,
            scale=scale,
            bias=bias,
            symmetric=symmetric,
            row_mask=valid,
            col_mask=valid,
            impl=impl,
            axis_name=axis_name,
        )

    if stop_gradient_gathered:
        rows = cross_entropy(image, lax.stop_gradient(text), False).rows
        cols: ops.Direction | None = cross_entropy(text, lax.stop_gradient(image), False).rows
    else:
        rows, cols = cross_entropy(image, text, True)
    assert cols is not None  # symmetric
    losses: Metrics = {}
    for name, side, anchors, candidates in (("image_to_text", rows, image, text), ("text_to_image", cols, text, image)):
        loss = side.loss
        if label_smoothing:  # Σ_j L_ij is linear in y_j: the mean candidate stands for the whole row
            candidates = lax.stop_gradient(candidates) if stop_gradient_gathered else candidates
            centre = batch_mean(candidates.astype(dtype), axis_name, valid)
            loss = loss + label_smoothing * (side.positive - scale * (anchors.astype(dtype) @ centre) - bias)
        losses[f"loss_{name}"] = batch_mean(loss, axis_name, valid)
    return losses


def pair_metrics(
    image: Array, text: Array, scale: Array, bias: Array, valid: Array | None, impl: Impl, axis_name: str | None
) -> Metrics:
    """In-batch accuracy of both directions, and mean logits of positives and negatives; no gradient."""
    image, text = lax.stop_gradient((image, text))
    kept = jnp.ones(image.shape[0], bool) if valid is None else valid
    out = ops.pair_reduce(
        _rivals,
        image,
        text,
        {
            "positive": Reduce("positive", "sum", "row"),
            "row_rival": Reduce("rival", "max", "row"),
            "col_rival": Reduce("rival", "max", "col"),
        },
        rows=kept,
        cols=kept,
        impl=impl,
        axis_name=axis_name,
    )
    # Means of all logits are linear in the features, so the negatives' mean needs no pair.
    dtype = out["positive"].dtype
    count = batch_sum(kept.astype(dtype), axis_name)
    centres = [batch_mean(x.astype(dtype), axis_name, kept) for x in (image, text)]
    positive = scale * batch_mean(out["positive"], axis_name, kept) + bias
    everything = scale * jnp.dot(*centres) + bias
    return {
        "accuracy_image_to_text": batch_mean((out["positive"] > out["row_rival"]).astype(dtype), axis_name, kept),
        "accuracy_text_to_image": batch_mean((out["positive"] > out["col_rival"]).astype(dtype), axis_name, kept),
        "positive_logit": positive,
        "negative_logit": (count * everything - positive) / jnp.maximum(count - 1, 1),
    }


def _rivals(sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
    own = row.position[:, None] == col.position[None, :]
    rival = row.data[:, None] & col.data[None, :] & ~own
    # The positive comes from the same product as its rivals, so that identical rows tie exactly (and count as wrong).
    return {"positive": jnp.where(own, sim, 0), "rival": jnp.where(rival, sim, -jnp.inf)}
