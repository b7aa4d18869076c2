"""Augmentations against plain-loop references; draws depend on the key and the example's position alone."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mixcon.data import augment
from mixcon.errors import InputError

KEY = jax.random.key(3)
ALL = {
    "random_resized_crop": augment.random_resized_crop,
    "random_shift": partial(augment.random_shift, padding=2),
    "horizontal_flip": augment.horizontal_flip,
    "color_jitter": augment.color_jitter,
    "grayscale": partial(augment.grayscale, p=0.5),
    "gaussian_blur": augment.gaussian_blur,
    "solarize": partial(augment.solarize, p=0.5),
    "gaussian_noise": augment.gaussian_noise,
    "drop_pixels": augment.drop_pixels,
    "scale_intensity": augment.scale_intensity,
}


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (8, 12, 10, 3))


@pytest.fixture(scope="module", params=ALL)
def augmentation(request):
    return jax.jit(ALL[request.param])


def test_shape_dtype_and_range(augmentation, images):
    for dtype in (jnp.float32, jnp.bfloat16):
        out = augmentation(KEY, images.astype(dtype))
        assert out.shape == images.shape
        assert out.dtype == dtype
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1.01


def test_same_key_same_draw_other_key_other_draw(augmentation, images):
    np.testing.assert_array_equal(augmentation(KEY, images), augmentation(KEY, images))
    assert not np.array_equal(augmentation(KEY, images), augmentation(jax.random.key(4), images))


def test_an_example_is_treated_alike_in_any_batch_and_on_any_mesh(augmentation, images):
    expected = augmentation(KEY, images)
    np.testing.assert_allclose(augmentation(KEY, images[:5]), expected[:5], atol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    out = augmentation(KEY, sharded)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_examples_get_draws_of_their_own(augmentation):
    same = jnp.broadcast_to(jax.random.uniform(jax.random.key(1), (1, 12, 10, 3)), (16, 12, 10, 3))
    assert len(np.unique(np.asarray(augmentation(KEY, same)).reshape(16, -1), axis=0)) > 1


def test_no_gather_and_one_trace(images):
    text = str(jax.make_jaxpr(augment.random_resized_crop)(KEY, images))
    assert "gather" not in text
    assert "callback" not in text
    traces = []

    @jax.jit
    def traced(key, x):
        traces.append(1)
        return augment.color_jitter(key, x)

    for seed in range(3):
        traced(jax.random.key(seed), images)
    assert len(traces) == 1


def resize_reference(image, top, left, high, wide, rows, columns):
    """Triangle-kernel resampling of a rectangle, one output pixel at a time."""
    height, width, _ = image.shape
    out = np.zeros((rows, columns, image.shape[2]))
    for i in range(rows):
        for j in range(columns):
            weight_sum, value = 0.0, 0.0
            y, x = top + (i + 0.5) * high / rows, left + (j + 0.5) * wide / columns
            for u in range(height):
                for v in range(width):
                    a = max(0.0, 1 - abs(y - (u + 0.5)) / max(high / rows, 1))
                    b = max(0.0, 1 - abs(x - (v + 0.5)) / max(wide / columns, 1))
                    weight_sum += a * b
                    value = value + a * b * image[u, v]
            out[i, j] = value / weight_sum
    return out


def test_crop_against_a_loop_over_pixels(images):
    image = np.asarray(images[:1])
    for top, left, high, wide, rows, columns in ((1.3, 2.0, 5.5, 4.2, 12, 10), (0.0, 0.5, 11.0, 9.5, 4, 3)):
        matrices = (
            augment._resize_matrix(jnp.array([top]), jnp.array([high]), 12, rows),
            augment._resize_matrix(jnp.array([left]), jnp.array([wide]), 10, columns),
        )
        got = augment._apply(images[:1], *matrices)
        np.testing.assert_allclose(got[0], resize_reference(image[0], top, left, high, wide, rows, columns), atol=1e-5)


def test_the_whole_rectangle_is_the_identity(images):
    out = augment.random_resized_crop(KEY, images[:, :10], scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(out, images[:, :10], atol=1e-6)


def test_crop_sees_areas_in_the_range_asked_for():
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 64)[None, None, :, None], (256, 64, 64, 1))
    out = augment.random_resized_crop(KEY, ramp, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    extent = np.asarray(out[:, 0, -1, 0] - out[:, 0, 0, 0])
    np.testing.assert_allclose(extent, 0.5, atol=0.03)
    start = np.asarray(out[:, 0, 0, 0])
    assert start.min() < 0.05
    assert start.max() > 0.42


def test_shift_moves_whole_pixels_and_fills_with_zeros(images):
    out = np.asarray(augment.random_shift(KEY, images, padding=3))
    for before, after in zip(np.asarray(images), out, strict=True):
        padded = np.pad(before, ((3, 3), (3, 3), (0, 0)))
        windows = [padded[i : i + 12, j : j + 10] for i in range(7) for j in range(7)]
        assert any(np.allclose(window, after, atol=1e-6) for window in windows)


def test_flip_share_and_result(images):
    many = jnp.tile(images[:1], (2000, 1, 1, 1))
    out = np.asarray(augment.horizontal_flip(KEY, many, p=0.3))
    flipped = np.isclose(out, np.asarray(many)[:, :, ::-1]).all((1, 2, 3))
    assert abs(flipped.mean() - 0.3) < 0.04
    np.testing.assert_array_equal(out[~flipped], np.asarray(many)[~flipped])


def jitter_reference(image, brightness, contrast, saturation, hue):
    """The definition, one pixel at a time, with the standard library's colour conversion."""
    luma = np.array([0.299, 0.587, 0.114])
    x = np.clip(image * brightness, 0, 1)
    x = np.clip(contrast * x + (1 - contrast) * (x @ luma).mean(), 0, 1)
    x = np.clip(saturation * x + (1 - saturation) * (x @ luma)[..., None], 0, 1)
    out = np.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            h, s, v = colorsys.rgb_to_hsv(*x[i, j])
            out[i, j] = colorsys.hsv_to_rgb((h + hue) % 1.0, s, v)
    return out


