"""Common corruptions of images at five severities, jit-able but for JPEG: `corrupt(key, images, name, severity=3)`.

Images are float [B, H, W, 3] in [0, 1] and stay so. Severity 0 is the image itself. The levels are those published
for 32-pixel images, and for 224-pixel images above `SMALL` pixels.
B images, H×W pixels.
"""

import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.evals.robustness import check_unit_images

SMALL = 64  # largest side, in pixels, at which the levels of small images are used

# name: (levels of small images, levels of large ones)
LEVELS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),  # photons of a white pixel
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),  # share of values
    "speckle_noise": ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),  # relative deviation
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),  # standard deviation, pixels
    "defocus_blur": (  # radius of the disc, and standard deviation of the blur of its rim, pixels
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "zoom_blur": ((0.05, 0.10, 0.15, 0.20, 0.25), (0.11, 0.16, 0.21, 0.26, 0.31)),  # zoom reached
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),  # added to the value of HSV
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # factor
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),  # side of the small picture
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
}
ZOOMS = 6  # pictures that a zoom blur averages, beside the image


def corrupt(key: Array, images: Array, name: str, *, severity: int | Array) -> Array:
    """One of `LEVELS` at one severity.

    noise: gaussian `x + σ n`, shot `Poisson(c x) / c`, speckle `x + σ x n`, impulse (salt and pepper on each value);
    blur: Gaussian, defocus (a disc), zoom (mean of enlargements); brightness (value of HSV), contrast (about the mean
    of each channel), pixelate (box down, nearest up), jpeg. All are clipped to [0, 1].

    Args:
      key: PRNG key; read by the noises.
      images: float [B, H, W, 3] in [0, 1].
      name: of the corruption.
      severity: 1 to 5, or 0 for none; may be traced (one program for all of them), but for jpeg.

    Returns:
      Images in the shape and dtype of `images`.

    Raises:
      InputError: images not RGB in [0, 1]; an unknown name; a severity outside 0..5; jpeg inside jit.

    Example:
      >>> x = jnp.full((1, 8, 8, 3), 0.5)
      >>> float(corrupt(jax.random.key(0), x, "brightness", severity=5).max().round(3))
      0.8

    Reference:
      Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019,
      section 3.
    """
    check_unit_images(images)
    if images.shape[-1] != 3:
        raise InputError(f"corruptions are of RGB images [B, H, W, 3]; got {list(images.shape)}.")
    if name not in LEVELS:
        raise InputError(f"unknown corruption {name!r}; choose from {', '.join(LEVELS)}.")
    if isinstance(severity, (int, np.integer)) and not 0 <= severity <= 5:
        raise InputError(f"severity={severity} must lie in 0..5.")
    levels = LEVELS[name][max(images.shape[1:3]) > SMALL]
    if name == "jpeg":
        return _jpeg(images, severity, levels)
    level = jnp.asarray(levels, jnp.float32)[jnp.maximum(severity, 1) - 1]
    changed = jnp.clip(_CHANGES[name](key, images.astype(jnp.float32), level), 0.0, 1.0)
    return jnp.where(jnp.asarray(severity) > 0, changed, images.astype(jnp.float32)).astype(images.dtype)


def _gaussian_noise(key: Array, x: Array, level: Array) -> Array:
    return x + level * jax.random.normal(key, x.shape)


def _shot_noise(key: Array, x: Array, level: Array) -> Array:
    return jax.random.poisson(key, x * level).astype(jnp.float32) / level


def _impulse_noise(key: Array, x: Array, level: Array) -> Array:
    hit_key, side_key = jax.random.split(key)
    salt = jax.random.bernoulli(side_key, 0.5, x.shape).astype(jnp.float32)
    return jnp.where(jax.random.uniform(hit_key, x.shape) < level, salt, x)


def _speckle_noise(key: Array, x: Array, level: Array) -> Array:
    return x + level * x * jax.random.normal(key, x.shape)


