"""Saliency maps as arrays: input gradients, OpenCV's fine-grained detector, spectral residual, class activations.

Policies take saliency as data; these functions make it. None needs a host library, so all run inside jit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError

SCALES = (12, 24, 48, 28, 56, 112)  # half widths of the detector's surrounds, in its own order
GRAY = (0.2989, 0.587, 0.114)


def input_gradient_saliency(loss: Callable[[Array], Array], x: Array) -> Array:
    """Root mean square over channels of the loss's gradient, `s = √(mean_c (∂ loss / ∂ x)²)`.

    Args:
        loss: from images [B, H, W, C] to a scalar (the network in evaluation mode, labels closed over).
        x: images.
    Returns:
        float32 [B, H, W], without gradient.
    Example:
        >>> input_gradient_saliency(lambda x: (3.0 * x).sum(), jnp.zeros((1, 1, 2, 1)))[0].tolist()
        [[3.0, 3.0]]

    Reference:
        Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", 2020
    """
    grad = jax.grad(loss)(x).astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.sqrt(jnp.square(grad).mean(axis=-1)))


def fine_grained_saliency(image: Array, *, bgr: bool = False) -> Array:
    """OpenCV's static fine-grained saliency, bit for bit, of uint8 images: on- and off-centre differences at six
    scales.

    Args:
        image: uint8 [B, H, W, 3].
        bgr: weigh the channels as OpenCV does (blue, green, red in memory); published mixers pass RGB this way.
    Returns:
        uint8 [B, H, W]; all zero for a constant image.
    Raises:
        InputError: not uint8 or not three channels.
    Example:
        >>> int(fine_grained_saliency(jnp.full((1, 8, 8, 3), 7, jnp.uint8)).max())
        0

    Reference:
        Montabone, Soto, "Human Detection Using a Mobile Platform and Novel Features Derived from a Visual Saliency
        Mechanism", 2010; Uddin, Monira, Shin, Chung, Bae, "SaliencyMix", 2021.
    """
    if image.dtype != jnp.uint8 or image.ndim != 4 or image.shape[-1] != 3:
        raise InputError(
            f"image must be uint8 [B, H, W, 3]; got {image.dtype}{list(image.shape)}. De-normalise and round first."
        )
    weights = np.array([3735, 19235, 9798] if bgr else [9798, 19235, 3735], np.int32)
    gray = (image.astype(jnp.int32) * weights.reshape(1, 1, 1, 3)).sum(axis=-1) + (1 << 14) >> 15
    for _ in range(2):
        for axis in (1, 2):
            low, middle, high = _neighbours(gray, axis)
            gray = low + 2 * middle + high
        gray = gray + 8 >> 4
    return _on_off(gray, gray)


def opencv_float_saliency(x: Array) -> Array:
    """What OpenCV returns for a *float* image: it blurs the floats, then reads their raw bytes as pixels.

    SaliencyMix's published code calls it this way, so its boxes are close to random. Kept to reproduce those numbers.
    It is equal bit for bit inside jit where the compiler fuses multiply-adds, as on x86; elsewhere the last bits may
    differ.

    Args:
        x: float32 [B, H, W, 3], normalised as the network sees it.
    Returns:
        uint8 [B, H, W].
    Example:
        >>> opencv_float_saliency(jnp.ones((1, 8, 8, 3))).shape
        (1, 8, 8)
    """
    # The order of these sums is OpenCV's (blue weight on the first channel); the last bits are what it looks at.
    x = x.astype(jnp.float32)
    gray = x[..., 2] * 0.299 + (x[..., 0] * 0.114 + x[..., 1] * 0.587)
    for _ in range(2):
        for axis in (2, 1):
            low, middle, high = _neighbours(gray, axis)
            gray = middle * 0.5 + (low + high) * 0.25
    width = gray.shape[-1]
    raw = jax.lax.bitcast_convert_type(gray, jnp.uint8).reshape(*gray.shape[:2], -1)[..., :width]
    return _on_off(raw.astype(jnp.int32), gray)


def _neighbours(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """x at places i-1, i, i+1 along one axis of [B, H, W], borders mirrored."""
    padded = jnp.pad(x, [(0, 0) if a != axis else (1, 1) for a in range(3)], mode="reflect")
    low, middle, high = (jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3))
    return low, middle, high


def _on_off(pixel: Array, summed: Array) -> Array:
    """The detector after its blur. pixel: int32 [B, H, W]; summed: what windows add up, int32 or float32."""
    _, height, width = pixel.shape
    exact = jnp.issubdtype(summed.dtype, jnp.integer)
    integral = jnp.pad(jnp.cumsum(jnp.cumsum(summed, axis=1), axis=2), ((0, 0), (1, 0), (1, 0)))
    value = pixel.astype(summed.dtype)
    on, off = jnp.zeros_like(pixel), jnp.zeros_like(pixel)
    for scale in SCALES:
        (top, bottom), (left, right) = (
            (np.clip(np.arange(n) - scale + 1, 0, n), np.clip(np.arange(n) + scale + 1, 0, n)) for n in (height, width)
        )
        rows = integral[:, bottom] - integral[:, top]
        around = rows[:, :, right] - rows[:, :, left] - value
        area = jnp.asarray(np.maximum(np.outer(bottom - top, right - left) - 1, 1), summed.dtype)[None]
        if exact:  # ⌊value - around / area⌋ without rounding
            above, below = (jnp.maximum(d, 0) // area for d in (value * area - around, around - value * area))
        else:
            mean = around / jax.lax.optimization_barrier(area)  # else XLA multiplies by reciprocals
            above, below = (jnp.maximum(d, 0).astype(jnp.int32) for d in (value - mean, mean - value))
        on += above % 256  # kept in a byte, which wraps
        off += below % 256
    on, off = (255 * v // jnp.maximum(_largest(v), 1) for v in (on, off))
    both = 255 * (on + off) // jnp.maximum(jnp.maximum(_largest(on), _largest(off)), 1)
    return (both % 256).astype(jnp.uint8)


def _largest(value: Array) -> Array:
    return value.max(axis=(1, 2), keepdims=True)


def spectral_residual_saliency(x: Array) -> Array:
    """Spectral residual: what is left of the log spectrum after a 3×3 mean, back in the picture.

    Pictures above 128 pixels are resized to 128 first. (The published policy then blurs: see `normalise_saliency`.)

    Args:
        x: [B, H, W, 3] or [B, H, W, 1].
    Returns:
        float32 [B, H, W] (at the original size).
    Example:
        >>> spectral_residual_saliency(jnp.ones((1, 8, 8, 3))).shape
        (1, 8, 8)

    Reference:
        Hou, Zhang, "Saliency Detection: A Spectral Residual Approach", 2007; Kang, Kim, "GuidedMixup", 2023.
    """
    _, height, width, channels = x.shape
    x = x.astype(jnp.float32)
    gray = (x * jnp.array(GRAY, jnp.float32).reshape(1, 1, 1, 3)).sum(axis=-1) if channels == 3 else x[..., 0]
    if max(height, width) > 128:
        gray = jax.image.resize(gray, (gray.shape[0], 128, 128), "bilinear", antialias=False)
    spectrum = jnp.fft.fft2(gray)
    size = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-10)
    log_size = jnp.log(size)
    padded = jnp.pad(log_size, ((0, 0), (1, 1), (1, 1)), mode="edge")
    mean = jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "valid") / 9.0
    residual = jnp.exp(log_size - mean) / size
    back = jnp.fft.ifft2(jax.lax.complex(spectrum.real * residual, spectrum.imag * residual))
    saliency = jnp.abs(back)
    return (
        saliency
        if saliency.shape[1:] == (height, width)
        else jax.image.resize(saliency, (saliency.shape[0], height, width), "bilinear", antialias=False)
    )


def blur_saliency(saliency: Array, *, width: int = 7, sigma: float = 3.0) -> Array:
    """Gaussian blur of maps, borders mirrored.

    Args:
        saliency: [B, H, W].
        width: odd width of the kernel, pixels.
        sigma: standard deviation, pixels.
    Returns:
        float32 [B, H, W].
    Raises:
        InputError: an even kernel, or one that reaches beyond the mirrored picture.
    Example:
        >>> blur_saliency(jnp.ones((1, 8, 8))).shape
        (1, 8, 8)
    """
    if width % 2 == 0 or width // 2 >= min(saliency.shape[1:]):
        raise InputError(
            f"the blur's width must be odd and under twice the picture; got {width} for {saliency.shape[1:]}."
        )
    line = np.exp(-0.5 * (np.arange(width) - width // 2) ** 2 / sigma**2)
    blurred = saliency.astype(jnp.float32)
    for axis in (1, 2):
        pad = [(0, 0) if a != axis else (width // 2, width // 2) for a in range(3)]
        padded = jnp.pad(blurred, pad, mode="reflect")
        slices = [jax.lax.slice_in_dim(padded, i, i + saliency.shape[axis], axis=axis) for i in range(width)]
        blurred = jnp.stack([float(w) * v for w, v in zip(line / line.sum(), slices, strict=True)]).sum(axis=0)
    return blurred


def normalise_saliency(saliency: Array, *, blur: int = 7, sigma: float = 3.0) -> Array:
    """Blur, then divide by the sum, so that each map is a distribution over places.

    Args:
        saliency: ≥ 0, [B, H, W].
        blur: odd width of the Gaussian; 0 for none.
        sigma: its standard deviation, pixels.
    Returns:
        float32 [B, H, W] with sum 1 (uniform where the map is all zero).
    Raises:
        InputError: as `blur_saliency`.
    Example:
        >>> normalise_saliency(jnp.zeros((1, 2, 2)), blur=0)[0].tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    saliency = blur_saliency(saliency, width=blur, sigma=sigma) if blur else saliency.astype(jnp.float32)
    total = saliency.sum(axis=(1, 2), keepdims=True)
    uniform = 1.0 / (saliency.shape[1] * saliency.shape[2])
    return jnp.where(total > 0, saliency / jnp.where(total > 0, total, 1.0), uniform)


