"""One image and its K captions, in K languages, contrasted at once.

Shapes: B images, K captions of each (in a fixed order, image-major), D features.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    LossOrAux,
    accumulator,
    batch_mean,
    inverse_temperature,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.objectives.supervised import class_labels, multi_positive
from mixcon.ops import Block, Impl, Reduce, checks, pairs


def one_to_k(
    image: Array,
    text: Array,
    *,
    temperature: ArrayLike,
    normalization: Literal["code", "mean"] = "code",
    divisor: float | None = None,
    text_mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """1-to-K contrast (CCRK): an image against the captions of all, with its K as positives, and every caption back.

    `S = v tᵀ/τ`; `i2t_bl = -log softmax_j(S_bj)[bK+l]` over all BK captions, `t2i_bl = -log softmax_b(S_b,bK+l)` over
    the images; `loss = (K · mean i2t + mean t2i) / 2c` as the published code has it, where the K positives of an image
    are summed; with normalization="mean" `(mean i2t + mean t2i) / 2c`.

    The published training keeps of the gathered gradient only each device's own part, which is this gradient divided
    by the number of devices; here it is the gradient of the loss, on any mesh.

    Args:
      image: [B, D] unit rows.
      text: [BK, D] or [B, K, D] unit rows; caption l of image b is row bK + l, the same language at the same l.
      temperature: τ > 0, a scalar; differentiable.
      normalization: see the formula. divisor: c > 0; None is K for "code" and 1 for "mean".
      text_mask: [B, K] bool, False for a caption that is missing: it is in no denominator, and the mean over the
        positives of an image is over those that are there.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.
      has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also `loss_image_to_text`, `loss_text_to_image` (means, before weighing) and both for each
      caption, `per_caption_image_to_text` and `per_caption_text_to_image` [K].

    Raises:
      InputError: captions that are no multiple of the images, τ or c not above zero, rows not of unit length.

    Example:
      >>> loss, metrics = one_to_k(image, text, temperature=0.07, has_aux=True)  # [64, 256], [64, 6, 256]

    Reference: Nie, Li, Xu, Xu, Sun, Hu, Liu, Zhao, "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval
      with 1-to-K Contrastive Learning", 2024.
    """
    if normalization not in ("code", "mean"):
        raise InputError(f"normalization must be 'code' or 'mean', got {normalization!r}.")
    if divisor is not None and not divisor > 0:
        raise InputError(f"divisor={divisor} must be above 0; 1 divides by nothing, None by the number of captions.")
    image = unit_rows("image", image, normalize)
    rows, captions = caption_rows(text, image)
    rows = unit_rows("text", rows, normalize)
    there = caption_mask(text_mask, len(image), captions)
    scale = inverse_temperature(temperature)
    stats = caption_statistics(image, rows, scale, there, impl=impl, axis_name=axis_name)
    there = jnp.ones(stats.logits.shape, bool) if there is None else there

    losses = {
        "image_to_text": stats.image_denominator[:, None] - stats.logits,
        "text_to_image": stats.text_denominator - stats.logits,
    }
    losses = {name: jnp.where(there, loss, 0) for name, loss in losses.items()}
    found = there.sum(1).astype(stats.logits.dtype)
    of_image = losses["image_to_text"].sum(1) / jnp.maximum(found, 1)
    image_to_text = batch_mean(of_image, axis_name, found > 0)
    text_to_image = batch_mean(losses["text_to_image"].reshape(-1), axis_name, there.reshape(-1))
    own = captions if normalization == "code" else 1
    loss = (own * image_to_text + text_to_image) / (2 * (own if divisor is None else divisor))
    if not has_aux:
        return loss
    metrics = {"loss_image_to_text": image_to_text, "loss_text_to_image": text_to_image}
    for name, values in losses.items():
        each = [batch_mean(values[:, k], axis_name, there[:, k]) for k in range(captions)]
        metrics[f"per_caption_{name}"] = jnp.stack(each)
    return with_aux(loss, metrics)


def soft_id_info_nce(
    image: Array,
    text: Array,
    ids: ArrayLike,
    *,
    temperature: ArrayLike,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Symmetric InfoNCE in which pairs of one image share the target: the loss of retrieval fine-tuning.

    `T_ij = [id_i = id_j] / #{j : id_i = id_j}`; `loss = ½ mean_i Σ_j -T_ij (log softmax_j S_ij + log softmax_j S_ji)`
    with `S = v tᵀ/τ`.

    Args:
      image, text: [B, D] unit rows, row i of each a pair.
      ids: [B], equal for pairs of the same image.
      temperature: τ > 0. normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, τ not above zero, rows not of unit length.

    Example:
      >>> loss = soft_id_info_nce(image, text, batch["image_id"], temperature=0.07)

    Reference: Li et al., "Align before Fuse", 2021 (retrieval fine-tuning); Nie et al., 2024, fine-tuning.
    """
    same_shape("image", image, "text", text)
    same_image = pairs.same_label(class_labels(ids, len(image)))
    return multi_positive(
        image,
        text,
        same_image,
        temperature=temperature,
        symmetric=True,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


class CaptionStatistics(NamedTuple):
    """What the loss, and the draws of hard negatives, need to know of the matrix of images and captions."""

    logits: Array  # [B, K] S of an image and its own captions
    image_denominator: Array  # [B] log Σ exp S over all captions
    text_denominator: Array  # [B, K] log Σ exp S over all images
    top: Array  # [B] max S over all captions; 0 unless asked for


def caption_statistics(
    image: Array,
    text: Array,
    scale: Array,
    there: Array | None,
    *,
    top: bool = False,
    impl: Impl,
    axis_name: str | None,
) -> CaptionStatistics:
    """One pass over the matrix [B, BK]; positives need no tile, they are row-wise products."""
    batch, captions = len(image), len(text) // len(image)
    dtype = accumulator(image)
    scale = jnp.asarray(scale, dtype)
    reductions = {
        "image": Reduce("kept", "logsumexp", "row"),
        "text": Reduce("all", "logsumexp", "col"),
    }
    if top:
        reductions["top"] = Reduce("kept", "max", "row")
    cols = jnp.ones(len(text), bool) if there is None else there.reshape(-1)
    out = ops.pair_reduce(_logits, image, text, reductions, cols=cols, shared=scale, impl=impl, axis_name=axis_name)
    own = jnp.einsum("bd,bkd->bk", image, text.reshape(batch, captions, -1), preferred_element_type=dtype)
    of_texts = out["text"].reshape(batch, captions)
    return CaptionStatistics(own * scale, out["image"], of_texts, out.get("top", jnp.zeros_like(out["image"])))


def _logits(sim: Array, row: Block, col: Block, scale: Array) -> dict[str, Array]:
    logits = sim * scale
    return {"all": logits, "kept": jnp.where(col.data[None, :], logits, -jnp.inf)}


def caption_rows(text: Array, image: Array) -> tuple[Array, int]:
    """Captions as rows [BK, D], and K; refuses what does not belong to these images."""
    flat = text.reshape(-1, text.shape[-1]) if text.ndim == 3 and text.shape[0] == len(image) else text
    if flat.ndim != 2 or not len(flat) or len(flat) % len(image) or flat.shape[1] != image.shape[1]:
        raise InputError(
            f"text must be [B, K, D] or [BK, D], the captions of an image beside each other, for B = {len(image)} "
            f"images of D = {image.shape[1]} features; got {text.shape}."
        )
    return flat, len(flat) // len(image)


def caption_mask(text_mask: ArrayLike | None, batch: int, captions: int) -> Array | None:
    """[B, K] bool, or a refusal; outside jit a batch without any caption is refused, too."""
    if text_mask is None:
        return None
    mask: Any = jnp.asarray(text_mask)
    if mask.shape != (batch, captions) or mask.dtype != jnp.bool_:
        raise InputError(f"text_mask must be booleans [B, K] = ({batch}, {captions}), got {mask.dtype} {mask.shape}.")
    known = checks.concrete(mask)
    if known is not None and not known.any():
        raise InputError("text_mask leaves no caption in the batch.")
    return mask
