"""FMix: masks by thresholding low-frequency noise."""

import math
from typing import Literal, NamedTuple

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
    the picture is made of horizontal waves; every published number has it. "intended" is the law of the text.

    Args:
        noise: standard normal [n, H, W//2+1 (+1 if W is odd), 2]; "published" reads only the first two of the H rows.
        shape: (H, W).
        decay: δ.
        spectrum: "published" or "intended".
    Returns:
        float32 [n, H, W].
    Raises:
        InputError: noise of the wrong shape; unknown spectrum.
    """
    height, width = shape
    columns = noise_columns(width)
    if spectrum not in ("published", "intended"):
        raise InputError(f"spectrum must be 'published' or 'intended'; got {spectrum!r}.")
    rows = noise_rows(height, spectrum)
    if noise.ndim != 4 or noise.shape[1] not in (rows, height) or noise.shape[2:] != (columns, 2):
        raise InputError(f"noise must be [n, {rows}, {columns}, 2]; got {list(noise.shape)}.")
    frequency = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None, :columns] ** 2)
    scale = jnp.asarray(np.maximum(frequency, 1.0 / max(height, width)) ** -decay, jnp.float32)
    noise = noise.astype(jnp.float32)
    if spectrum == "published":
        real, imag = (scale[row][None, :, None] * noise[:, row] for row in (0, 1))
        image = _two_columns(real[:, :height], imag[:, :height], shape)
    else:
        wave = jax.lax.complex(*(noise[..., i] * scale[None] for i in (0, 1)))[:, :, : width // 2 + 1]
        image = jnp.fft.irfft2(wave, s=(height, width))
    image = image - image.min(axis=(1, 2), keepdims=True)
    return image / jnp.maximum(image.max(axis=(1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)


def _two_columns(real: Array, imag: Array, shape: tuple[int, int]) -> Array:
    """H·W times the inverse real transform of a half spectrum whose only columns are the first two, [n, f, 2].

    The published spectrum is no more than that, so that its picture has rank three: with u = Σ_f Z_f e^(2πi f y/H),
    `Re u₀(y) + 2 Re u₁(y) cos(2π x/W) - 2 Im u₁(y) sin(2π x/W)`. Two short transforms take the place of H + W.
    """
    height, width = shape
    angle = 2.0 * np.pi / height * (np.outer(np.arange(height), np.arange(real.shape[1])) % height)
    cos, sin = (jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin))

    def over_rows(table: Array, part: Array) -> Array:
        return jnp.einsum("yf,nfb->nyb", table, part, precision="highest")

    u_real = over_rows(cos, real) - over_rows(sin, imag)
    u_imag = over_rows(cos, imag) + over_rows(sin, real)
    turn = 2.0 * np.pi / width * np.arange(width)
    across = [jnp.asarray(f(turn), jnp.float32)[None, None, :] for f in (np.cos, np.sin)]
    twice = 1.0 if width == 1 else 2.0 - (width == 2)  # the second column is its own mirror image when W = 2
    return u_real[..., :1] + twice * (u_real[..., 1:] * across[0] - u_imag[..., 1:] * across[1])


def noise_rows(height: int, spectrum: Spectrum) -> int:
    """How many rows of noise a spectrum reads."""
    return min(2, height) if spectrum == "published" else height


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

    Sorting is slow on every device. A threshold is found instead by regula falsi on the count (Illinois: an end that
    stays counts half), about ten passes where bisection needs thirty; floats ≥ 0 order like their bits.
    """
    bits = jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.int32)
    count = count.astype(jnp.int32)
    goal = count.astype(jnp.float32) - 0.5
    zero = jnp.zeros_like(count)
    start = Bracket(
        zero, jnp.full_like(count, np.float32(1.0).view(np.int32) + 1), jnp.full_like(count, value.shape[1]), zero,
        value.shape[1] - goal, -goal, zero, jnp.int32(0),
    )  # fmt: skip

    def step(b: Bracket) -> Bracket:
        low, high = (jax.lax.bitcast_convert_type(v, jnp.float32) for v in (b.low, b.high))
        guess = jax.lax.bitcast_convert_type(low + (high - low) * (b.pull_low / (b.pull_low - b.pull_high)), jnp.int32)
        guess = jnp.where(b.turn % 4 == 3, b.low + (b.high - b.low) // 2, guess)  # so that the worst case stays short
        guess = jnp.clip(guess, b.low + 1, jnp.maximum(b.high - 1, b.low + 1))
        seen = (bits >= guess[:, None]).sum(axis=1, dtype=jnp.int32)
        pull, up = seen.astype(jnp.float32) - goal, seen >= count
        stays_low, stays_high = ~up & (b.moved == -1), up & (b.moved == 1)
        return Bracket(
            low=jnp.where(up, guess, b.low),
            high=jnp.where(up, b.high, guess),
            above_low=jnp.where(up, seen, b.above_low),
            above_high=jnp.where(up, b.above_high, seen),
            pull_low=jnp.where(up, pull, jnp.where(stays_low, b.pull_low / 2, b.pull_low)),
            pull_high=jnp.where(up, jnp.where(stays_high, b.pull_high / 2, b.pull_high), pull),
            moved=jnp.where(up, 1, -1),
            turn=b.turn + 1,
        )

    found = jax.lax.while_loop(lambda b: _open(b, count).any() & (b.turn < 128), step, start)
    tied = (found.above_low != count) & (found.above_high != count)
    above = bits >= jnp.where(found.above_low == count, found.low, found.high)[:, None]
    equal = (bits == found.low[:, None]) & tied[:, None]
    return (above | _first(equal, count - found.above_high)).astype(jnp.float32)


class Bracket(NamedTuple):
    """Thresholds (as bits) between which the wanted one lies, and how many values reach them: [n] each."""

    low: Array
    high: Array
    above_low: Array  # ≥ count
    above_high: Array  # < count, or = count, which is as good
    pull_low: Array  # excess over the wanted count, halved where this end stayed
    pull_high: Array
    moved: Array  # which end moved last: 1 low, -1 high
    turn: Array


def _open(b: Bracket, count: Array) -> Array:
    return (b.above_low != count) & (b.above_high != count) & (b.high - b.low > 1)


def _first(chosen: Array, count: Array) -> Array:
    """The first `count` true places of each row: bool [n, P]. Lines are counted first, then the one where it ends."""
    n, places = chosen.shape
    length = next(c for c in range(math.isqrt(places), 0, -1) if places % c == 0)
    lines = chosen.reshape(n, places // length, length)
    upto = jnp.cumsum(lines.sum(axis=2, dtype=jnp.int32), axis=1)
    last = jnp.argmax(upto >= count[:, None], axis=1)[:, None]
    line = jnp.take_along_axis(lines, last[:, :, None], axis=1)[:, 0]
    left = count[:, None] - jnp.take_along_axis(upto, last, axis=1) + line.sum(axis=1, keepdims=True, dtype=jnp.int32)
    within = (jnp.cumsum(line, axis=1, dtype=jnp.int32) <= left)[:, None, :]
    number = jnp.arange(places // length)[None, :, None]
    kept = (number < last[:, :, None]) | ((number == last[:, :, None]) & within)
    return (lines & kept).reshape(n, places)


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
    noise = jax.random.normal(key_noise, (n, noise_rows(height, spectrum), noise_columns(width), 2))
    image = low_frequency(noise, (height, width), decay=decay, spectrum=spectrum)
    mask = threshold_mask(image, own, soft=soft, ceil=jax.random.uniform(key_ceil, (n,)) > 0.5)
    return masked_plan(partners, mask, per, spread(own, batch, per) if drawn_label else None)