def semantic_percent_map(
    hidden: Array, kernel: Array, bias: Array | None, labels: Array, shape: tuple[int, int]
) -> Array:
    """SnapMix's share of the true class at every pixel: the class activation map, resized, shifted to 0, summing to 1.

    Args:
        hidden: last feature map [B, h, w, D].
        kernel: classifier weights [D, C].
        bias: classifier bias [C], or None.
        labels: true classes, int [B].
        shape: (H, W) of the image.
    Returns:
        float32 [B, H, W] with sum 1, or all zero where the activation is constant (then the area decides).
    Example:
        >>> h = jnp.array([[[[0.0], [1.0]], [[0.0], [0.0]]]])
        >>> float(semantic_percent_map(h, jnp.ones((1, 2)), None, jnp.array([0]), (2, 2))[0, 0, 1])
        1.0

    Reference:
        Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", 2021
    """
    weight = kernel.T[labels].astype(jnp.float32)
    map_ = jnp.einsum("bhwd,bd->bhw", jax.nn.relu(hidden.astype(jnp.float32)), weight)
    if bias is not None:
        map_ = map_ + bias[labels].astype(jnp.float32)[:, None, None]
    map_ = jax.image.resize(map_, (map_.shape[0], *shape), "bilinear", antialias=False)
    map_ = map_ - map_.min(axis=(1, 2), keepdims=True)
    total = map_.sum(axis=(1, 2), keepdims=True)
    return jnp.where(total > 0, map_ / jnp.where(total > 0, total, 1.0), 0.0)


def peak(saliency: Array) -> Array:
    """Row and column of each map's maximum (the first in row-major order). int32 [n, 2] from [n, H, W]."""
    rows, cols = jnp.divmod(jnp.argmax(saliency.reshape(saliency.shape[0], -1), axis=1), saliency.shape[2])
    return jnp.stack([rows, cols], axis=1).astype(jnp.int32)