def _gaussian_blur(key: Array, x: Array, level: Array) -> Array:
    return _separable(x, lambda d: jnp.exp(-0.5 * (d / level) ** 2))


def _separable(x: Array, weight: Callable[[Array], Array]) -> Array:
    """x blurred along both axes by a kernel of the distance in pixels, renormalised at the border."""
    for axis, name in ((1, "oh,bhwc->bowc"), (2, "ow,bhwc->bhoc")):
        place = jnp.arange(x.shape[axis], dtype=jnp.float32)
        kernel = weight(jnp.abs(place[:, None] - place[None, :]))
        x = jnp.einsum(name, kernel / kernel.sum(axis=1, keepdims=True), x)
    return x


def _defocus_blur(key: Array, x: Array, level: Array) -> Array:
    """A disc whose rim is softened by a 3×3 (5×5 above radius 8) Gaussian."""
    radius, soft = level[0], level[1]
    reach = 3 if max(x.shape[1:3]) <= SMALL else 12
    offset = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    disc = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(jnp.float32)
    near = jnp.abs(offset) <= jnp.where(radius > 8, 2.0, 1.0)
    rim = jnp.where(near, jnp.exp(-0.5 * (offset / soft) ** 2), 0.0)
    kernel = jax.scipy.signal.convolve2d(disc, rim[:, None] * rim[None, :], mode="same")
    kernel = jnp.broadcast_to((kernel / kernel.sum())[:, :, None, None], (*disc.shape, 1, 3))
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return jax.lax.conv_general_dilated(
        padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )


def _zoom_blur(key: Array, x: Array, level: Array) -> Array:
    size = x.shape[1:3]
    total = x
    for step in range(ZOOMS):
        factor = 1.0 + level * step / (ZOOMS - 1)
        shift = jnp.stack([0.5 * n * (1.0 - factor) for n in size])
        scale = jnp.stack([factor, factor])
        total = total + jax.image.scale_and_translate(x, x.shape, (1, 2), scale, shift, "linear", antialias=False)
    return total / (ZOOMS + 1)


def _brightness(key: Array, x: Array, level: Array) -> Array:
    value = x.max(axis=-1, keepdims=True)
    raised = jnp.minimum(value + level, 1.0)
    return jnp.where(value > 0, x * raised / jnp.where(value > 0, value, 1.0), raised)  # hue and saturation stay


def _contrast(key: Array, x: Array, level: Array) -> Array:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * level + mean


def _pixelate(key: Array, x: Array, level: Array) -> Array:
    """Box means of n = ⌊side · level⌋ cells, each shown where its cell lies."""
    for axis, name in ((1, "oh,bhwc->bowc"), (2, "ow,bhwc->bhoc")):
        side = x.shape[axis]
        step = side / jnp.floor(side * level)  # pixels of a cell
        place = jnp.arange(side, dtype=jnp.float32)
        cell = jnp.floor((place + 0.5) / step)  # that an output pixel shows
        low = jnp.maximum(place[None], (cell * step)[:, None])
        high = jnp.minimum(place[None] + 1, ((cell + 1) * step)[:, None])
        x = jnp.einsum(name, jnp.maximum(high - low, 0.0) / step, x)
    return x


def _jpeg(images: Array, severity: int | Array, levels: tuple[Any, ...]) -> Array:
    """Through the imaging library, on the host."""
    if isinstance(images, jax.core.Tracer) or isinstance(severity, jax.core.Tracer):
        raise InputError("jpeg is made on the host: call corrupt(..., 'jpeg') outside jit.")
    if not severity:
        return images
    from PIL import Image

    def through(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(levels[int(severity) - 1]))
        return np.asarray(Image.open(buffer))

    pixels = np.round(np.asarray(jax.device_get(images), np.float32) * 255).astype(np.uint8)
    return jax.device_put(np.stack([through(each) for each in pixels]).astype(np.float32) / 255).astype(images.dtype)


_CHANGES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "zoom_blur": _zoom_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
}
