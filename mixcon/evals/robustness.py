"""How much a classifier loses when its images are attacked or hidden: FGSM, PGD, occlusion.

Pure functions of `logits_fn`, images in [0, 1] and labels; normalisation belongs into `logits_fn`.
Shapes: B images, H×W pixels, K channels, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError

LogitsFn = Callable[[Array], Array]


def check_unit_images(images: Array, name: str = "images") -> None:
    """Refuse what is no float batch [B, H, W, K] in [0, 1], as far as that can be seen before compilation."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"{name} must be float [B, H, W, K] in [0, 1]; got {images.dtype} {list(images.shape)}.")
    if not isinstance(images, jax.core.Tracer):
        known = np.asarray(jax.device_get(images))
        low, high = float(known.min(initial=0.0)), float(known.max(initial=0.0))
        if low < -1e-6 or high > 1 + 1e-6:
            raise InputError(
                f"{name} must lie in [0, 1]; they span {low:.3g}..{high:.3g}. Attack images before they are "
                "normalised, and normalise inside logits_fn."
            )


def fgsm(logits_fn: LogitsFn, images: Array, labels: Array, *, epsilon: float = 8 / 255) -> Array:
    """Fast gradient sign: `x' = clip(x + ε sign(∂ CE(f(x), y) / ∂x), 0, 1)`.

    Args:
      logits_fn: images [B, H, W, K] in [0, 1] -> logits [B, C], each row of its own image only (evaluation mode).
      images: float in [0, 1].
      labels: int [B].
      epsilon: ε ≥ 0, largest change of a pixel.

    Returns:
      Attacked images, in the shape and dtype of `images`.

    Raises:
      InputError: images not float [B, H, W, K] in [0, 1]; labels not int [B]; ε not in [0, 1].

    Example:
      >>> flat = lambda x: x.reshape(len(x), -1) @ jnp.array([[1.0, -1.0]])
      >>> float(fgsm(flat, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), epsilon=0.25)[0, 0, 0, 0])
      0.25

    Reference:
      Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015, section 4.
    """
    _check_attack(images, labels, epsilon)
    return jnp.clip(images + epsilon * _ascent(logits_fn, images, labels), 0.0, 1.0).astype(images.dtype)


def pgd(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    epsilon: float = 8 / 255,
    steps: int = 10,
    step_size: float = 2 / 255,
    key: Array | None = None,
) -> Array:
    """Projected gradient descent in the ball `‖x' - x‖_∞ ≤ ε`, cut to [0, 1] at every step.

    `x ← Π_{[x₀-ε, x₀+ε] ∩ [0,1]} (x + a sign(∂ CE / ∂x))`, from a uniform draw of the ball when there is a key.

    Args:
      logits_fn, images, labels, epsilon: as `fgsm`.
      steps: at least 1.
      step_size: a > 0.
      key: of the random start; None starts at the image.

    Returns:
      Attacked images, in the shape and dtype of `images`.

    Raises:
      InputError: as `fgsm`; steps < 1; step_size ≤ 0.

    Example:
      >>> flat = lambda x: x.reshape(len(x), -1) @ jnp.array([[1.0, -1.0]])
      >>> x = pgd(flat, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), epsilon=0.125, step_size=0.1, steps=3)
      >>> float(x[0, 0, 0, 0])
      0.375

    Reference:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
      section 2.1.
    """
    _check_attack(images, labels, epsilon)
    if steps < 1 or step_size <= 0:
        raise InputError(f"want steps ≥ 1 and step_size > 0; got {steps}, {step_size}.")
    low, high = jnp.clip(images - epsilon, 0.0, 1.0), jnp.clip(images + epsilon, 0.0, 1.0)
    start = images
    if key is not None:
        noise = jax.random.uniform(key, images.shape, images.dtype, -epsilon, epsilon)
        start = jnp.clip(images + noise, low, high)

    def step(_: int, x: Array) -> Array:
        return jnp.clip(x + step_size * _ascent(logits_fn, x, labels), low, high).astype(images.dtype)

    return jax.lax.fori_loop(0, steps, step, start)