def test_jitter_against_the_standard_library(images):
    batch = len(images)
    strengths = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.3}
    out = augment.color_jitter(KEY, images, **strengths, hue=0.2, p=1.0)
    keys = jax.random.split(KEY, 5)[1:]
    factors = [
        jax.random.uniform(key, (batch, 1, 1), minval=1 - strength, maxval=1 + strength)
        for key, strength in zip(keys, strengths.values(), strict=False)
    ]
    turns = jax.random.uniform(keys[3], (batch, 1, 1), minval=-0.2, maxval=0.2)
    for i in range(batch):
        drawn = [float(factor[i, 0, 0]) for factor in factors]
        expected = jitter_reference(np.asarray(images[i], np.float64), *drawn, float(turns[i, 0, 0]))
        np.testing.assert_allclose(out[i], expected, atol=2e-5)


def test_jitter_of_gray_and_of_nothing(images):
    gray = jnp.broadcast_to(images[..., :1], images.shape)
    out = np.asarray(augment.color_jitter(KEY, gray, p=1.0))
    np.testing.assert_allclose(out[..., 0], out[..., 1], atol=1e-6)
    same = augment.color_jitter(KEY, images, brightness=0, contrast=0, saturation=0, hue=0, p=1.0)
    np.testing.assert_array_equal(same, images)


def test_blur_against_a_loop(images):
    sigma, radius = 1.3, 2
    out = np.asarray(augment.gaussian_blur(KEY, images, sigma=(sigma, sigma), radius=radius, p=1.0))
    image = np.asarray(images[2], np.float64)
    for i, j in ((0, 0), (5, 5), (11, 9), (3, 0)):
        total, value = 0.0, 0.0
        for u in range(max(0, i - radius), min(12, i + radius + 1)):
            for v in range(max(0, j - radius), min(10, j + radius + 1)):
                weight = np.exp(-((u - i) ** 2 + (v - j) ** 2) / (2 * sigma**2))
                total, value = total + weight, value + weight * image[u, v]
        np.testing.assert_allclose(out[2, i, j], value / total, atol=1e-5)


