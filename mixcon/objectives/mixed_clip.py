"""CLIP beside the mixed contrast of M3CoL: what a pair of encoders is fine-tuned with. Shapes: B pairs, D features."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.mixers.linear import mixco
from mixcon.objectives.batch import LossOrAux, accumulator, gather, global_size, unit_rows, with_aux
from mixcon.objectives.clip import clip
from mixcon.objectives.multimodal import m3co, soft_clip
from mixcon.ops import Impl

FORMS = ("m3co_then_soft_clip", "m3co", "soft_clip")


def mixed_clip(
    image: Array,
    text: Array,
    *,
    logit_scale: ArrayLike,
    key: Array,
    epoch: ArrayLike = 0,
    logit_bias: ArrayLike | None = None,
    contrast: float = 1.0,
    weight: float = 0.1,
    form: Literal["m3co_then_soft_clip", "m3co", "soft_clip"] = "m3co_then_soft_clip",
    switch: int = 3,
    temperature: ArrayLike = 0.1,
    soft_temperature: ArrayLike = 0.125,
    alpha: float = 0.15,
    select: float = 0.5,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """CLIP and, added to it, M3Co of both mixed modalities at first, soft CLIP afterwards.

    `x̃_i = λ_i x_i + (1-λ_i) x_σ(i)`, and ỹ of its own draws; `C = m3co(x̃, y) + m3co(ỹ, x)` while `epoch < switch`,
    then `C = soft_clip(x, y) + soft_clip(y, x)`; `loss = c · clip(x, y) + β · C`.

    Args:
      image, text: x, y [B, D] unit rows, B ≥ 2; what is mixed is of unit length, and its mixture is made so again.
      logit_scale: of CLIP alone, the multiplier itself.
      key: of this step, for two draws of `mixers.mixco`, one a modality.
      epoch: counts from 0. logit_bias: CLIP is invariant to it.
      contrast: c ≥ 0; at 0 CLIP is left out. weight: β ≥ 0.
      form: both contrasts one after the other, or one of them alone. switch: epochs of the first.
      temperature, soft_temperature: of M3Co and of soft CLIP. alpha, select: see `mixers.mixco`.
      normalize, impl, axis_name, has_aux: as for `clip`.

    Returns:
      Scalar float32; with `has_aux` also `clip_loss` (unless left out) and `mixed_loss` (C).

    Raises:
      InputError: as for `clip`, `m3co` and `soft_clip`; an unknown form, a weight below zero.

    Example:
      >>> loss = mixed_clip(x, y, key=key, logit_scale=100.0, epoch=epoch, switch=3)

    Reference: Kumar et al., "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for Multimodal
      Classification", 2025, for C; there beside a classifier.
    """
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}.")
    if min(contrast, weight) < 0:
        raise InputError(f"contrast={contrast} and weight={weight} must not be negative.")
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    placement: dict[str, Any] = {"impl": impl, "axis_name": axis_name}

    def mixed(pair: tuple[Array, Array]) -> Array:
        whole = jnp.zeros(global_size(len(image), axis_name))
        drawn = jax.vmap(lambda key: mixco(key, whole, alpha=alpha, select=select))(jax.random.split(key))
        rows = jnp.arange(len(image)) + (0 if axis_name is None else lax.axis_index(axis_name) * len(image))
        terms = []
        for m, (own, other) in enumerate((pair, pair[::-1])):
            perm, lam = drawn.partner[m][rows], drawn.weight[m][rows]
            share = lam.astype(accumulator(own))[:, None]
            mixture = share * own + (1 - share) * gather(own, axis_name)[perm]
            terms.append(m3co(mixture, other, perm, lam, temperature=temperature, **placement))
        return terms[0] + terms[1]

    def settled(pair: tuple[Array, Array]) -> Array:
        terms = [soft_clip(a, b, temperature=soft_temperature, **placement) for a, b in (pair, pair[::-1])]
        return terms[0] + terms[1]

    if form == "m3co_then_soft_clip":
        second = lax.cond(jnp.asarray(epoch) < switch, mixed, settled, (image, text))
    else:
        second = (mixed if form == "m3co" else settled)((image, text))
    loss, metrics = weight * second, {"mixed_loss": second}
    if contrast:
        metrics["clip_loss"] = clip(image, text, logit_scale=logit_scale, logit_bias=logit_bias, **placement)
        loss += contrast * metrics["clip_loss"]
    return with_aux(loss, metrics) if has_aux else loss
