"""Image augmentation on the device: pure functions of the key, under jit, with fixed shapes.

Every function is `f(key, images, ...) -> images` on float [B, H, W, C] in [0, 1], keeps dtype and (but for
`random_resized_crop(size=...)`) shape, and draws per example: what example `i` gets depends on the key and `i` alone,
not on the batch size or on how the batch is sharded. Geometry is two matrix products, as accelerators like it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError

Augmentation = Callable[[Array, Array], Array]
Pixels = Callable[..., Array]  # (images, key of the augmentations = None) -> images
Planes = tuple[Array, Array, Array]


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation after the other, each with its own key.

    Example:
        >>> from functools import partial
        >>> augment = compose(partial(random_resized_crop, scale=(0.5, 1.0)), horizontal_flip, color_jitter)
        >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """

    def augment(key: Array, images: Array) -> Array:
        for position, augmentation in enumerate(augmentations):
            images = augmentation(jax.random.fold_in(key, position), images)
        return images

    return augment


def to_float(images: Array, dtype: jnp.dtype = jnp.float32) -> Array:
    """uint8 in [0, 255] to float in [0, 1].

    Example:
        >>> float(to_float(jnp.full((1, 1, 1, 3), 255, jnp.uint8)).max())
        1.0
    """
    if images.dtype != jnp.uint8:
        raise InputError(f"to_float: images must be uint8, not {images.dtype}.")
    return images.astype(dtype) / jnp.asarray(255, dtype)


def unit_float(images: Array) -> Array:
    """Images as floats in [0, 1], whether they come as bytes or so already.

    Example:
        >>> unit_float(jnp.full((1, 1, 1, 3), 0.5)).dtype.name
        'float32'
    """
    return images if jnp.issubdtype(images.dtype, jnp.floating) else to_float(images)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """`(images - mean) / std` per channel.

    Example:
        >>> float(normalize(jnp.ones((1, 1, 1, 1)), (0.5,), (0.25,))[0, 0, 0, 0])
        2.0
    """
    if not len(mean) == len(std) == images.shape[-1] or min(std) <= 0:
        raise InputError(f"normalize: mean={mean} and std={std} need one number (std > 0) for each of the channels.")
    shape = (1, 1, 1, len(mean))
    return (images - jnp.asarray(mean, images.dtype).reshape(shape)) / jnp.asarray(std, images.dtype).reshape(shape)