def test_grayscale_and_solarize(images):
    gray = np.asarray(augment.grayscale(KEY, images, p=1.0))
    expected = np.asarray(images) @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(gray, np.repeat(expected[..., None], 3, -1), atol=1e-6)
    x = np.asarray(images)
    np.testing.assert_allclose(
        augment.solarize(KEY, images, threshold=0.7, p=1.0), np.where(x >= 0.7, 1 - x, x), atol=1e-6
    )


def test_noise_has_the_spread_and_drops_the_rate_asked_for():
    gray = jnp.full((4, 16, 16, 3), 0.5)
    noise = augment.gaussian_noise(KEY, gray, std=0.05) - 0.5
    assert abs(float(noise.mean())) < 5e-3
    np.testing.assert_allclose(noise.std(), 0.05, rtol=0.1)
    np.testing.assert_array_equal(augment.gaussian_noise(KEY, gray, std=0.0), gray)
    dropped = augment.drop_pixels(KEY, gray, rate=0.3)
    kept = (dropped > 0).all(-1)
    np.testing.assert_array_equal(kept, (dropped > 0).any(-1))  # all channels together
    np.testing.assert_allclose(kept.mean(), 0.7, atol=0.05)
    scaled = augment.scale_intensity(KEY, gray, low=0.5, high=1.9)
    assert len(np.unique(scaled)) == 4  # one factor for each picture
    assert float(scaled.min()) >= 0.25
    np.testing.assert_array_equal(augment.scale_intensity(KEY, gray, low=3.0, high=3.0), jnp.ones_like(gray))


def test_compose_gives_each_its_own_key(images):
    twice = augment.compose(augment.horizontal_flip, augment.horizontal_flip)
    once = augment.horizontal_flip(jax.random.fold_in(KEY, 0), images)
    expected = augment.horizontal_flip(jax.random.fold_in(KEY, 1), once)
    np.testing.assert_array_equal(twice(KEY, images), expected)


def test_float_and_normalize():
    pixels = jnp.arange(12, dtype=jnp.uint8).reshape(1, 2, 2, 3) * 20
    x = augment.to_float(pixels)
    np.testing.assert_allclose(x, np.asarray(pixels) / 255, rtol=1e-6)
    out = augment.normalize(x, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    np.testing.assert_allclose(out, (np.asarray(x) - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0], rtol=1e-5, atol=1e-6)


def test_wrong_input_is_refused_in_words():
    with pytest.raises(InputError, match="float"):
        augment.random_resized_crop(KEY, jnp.zeros((2, 4, 4, 3), jnp.uint8))
    with pytest.raises(InputError, match="3 channels"):
        augment.color_jitter(KEY, jnp.zeros((2, 4, 4, 1)))
    with pytest.raises(InputError, match="scale"):
        augment.random_resized_crop(KEY, jnp.zeros((2, 4, 4, 3)), scale=(0.5, 1.5))
    with pytest.raises(InputError, match="sigma"):
        augment.gaussian_blur(KEY, jnp.zeros((2, 4, 4, 3)), sigma=(0.0, 1.0))
    with pytest.raises(InputError, match=r"p=1\.5"):
        augment.horizontal_flip(KEY, jnp.zeros((2, 4, 4, 3)), p=1.5)
    with pytest.raises(InputError, match="std=-1"):
        augment.gaussian_noise(KEY, jnp.zeros((2, 4, 4, 1)), std=-1)
    with pytest.raises(InputError, match="rate=2"):
        augment.drop_pixels(KEY, jnp.zeros((2, 4, 4, 1)), rate=2)
    with pytest.raises(InputError, match=r"low=2\.0"):
        augment.scale_intensity(KEY, jnp.zeros((2, 4, 4, 1)), low=2.0, high=1.0)
    with pytest.raises(InputError, match="uint8"):
        augment.to_float(jnp.zeros((2, 4, 4, 3)))