def _check_attack(images: Array, labels: Array, epsilon: float) -> None:
    check_unit_images(images)
    if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels must be {images.shape[0]} integers; got {labels.dtype} {list(labels.shape)}.")
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon={epsilon} must lie in [0, 1], in units of the pixel range (8/255, not 8).")


def _ascent(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """The direction in which each image's own cross-entropy rises."""

    def loss(x: Array) -> Array:
        log_p = jax.nn.log_softmax(logits_fn(x).astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).sum()

    return jnp.sign(jax.grad(loss)(images))


def occlude(
    key: Array, images: Array, *, patch: int, ratio: float | Array, fill: float | Sequence[float] = 0.0
) -> Array:
    """Hide `round(P · ratio)` of the P patches of a grid, drawn at random, the same for the whole batch.

    Args:
      key: PRNG key.
      images: float [B, H, W, K].
      patch: side of a patch in pixels (16 of 224 as published).
      ratio: share of patches that disappear, in [0, 1]; may be traced.
      fill: what is put there, a number or one per channel; the mean of the data is zero after normalisation.

    Returns:
      Images in the shape and dtype of `images`.

    Raises:
      InputError: images not float [B, H, W, K]; a patch that does not divide them; a ratio outside [0, 1].

    Example:
      >>> float(occlude(jax.random.key(0), jnp.ones((1, 4, 4, 1)), patch=2, ratio=0.25).mean())
      0.75

    Reference:
      Naseer, Ranasinghe, Khan, Hayat, Khan, Yang, "Intriguing Properties of Vision Transformers", 2021, section 3.1.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images must be float [B, H, W, K]; got {images.dtype} {list(images.shape)}.")
    height, width, channels = images.shape[1:]
    if patch < 1 or height % patch or width % patch:
        raise InputError(f"patch={patch} must divide the image {height}×{width}.")
    if isinstance(ratio, (int, float)) and not 0 <= ratio <= 1:
        raise InputError(f"ratio={ratio} must lie in [0, 1].")
    rows, columns = height // patch, width // patch
    order = jnp.argsort(jax.random.uniform(key, (rows * columns,)))
    count = jnp.round(rows * columns * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)
    hidden = jnp.argsort(order) < count
    mask = jnp.repeat(jnp.repeat(hidden.reshape(rows, columns), patch, axis=0), patch, axis=1)[None, :, :, None]
    shown = jnp.asarray(fill, images.dtype)
    return jnp.where(mask, jnp.broadcast_to(shown, (channels,))[None, None, None, :], images)


def mean_corruption_error(errors: Any, baseline: Any = None) -> float:
    """Corruption error averaged over corruptions, in units of a baseline's where one is given.

    `mCE = mean_c (Σ_s E_cs / Σ_s E'_cs)`; without a baseline it is the mean of all E_cs.

    Args:
      errors: E, top-1 errors [corruptions, severities] in [0, 1].
      baseline: E' of the network that is compared with (AlexNet for ImageNet-C), of the same shape.

    Returns:
      A share (×100 for the published scale).

    Raises:
      InputError: not a matrix in [0, 1]; a baseline of another shape or without any error.

    Example:
      >>> mean_corruption_error([[0.1, 0.3], [0.2, 0.4]], [[0.2, 0.6], [0.4, 0.8]])
      0.5

    Reference:
      Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019,
      section 4.1.
    """
    error = np.asarray(jax.device_get(errors), np.float64)
    if error.ndim != 2 or not error.size or not ((error >= 0) & (error <= 1)).all():
        raise InputError(f"errors must be [corruptions, severities] in [0, 1]; got {list(error.shape)}.")
    if baseline is None:
        return float(error.mean())
    other = np.asarray(jax.device_get(baseline), np.float64)
    if other.shape != error.shape or not (other.sum(1) > 0).all():
        raise InputError(f"baseline must be {list(error.shape)} with an error in every row; got {list(other.shape)}.")
    return float((error.sum(1) / other.sum(1)).mean())
