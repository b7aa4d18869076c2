"""FMix: masks by thresholding low-frequency noise."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, check_positive, draws, image_size, own_weight, spread
from mixcon.mixers.partner import How, choose_partner
from mixcon.mixers.plan import Plan, check_unit
from mixcon.mixers.region import masked_plan

Spectrum = Literal["published", "intended"]


def low_frequency(
    noise: Array, shape: tuple[int, int], *, decay: float = 3.0, spectrum: Spectrum = "published"
) -> Array:
    """Noise with spectrum `|f|^-δ`, scaled to [0, 1].

    The published code indexes the row axis where the last one was meant, so that only two rows of noise are used and
    the
    picture is made of horizontal waves; every published number has it. "intended" is the law of the text.

    Args:
        noise: standard normal [n, H, W//2+1 (+1 if W is odd), 2].
        shape: (H, W).
        decay: δ.
        spectrum: "published" or "intended".
    Returns:
        float32 [n, H, W].
    Raises:
        InputError: noise of the wrong shape.
    """
    height, width = shape
    columns = noise_columns(width)
    if noise.shape[1:] != (height, columns, 2):
        raise InputError(f"noise must be [n, {height}, {columns}, 2]; got {list(noise.shape)}.")
    frequency = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None, :columns] ** 2)
    scale = jnp.asarray(np.maximum(frequency, 1.0 / max(height, width)) ** -decay, jnp.float32)
    noise = noise.astype(jnp.float32)
    if spectrum == "published":
        real, imag = (scale[row][None, :, None] * noise[:, row] for row in (0, 1))
        wave = jax.lax.complex(real, imag)  # [n, columns, 2]: padded to [H, W//2+1] below
        wave = (
            jnp.zeros((noise.shape[0], max(height, columns), width // 2 + 1), wave.dtype).at[:, :columns, :2].set(wave)
        )
        wave = wave[:, :height]
    elif spectrum == "intended":
        wave = jax.lax.complex(*(noise[..., i] * scale[None] for i in (0, 1)))[:, :, : width // 2 + 1]
    else:
        raise InputError(f"spectrum must be 'published' or 'intended'; got {spectrum!r}.")
    image = jnp.fft.irfft2(wave, s=(height, width))
    image = image - image.min(axis=(1, 2), keepdims=True)
    return image / jnp.maximum(image.max(axis=(1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)


def noise_columns(width: int) -> int:
    """How many columns of noise FMix draws for a picture of this width."""
    return width // 2 + 1 + width % 2


def threshold_mask(image: Array, weight: Array, *, soft: float = 0.0, ceil: Array | None = None) -> Array:
    """Give the brightest share w of the places to the example, with a linear ramp of 2 ⌊HW e⌋ places between.

    image: [n, H, W]; weight: [n]; ceil: bool [n], round wHW up instead of down. Returns float32 [n, H, W, 1].
    """
    n, height, width = image.shape
    places = height * width
    weight = weight.astype(jnp.float32)
    top = (
        jnp.floor(weight * places)
        if ceil is None
        else jnp.where(ceil, jnp.ceil(weight * places), jnp.floor(weight * places))
    )
    flat = image.reshape(n, places)
    if soft == 0:
        return brightest(flat, top.astype(jnp.int32)).reshape(n, height, width, 1)
    edge = jnp.floor(places * jnp.minimum(jnp.minimum(weight, 1.0 - weight), soft))
    order = jnp.argsort(-flat, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1).astype(jnp.float32)
    ramp = 1.0 - (rank - (top - edge)[:, None]) / jnp.maximum(2.0 * edge - 1.0, 1.0)[:, None]
    mask = jnp.where(rank < (top - edge)[:, None], 1.0, jnp.where(rank >= (top + edge)[:, None], 0.0, ramp))
    return mask.reshape(n, height, width, 1)


def brightest(value: Array, count: Array) -> Array:
    """1 on the `count` largest of each row of values in [0, 1] (ties: the lowest index first). float32 [n, P].

    Sorting is slow on every device; the threshold is found by bisection instead (floats ≥ 0 order like their bits).
    """
    bits = jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.int32)
    place = jnp.arange(value.shape[1])[None, :]

    def bisect(enough: Callable[[Array], Array], low: Array, high: Array, steps: int) -> Array:
        """The largest point of [low, high] where `enough` still holds."""

        def step(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = low + (high - low + 1) // 2
            good = enough(middle)
            return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

        return jax.lax.fori_loop(0, steps, step, (low, high))[0]

    top = jnp.full_like(count, np.float32(1.0).view(np.int32))
    level = bisect(lambda t: (bits >= t[:, None]).sum(axis=1) >= count, jnp.zeros_like(count), top, 31)
    above, equal = bits > level[:, None], bits == level[:, None]
    missing = count - above.sum(axis=1)
    end = bisect(
        lambda j: (equal & (place < j[:, None])).sum(axis=1) <= missing,
        jnp.zeros_like(count),
        jnp.full_like(count, value.shape[1]),
        value.shape[1].bit_length(),
    )
    return (above | (equal & (place < end[:, None]))).astype(jnp.float32)


def fmix(
    key: Array,
    x: Array,
    *,
    alpha: float | Array = 1.0,
    decay: float = 3.0,
    soft: float = 0.0,
    spectrum: Spectrum = "published",
    weight: float | Array | None = None,
    drawn_label: bool = False,
    per: Per = "batch",
    partner: How | Array = "derangement",
) -> Plan:
    """FMix: the example keeps the brightest λHW places of low-frequency noise.

    Args:
        key: PRNG key.
        x: images [B, H, W, C]; only the shape is read.
        alpha: Beta parameter, > 0.
        decay: δ, the spectrum's power.
        soft: width of the soft edge, as a share of the picture, in [0, 0.5].
        spectrum: see `low_frequency`.
        weight: a given λ instead of a draw.
        drawn_label: the published label λ instead of the mask's mean (they differ by less than 1/HW).
        per, partner: as in `cutmix`.
    Returns:
        Plan with a mask.
    Raises:
        InputError: alpha or decay ≤ 0; soft outside [0, 0.5].
    Example:
        >>> plan = fmix(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), weight=0.5)
        >>> float(plan.mask.mean())
        0.5

    Reference:
        Harris, Marcu, Painter, Niranjan, Prügel-Bennett, Hare, "FMix: Enhancing Mixed Sample Data Augmentation", 2020.
    """
    batch, height, width = image_size(x)
    check_positive("decay", decay)
    check_unit("soft", 2 * soft)
    key_partner, key_weight, key_noise, key_ceil = jax.random.split(key, 4)
    partners = choose_partner(key_partner, batch, partner, per)
    n = draws(batch, per)
    own = own_weight(key_weight, batch, alpha, weight, per)
    noise = jax.random.normal(key_noise, (n, height, noise_columns(width), 2))
    image = low_frequency(noise, (height, width), decay=decay, spectrum=spectrum)
    mask = threshold_mask(image, own, soft=soft, ceil=jax.random.uniform(key_ceil, (n,)) > 0.5)
    return masked_plan(partners, mask, per, spread(own, batch, per) if drawn_label else None)
