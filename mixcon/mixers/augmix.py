"""AugMix: chains of photometric and geometric operations, mixed with each other and with the clean image.

It mixes an image with itself, so labels stay and there is no partner: the one policy that returns images, not a plan.
Operations follow the integer arithmetic of the Python Imaging Library on uint8 pictures, as array code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import check_positive

Op = Callable[[Array, Array, Array], Array]
"""(image uint8 [H, W, 3], level in [0, 10], sign ±1) → uint8 [H, W, 3]."""


def _byte(x: Array) -> Array:
    return jnp.clip(x, 0, 255).astype(jnp.uint8)


def _lookup(image: Array, tables: Array) -> Array:
    """One table [256, 3] per channel."""
    channels = [tables[:, c][image[..., c].astype(jnp.int32)] for c in range(image.shape[-1])]
    return jnp.stack(channels, axis=-1).astype(jnp.uint8)


def _blend(base: Array, image: Array, factor: Array) -> Array:
    base, image = base.astype(jnp.float32), image.astype(jnp.float32)
    return _byte(jnp.trunc(base + factor * (image - base)))


def _gray(image: Array) -> Array:
    weights = jnp.array([19595, 38470, 7471]).reshape(1, 1, 3)
    return ((image.astype(jnp.int32) * weights).sum(axis=-1) + 0x8000) >> 16


def autocontrast(image: Array, level: Array, sign: Array) -> Array:
    """Stretch each channel to 0…255."""
    values = jnp.arange(256)[:, None]
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32)[None] for f in (jnp.min, jnp.max))
    table = (values - low) * 255 // jnp.maximum(high - low, 1)
    return _lookup(image, jnp.where(high > low, jnp.clip(table, 0, 255), values))


def equalize(image: Array, level: Array, sign: Array) -> Array:
    """Flatten each channel's histogram."""
    values = jnp.arange(256)
    tables = []
    for c in range(image.shape[-1]):
        count = jnp.bincount(image[..., c].reshape(-1).astype(jnp.int32), length=256)
        last = count[jnp.max(jnp.where(count > 0, values, 0))]
        step = (count.sum() - last) // 255
        before = jnp.cumsum(count) - count
        table = (step // 2 + before) // jnp.maximum(step, 1)
        tables.append(jnp.where(((count > 0).sum() > 1) & (step > 0), jnp.clip(table, 0, 255), values))
    return _lookup(image, jnp.stack(tables, axis=-1))


def posterize(image: Array, level: Array, sign: Array) -> Array:
    """Keep 4 - ⌊0.4 level⌋ bits."""
    bits = 4 - jnp.floor(level * 4 / 10).astype(jnp.int32)
    step = jnp.left_shift(1, 8 - bits)
    return (image.astype(jnp.int32) // step * step).astype(jnp.uint8)


def solarize(image: Array, level: Array, sign: Array) -> Array:
    """Invert what is at least 256 - ⌊25.6 level⌋."""
    threshold = 256 - jnp.floor(level * 256 / 10).astype(jnp.int32)
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def _affine(image: Array, matrix: list[Array | float]) -> Array:
    """Bilinear resampling: output (x, y) reads (a x + b y + c, d x + e y + f) between pixel centres; outside is 0."""
    height, width = image.shape[:2]
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    a, b, c, d, e, f = (jnp.asarray(v, jnp.float32) for v in matrix)
    at_x, at_y = a * x + b * y + c, d * x + e * y + f
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    at_x, at_y = at_x - 0.5, at_y - 0.5
    left, top = jnp.floor(at_x), jnp.floor(at_y)
    part_x, part_y = (at_x - left)[..., None], (at_y - top)[..., None]
    cols = [jnp.clip(left.astype(jnp.int32) + i, 0, width - 1) for i in (0, 1)]
    rows = [jnp.clip(top.astype(jnp.int32) + i, 0, height - 1) for i in (0, 1)]
    pixels = image.astype(jnp.float32)
    lines = [pixels[r, cols[0]] + (pixels[r, cols[1]] - pixels[r, cols[0]]) * part_x for r in rows]
    value = lines[0] + (lines[1] - lines[0]) * part_y
    return jnp.where(inside[..., None], _byte(jnp.floor(value)), 0).astype(jnp.uint8)


def rotate(image: Array, level: Array, sign: Array) -> Array:
    """Turn by ± ⌊3 level⌋ degrees about the centre."""
    angle = -jnp.deg2rad(sign * jnp.floor(level * 30 / 10))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    cx, cy = image.shape[1] / 2, image.shape[0] / 2
    return _affine(image, [cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy])


def shear_x(image: Array, level: Array, sign: Array) -> Array:
    """x reads x ± 0.03 level · y."""
    return _affine(image, [1.0, sign * level * 0.3 / 10, 0.0, 0.0, 1.0, 0.0])


def shear_y(image: Array, level: Array, sign: Array) -> Array:
    """y reads y ± 0.03 level · x."""
    return _affine(image, [1.0, 0.0, 0.0, sign * level * 0.3 / 10, 1.0, 0.0])


def translate_x(image: Array, level: Array, sign: Array) -> Array:
    """Shift by ± ⌊level W / 30⌋ pixels."""
    return _affine(image, [1.0, 0.0, sign * jnp.floor(level * (image.shape[1] / 3) / 10), 0.0, 1.0, 0.0])


def translate_y(image: Array, level: Array, sign: Array) -> Array:
    """Shift by ± ⌊level H / 30⌋ pixels."""
    return _affine(image, [1.0, 0.0, 0.0, 0.0, 1.0, sign * jnp.floor(level * (image.shape[0] / 3) / 10)])


def _enhance(level: Array) -> Array:
    return 0.1 + level * 1.8 / 10


def color(image: Array, level: Array, sign: Array) -> Array:
    """Saturation 0.1 + 0.18 level."""
    return _blend(jnp.broadcast_to(_gray(image)[..., None], image.shape), image, _enhance(level))


def contrast(image: Array, level: Array, sign: Array) -> Array:
    """Contrast 0.1 + 0.18 level about the mean gray."""
    mean = jnp.floor(_gray(image).astype(jnp.float32).mean() + 0.5)
    return _blend(jnp.broadcast_to(mean, image.shape), image, _enhance(level))


def brightness(image: Array, level: Array, sign: Array) -> Array:
    """Brightness 0.1 + 0.18 level."""
    return _blend(jnp.zeros_like(image), image, _enhance(level))


def sharpness(image: Array, level: Array, sign: Array) -> Array:
    """Away from, or towards, a 3×3 smoothing; borders are not smoothed."""
    height, width = image.shape[:2]
    pixels = image.astype(jnp.int32)
    total = 4 * pixels[1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + pixels[dy : height - 2 + dy, dx : width - 2 + dx]
    smooth = pixels.at[1:-1, 1:-1].set((2 * total + 13) // 26)
    return _blend(smooth, image, _enhance(level))


OPS: dict[str, Op] = {
    "autocontrast": autocontrast, "equalize": equalize, "posterize": posterize, "rotate": rotate,
    "solarize": solarize, "shear_x": shear_x, "shear_y": shear_y, "translate_x": translate_x,
    "translate_y": translate_y, "color": color, "contrast": contrast, "brightness": brightness, "sharpness": sharpness,
}  # fmt: skip
DEFAULT_OPS = tuple(OPS)[:9]  # the rest overlap with the corruptions that AugMix is tested on


def augmix(
    key: Array,
    x: Array,
    *,
    width: int = 3,
    depth: int = 3,
    alpha: float = 1.0,
    severity: float = 3.0,
    ops: tuple[str, ...] = DEFAULT_OPS,
) -> Array:
    """AugMix: `x' = (1 - m) x + m Σ_i w_i chain_i(x)`, w ~ Dirichlet(α), m ~ Beta(α, α), per example.

    Each chain applies 1 to `depth` random operations at levels U(0.1, severity). Normalisation is affine and the
    weights
    sum to one, so mean and std may be applied afterwards. Labels are unchanged.

    Args:
        key: PRNG key.
        x: images [B, H, W, 3], uint8, or float in [0, 1].
        width: number of chains.
        depth: most operations of a chain.
        alpha: parameter of both laws, > 0.
        severity: highest level, in (0.1, 10].
        ops: names from `OPS`.
    Returns:
        float32 [B, H, W, 3] in [0, 1].
    Raises:
        InputError: not RGB images; unknown operation; alpha ≤ 0; width or depth < 1; severity outside (0.1, 10].
    Example:
        >>> augmix(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8)).shape
        (1, 8, 8, 3)

    Reference:
        Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: A Simple Data Processing Method to Improve
        Robustness and Uncertainty", 2020
    """
    if x.ndim != 4 or x.shape[-1] != 3:
        raise InputError(f"x must be RGB images [B, H, W, 3]; got {list(x.shape)}.")
    unknown = [name for name in ops if name not in OPS]
    if unknown or not ops:
        raise InputError(f"unknown operations {unknown}; choose from {', '.join(OPS)}.")
    check_positive("alpha", alpha)
    if width < 1 or depth < 1 or not 0.1 < severity <= 10:
        raise InputError(f"want width, depth ≥ 1 and severity in (0.1, 10]; got {width}, {depth}, {severity}.")
    image = x if x.dtype == jnp.uint8 else _byte(jnp.round(x.astype(jnp.float32) * 255.0))
    clean = image.astype(jnp.float32) / 255.0
    branches = [OPS[name] for name in ops]

    def chain(key: Array, image: Array) -> Array:
        key_depth, key_steps = jax.random.split(key)
        length = jax.random.randint(key_depth, (), 1, depth + 1)

        def step(image: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
            i, key = given
            key_op, key_level, key_sign = jax.random.split(key, 3)
            level = jax.random.uniform(key_level, (), minval=0.1, maxval=severity)
            sign = jnp.where(jax.random.bernoulli(key_sign), 1.0, -1.0)
            changed = jax.lax.switch(jax.random.randint(key_op, (), 0, len(branches)), branches, image, level, sign)
            return jnp.where(i < length, changed, image), None

        return jax.lax.scan(step, image, (jnp.arange(depth), jax.random.split(key_steps, depth)))[0]

    def one(key: Array, image: Array, clean: Array) -> Array:
        key_weight, key_mix, key_chains = jax.random.split(key, 3)
        weight = jax.random.dirichlet(key_weight, jnp.full(width, alpha, jnp.float32), dtype=jnp.float32)
        share = jax.random.beta(key_mix, alpha, alpha, (), jnp.float32)
        chains = jax.vmap(chain, (0, None))(jax.random.split(key_chains, width), image).astype(jnp.float32) / 255.0
        return (1.0 - share) * clean + share * jnp.einsum("k,khwc->hwc", weight, chains)

    return jax.vmap(one)(jax.random.split(key, x.shape[0]), image, clean)