def pixels(*augmentations: Augmentation, mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """Images as a network takes them: in [0, 1], augmented where a key is given, normalised.

    Example:
        >>> view = pixels(horizontal_flip, mean=(0.5,), std=(0.5,))
        >>> images = jnp.full((1, 2, 2, 1), 255, jnp.uint8)
        >>> float(view(images).max()), view(images, jax.random.key(0)).shape
        (1.0, (1, 2, 2, 1))
    """
    augment = compose(*augmentations)

    def view(images: Array, key: Array | None = None) -> Array:
        images = unit_float(images)
        return normalize(images if key is None else augment(key, images), mean, std)

    return view


def random_resized_crop(
    key: Array,
    images: Array,
    *,
    size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """A random rectangle of each image, resized (bilinear, antialiased when shrinking).

    Area share `a ~ U(scale)`, log aspect `log r ~ U(log ratio)`: width `sqrt(a r) W`, height `sqrt(a / r) H`, each cut
    to the image; position uniform among those inside.

    Args:
        key: PRNG key.
        images: float [B, H, W, C].
        size: (height, width) of the result; that of the images by default.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height.

    Returns:
        float [B, *size, C].

    Example:
        >>> random_resized_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3)), size=(4, 4)).shape
        (2, 4, 4, 3)

    Reference:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6.
    """
    batch, height, width, _ = _checked(images)
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise InputError(
            f"random_resized_crop: scale={scale} must be within (0, 1] and ratio={ratio} positive, low <= high."
        )
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    area_B = jax.random.uniform(area_key, (batch,), minval=scale[0], maxval=scale[1])
    ratio_B = jnp.exp(jax.random.uniform(ratio_key, (batch,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
    high_B = jnp.minimum(jnp.sqrt(area_B / ratio_B), 1.0) * height
    wide_B = jnp.minimum(jnp.sqrt(area_B * ratio_B), 1.0) * width
    top_B = jax.random.uniform(top_key, (batch,)) * (height - high_B)
    left_B = jax.random.uniform(left_key, (batch,)) * (width - wide_B)
    rows, columns = size or (height, width)
    return _apply(images, _resize_matrix(top_B, high_B, height, rows), _resize_matrix(left_B, wide_B, width, columns))


def random_shift(key: Array, images: Array, *, padding: int = 4) -> Array:
    """Pad with zeros on every side, then crop the original size at a random whole pixel (the CIFAR crop).

    Example:
        >>> random_shift(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """
    batch, height, width, _ = _checked(images)
    shift_B2 = jax.random.randint(key, (batch, 2), -padding, padding + 1)

    def matrix(shift_B: Array, length: int) -> Array:
        return jax.nn.one_hot(jnp.arange(length)[None, :] + shift_B[:, None], length)  # out of range: a row of zeros

    return _apply(images, matrix(shift_B2[:, 0], height), matrix(shift_B2[:, 1], width))


def horizontal_flip(key: Array, images: Array, *, p: float = 0.5) -> Array:
    """Mirrors left and right with probability `p`.

    Example:
        >>> horizontal_flip(jax.random.key(0), jnp.arange(2.0).reshape(1, 1, 2, 1), p=1.0).ravel().tolist()
        [1.0, 0.0]
    """
    return _with_probability(key, p, images[:, :, ::-1, :], images)


def color_jitter(
    key: Array,
    images: Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    p: float = 0.8,
) -> Array:
    """Brightness, contrast, saturation and hue, in this order, with probability `p`.

    With factors `f ~ U(1 - s, 1 + s)` (not below 0): brightness `f x`, contrast `f x + (1 - f) mean(gray)`, saturation
    `f x + (1 - f) gray`, each clipped to [0, 1]; hue turns by `U(-hue, hue)` of the whole circle in HSV.

    Args:
        key: PRNG key.
        images: float [B, H, W, 3] in [0, 1].
        brightness, contrast, saturation: strength s >= 0; 0 leaves it out.
        hue: in [0, 0.5]; 0 leaves it out.
        p: probability per example.

    Example:
        >>> color_jitter(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, appendix A.
    """
    batch = _checked(images, channels=3)[0]
    apply_key, *keys = jax.random.split(key, 5)

    def draw(key: Array, low: float, high: float) -> Array:
        return jax.random.uniform(key, (batch, 1, 1), minval=low, maxval=high).astype(images.dtype)

    def blend(planes: Planes, other: Array, strength: float, key: Array) -> Planes:
        factor = draw(key, max(0.0, 1 - strength), 1 + strength)
        red, green, blue = (jnp.clip(factor * x + (1 - factor) * other, 0, 1) for x in planes)
        return red, green, blue

    x = _planes(images)
    if brightness:
        x = blend(x, jnp.zeros((1, 1, 1), images.dtype), brightness, keys[0])
    if contrast:
        x = blend(x, _gray(x).mean((1, 2), keepdims=True), contrast, keys[1])
    if saturation:
        x = blend(x, _gray(x), saturation, keys[2])
    if hue:
        x = _turn_hue(x, draw(keys[3], -hue, hue))
    return _with_probability(apply_key, p, jnp.stack(x, axis=-1), images)


def grayscale(key: Array, images: Array, *, p: float = 0.2) -> Array:
    """Luma in all three channels with probability `p`.

    Example:
        >>> grayscale(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """
    _checked(images, channels=3)
    return _with_probability(key, p, jnp.broadcast_to(_gray(_planes(images))[..., None], images.shape), images)


def gaussian_blur(
    key: Array, images: Array, *, sigma: tuple[float, float] = (0.1, 2.0), radius: int | None = None, p: float = 0.5
) -> Array:
    """Gaussian blur of `U(sigma)` pixels with probability `p`; at the border the kernel is renormalised.

    Args:
        key: PRNG key.
        images: float [B, H, W, C].
        sigma: smallest and largest standard deviation in pixels.
        radius: reach of the kernel in pixels; 5 % of the larger side by default.
        p: probability per example.

    Example:
        >>> gaussian_blur(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, appendix A.
    """
    batch, height, width, _ = _checked(images)
    if not 0 < sigma[0] <= sigma[1]:
        raise InputError(f"gaussian_blur: sigma={sigma} must be positive, low <= high.")
    reach = max(1, max(height, width) // 20) if radius is None else radius
    apply_key, sigma_key = jax.random.split(key)
    sigma_B11 = jax.random.uniform(sigma_key, (batch, 1, 1), minval=sigma[0], maxval=sigma[1])

    def matrix(length: int) -> Array:
        distance = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None, :]).astype(jnp.float32)[None]
        weights = jnp.where(distance <= reach, jnp.exp(-0.5 * (distance / sigma_B11) ** 2), 0.0)
        return weights / weights.sum(-1, keepdims=True)

    return _with_probability(apply_key, p, _apply(images, matrix(height), matrix(width)), images)


def solarize(key: Array, images: Array, *, threshold: float = 0.5, p: float = 0.2) -> Array:
    """Inverts what is at least `threshold`, with probability `p`.

    Example:
        >>> solarize(jax.random.key(0), jnp.ones((1, 1, 1, 3)), p=1.0).ravel().tolist()
        [0.0, 0.0, 0.0]

    Reference:
        Grill et al., Bootstrap Your Own Latent, 2020, appendix B.
    """
    return _with_probability(key, p, jnp.where(images >= threshold, 1 - images, images), images)


def gaussian_noise(key: Array, images: Array, *, std: float = 0.1) -> Array:
    """Adds normal noise of standard deviation `std` to every number, and cuts to [0, 1].

    Example:
        >>> gaussian_noise(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
        (2, 8, 8, 1)
    """
    _checked(images)
    if std < 0:
        raise InputError(f"gaussian_noise: std={std} must not be negative.")
    noise = jax.random.normal(key, images.shape).astype(images.dtype)
    return jnp.clip(images + jnp.asarray(std, images.dtype) * noise, 0, 1)


def scale_intensity(key: Array, images: Array, *, low: float = 0.7, high: float = 1.3) -> Array:
    """Multiplies each image by a number from U(low, high), and cuts to [0, 1].

    Example:
        >>> scale_intensity(jax.random.key(0), jnp.ones((2, 8, 8, 1)), low=0.5, high=0.5).max().item()
        0.5
    """
    batch = _checked(images)[0]
    if not 0 <= low <= high:
        raise InputError(f"scale_intensity: low={low} and high={high} must satisfy 0 <= low <= high.")
    factor = jax.random.uniform(key, (batch, 1, 1, 1), minval=low, maxval=high).astype(images.dtype)
    return jnp.clip(factor * images, 0, 1)


def drop_pixels(key: Array, images: Array, *, rate: float = 0.1) -> Array:
    """Sets pixels (all channels together) to 0, each with probability `rate`.

    Example:
        >>> drop_pixels(jax.random.key(0), jnp.ones((2, 8, 8, 1)), rate=1.0).max().item()
        0.0
    """
    batch, height, width, _ = _checked(images)
    if not 0 <= rate <= 1:
        raise InputError(f"drop_pixels: rate={rate} must be a probability.")
    return jnp.where(jax.random.bernoulli(key, rate, (batch, height, width, 1)), 0, images)


def _checked(images: Array, channels: int | None = None) -> tuple[int, int, int, int]:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images must be float [B, H, W, C], not {images.dtype} {images.shape}; see `augment.to_float`."
        )
    if channels is not None and images.shape[-1] != channels:
        raise InputError(f"images must have {channels} channels, not {images.shape[-1]}.")
    batch, height, width, depth = images.shape
    return batch, height, width, depth


def _with_probability(key: Array, p: float, changed: Array, images: Array) -> Array:
    batch = _checked(images)[0]
    if not 0 <= p <= 1:
        raise InputError(f"p={p} must be a probability.")
    return jnp.where(jax.random.bernoulli(key, p, (batch, 1, 1, 1)), changed, images)


def _apply(images: Array, rows_BOH: Array, columns_BPW: Array) -> Array:
    """Separable linear resampling: every output pixel is rows x columns of input pixels."""
    rows_BOH, columns_BPW = rows_BOH.astype(images.dtype), columns_BPW.astype(images.dtype)
    half = jnp.einsum("boh,bhwc->bowc", rows_BOH, images, precision="highest")
    return jnp.einsum("bpw,bowc->bopc", columns_BPW, half, precision="highest")


def _resize_matrix(start_B: Array, extent_B: Array, length: int, size: int) -> Array:
    """[B, size, length]: triangle kernel around the centre of each output pixel, as wide as the shrinking asks for."""
    step_B11 = (extent_B / size)[:, None, None]
    centre_B1O = start_B[:, None, None] + (jnp.arange(size, dtype=jnp.float32) + 0.5)[None, None, :] * step_B11
    distance_BOH = jnp.abs(centre_B1O.swapaxes(1, 2) - (jnp.arange(length, dtype=jnp.float32) + 0.5)[None, None, :])
    weights = jnp.maximum(1 - distance_BOH / jnp.maximum(step_B11, 1.0), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _planes(images: Array) -> Planes:
    """Whole planes fuse; reductions over a last axis of three do not."""
    return images[..., 0], images[..., 1], images[..., 2]


def _gray(planes: Planes) -> Array:
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601


def _turn_hue(planes: Planes, turn: Array) -> Planes:
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )

    def plane(offset: int) -> Array:
        k = sixths + 6 * turn + offset
        k = k - 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return plane(5), plane(3), plane(1)
