"""Contrast of two modalities without the gap that it opens between them: CLIP with alignment, uniformity, cycles.

Shapes: B pairs, D features.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.objectives import hypersphere
from mixcon.objectives.batch import (
    LossOrAux,
    Metrics,
    accumulator,
    all_devices,
    global_size,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.objectives.clip import clip
from mixcon.ops import Impl, checks


def clip_alignment_uniformity(
    image: Array,
    text: Array,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike | None = None,
    contrast: float = 1.0,
    alignment: float = 1.0,
    uniformity: float = 1.0,
    cross_uniformity: float = 0.0,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """CLIP beside terms that close the gap between modalities: CUA, or with `cross_uniformity=1` CUAXU.

    `w_c clip(X, Y) + w_a mean ‖x_i - y_i‖² + w_u (U(X) + U(Y)) / 2 + w_x U(X, Y)`, with
    `U(X, Y) = log mean_{i≠j} exp(-2 ‖x_i - y_j‖²)` and U(X) = U(X, X).

    With `cross_uniformity`, modalities at opposite poles are a local optimum (-8 against at most 4 of alignment): start
    from trained encoders, or at a low rate.

    Args:
      image, text: [B, D] unit rows, row i of each a pair, B ≥ 2.
      logit_scale, logit_bias: as for `clip`; fixed at 100 in the paper.
      contrast, alignment, uniformity, cross_uniformity: the weights w, not below zero; 0 leaves a term out.
      normalize, impl, axis_name: as for `clip`.
      has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also the terms as `term/<name>`, and the metrics of `clip`.

    Raises:
      InputError: weights below zero, a single pair, or as for `clip`.

    Example:
      >>> loss = clip_alignment_uniformity(image, text, logit_scale=100.0, cross_uniformity=1.0)  # CUAXU

    Reference: Fahim, Murphy, Fyshe, "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap", 2024,
      section 5.
    """
    weights = dict(contrast=contrast, alignment=alignment, uniformity=uniformity, cross_uniformity=cross_uniformity)
    for name, weight in weights.items():
        checks.nonnegative(name, weight)
    same_shape("image", image, "text", text)
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    terms: Metrics = {}
    metrics: Metrics = {}
    if contrast:
        terms["contrast"], metrics = clip(
            image, text, logit_scale=logit_scale, logit_bias=logit_bias, impl=impl, axis_name=axis_name, has_aux=True
        )
    if alignment:
        terms["alignment"] = hypersphere.alignment(image, text, axis_name=axis_name)
    if uniformity:
        of_image, of_text = (hypersphere.uniformity(x, impl=impl, axis_name=axis_name) for x in (image, text))
        terms["uniformity"] = (of_image + of_text) / 2
    if cross_uniformity:
        terms["cross_uniformity"] = hypersphere.uniformity(image, text, impl=impl, axis_name=axis_name)
    loss = sum((weights[name] * term for name, term in terms.items()), start=jnp.zeros((), accumulator(image)))
    if not has_aux:
        return loss
    return with_aux(loss, {f"term/{name}": term for name, term in terms.items()} | metrics)


def cyclic(
    image: Array,
    text: Array,
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    normalize: bool = False,
    axis_name: str | None = None,
) -> Array:
    """What CyCLIP adds to CLIP: similarities within the modalities agree, and across them they are symmetric.

    `w_i (1/B) Σ_ij (x_i·x_j - y_i·y_j)² + w_c (1/B) Σ_ij (x_i·y_j - y_i·x_j)²`.

    With p = x - y and q = x + y the two differences are `(p_i·q_j ± q_i·p_j)/2`, so that both sums follow from matrices
    of features × features, exactly zero for equal modalities.

    Args:
      image, text: [B, D] unit rows, row i of each a pair. in_modal, cross_modal: weights w, not below zero.
      normalize: divide rows by their norm first. axis_name: sums are of the whole batch.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, weights below zero, rows not of unit length (outside jit).

    Example:
      >>> loss = clip(image, text, logit_scale=scale) + cyclic(image, text)

    Reference: Goel et al., "CyCLIP: Cyclic Contrastive Language-Image Pretraining", 2022, eq. 3 and 4.
    """
    checks.nonnegative("in_modal", in_modal)
    checks.nonnegative("cross_modal", cross_modal)
    same_shape("image", image, "text", text)
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    dtype = accumulator(image)
    p, q = image.astype(dtype) - text.astype(dtype), image.astype(dtype) + text.astype(dtype)
    pp, qq, pq = (all_devices(a.T @ b, axis_name) for a, b in ((p, p), (q, q), (p, q)))
    squares, turned = jnp.sum(pp * qq), jnp.sum(pq * pq.T)  # Σ (p_i·q_j)² and Σ (p_i·q_j)(q_i·p_j)
    total = in_modal * (squares + turned) + cross_modal * (squares - turned)
    return total / (2 * global_size(len(image), axis_name))
