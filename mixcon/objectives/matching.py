"""What a fusion encoder is trained by: does an image belong to a caption, and which words were hidden.

Shapes: B examples, P pairs of each, M masked positions, V tokens.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, batch_mean


def pair_matching(logits: Array, *, mask: ArrayLike | None = None, axis_name: str | None = None) -> Array:
    """Does this image belong to this caption? Cross-entropy over a matching pair and negatives of each example.

    `loss = mean over the pairs of -log softmax(logits)[y]`, y = 1 for the first pair of an example, 0 for the others.

    Args:
      logits: [B, P, 2], of each example's matching pair, then of its negatives; CCRK has P = 3: another image, another
        caption. The second logit says "yes".
      mask: [B, P] bool, False for pairs that are not there. axis_name: the rows are this device's.

    Returns:
      Scalar.

    Raises:
      InputError: logits of another shape.

    Example:
      >>> loss = pair_matching(logits.reshape(batch, 3, 2))

    Reference: Li et al., "Align before Fuse", 2021, eq. 6; Nie et al., 2024.
    """
    if logits.ndim != 3 or logits.shape[-1] != 2 or logits.shape[1] < 2:
        raise InputError(f"logits must be [B, P, 2], the matching pair first, got {logits.shape}.")
    chances = jax.nn.log_softmax(logits.astype(accumulator(logits)), axis=-1)
    loss = -jnp.concatenate([chances[:, :1, 1], chances[:, 1:, 0]], axis=1)
    return batch_mean(loss.reshape(-1), axis_name, _flat_mask(mask, loss.shape))


def masked_tokens(
    logits: Array, targets: ArrayLike, *, mask: ArrayLike | None = None, axis_name: str | None = None
) -> Array:
    """Masked language modelling: mean cross-entropy of the tokens that were hidden.

    `loss = mean over masked positions of -log softmax(logits)[target]`.

    Args:
      logits: [B, M, V] at the masked positions. targets: [B, M] int, the tokens.
      mask: [B, M] bool, False where fewer than M positions were masked. axis_name: the rows are this device's.

    Returns:
      Scalar; 0 if nothing is masked.

    Raises:
      InputError: shapes that do not fit.

    Example:
      >>> hidden = mask_tokens(key, tokens, ...)
      >>> loss = masked_tokens(logits, hidden.targets, mask=hidden.mask)

    Reference: Devlin et al., "BERT", 2019, section 3.1; conditioned on an image: Li et al., 2021, eq. 7.
    """
    targets = jnp.asarray(targets)
    if logits.ndim != 3 or targets.shape != logits.shape[:2] or not jnp.issubdtype(targets.dtype, jnp.integer):
        what = f"{logits.shape}, {targets.dtype} {targets.shape}"
        raise InputError(f"logits must be [B, M, V] beside integer targets [B, M], got {what}.")
    chances = jax.nn.log_softmax(logits.astype(accumulator(logits)), axis=-1)
    loss = -jnp.take_along_axis(chances, targets[:, :, None], axis=-1)[:, :, 0]
    return batch_mean(loss.reshape(-1), axis_name, _flat_mask(mask, loss.shape))


def _flat_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    if mask is None:
        return None
    array = jnp.asarray(mask)
    if array.shape != shape or array.dtype != jnp.bool_:
        raise InputError(f"mask must be booleans {shape}, got {array.dtype} {array.shape}.")
    return array.reshape(-1)
