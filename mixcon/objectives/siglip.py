"""Contrast of two modalities by an independent logistic loss on every pair: SigLIP."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.objectives.batch import LossOrAux, accumulator, batch_mean, row_dot, same_shape, unit_rows, with_aux
from mixcon.objectives.clip import pair_metrics
from mixcon.ops import Impl, checks, pairs


def siglip(
    image: Array,
    text: Array,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike,
    mask: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Sigmoid loss of all pairs: a pair matches or it does not.

    `Z_ij = s x_i·y_j + b`; `loss = -(1/B) Σ_i Σ_j log σ(m_ij Z_ij)`, m_ij = +1 for i = j and -1 otherwise: a sum over
    candidates, a mean over images.

    Args:
      image, text: [B, D] unit rows, row i of each a pair; float32 or bfloat16.
      logit_scale, logit_bias: s and b, scalars, with exact gradients. Trained from s = 10, b = -10.
      mask: [B] bool, False for padding.
      normalize: divide rows by their norm first. When False, rows not of unit length are refused outside jit.
      impl, axis_name: see `mixcon.ops.pair_reduce`; under `axis_name` every device returns the whole batch's loss.
      has_aux: return (loss, metrics) too; the accuracies cost one more forward product.

    Returns:
      Scalar float32; with `has_aux` also `loss_positive`, `loss_negative` (they add up to the loss) and the metrics of
      `clip`.

    Raises:
      InputError: shapes that differ, a scale not above zero, rows not of unit length.

    Example:
      >>> loss = siglip(image, text, logit_scale=jnp.exp(params["log_scale"]), logit_bias=params["bias"])

    Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, section 3.2 and algorithm 1.
    """
    same_shape("image", image, "text", text)
    checks.positive("logit_scale", logit_scale)
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    dtype = accumulator(image)
    scale, bias = jnp.asarray(logit_scale, dtype), jnp.asarray(logit_bias, dtype)
    valid = None if mask is None else jnp.asarray(mask, bool)
    losses = ops.pairwise_sigmoid(
        image,
        text,
        scale=scale,
        bias=bias,
        included=None if valid is None else pairs.valid(valid, valid),
        impl=impl,
        axis_name=axis_name,
    )
    loss = batch_mean(losses, axis_name, valid)
    if not has_aux:
        return loss
    positive = batch_mean(jax.nn.softplus(-(row_dot(image, text) * scale + bias)), axis_name, valid)
    halves = {"loss_positive": positive, "loss_negative": loss - positive}
    return with_aux(loss, halves | pair_metrics(image, text, scale, bias, valid, impl, axis_name))
