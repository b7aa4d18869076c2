"""Attacks, occlusion and corruptions against closed forms, plain loops and what they must keep."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixcon.errors import InputError
from mixcon.evals import corrupt, fgsm, mean_corruption_error, occlude, pgd
from mixcon.evals.corruptions import LEVELS

KEY = jax.random.key(0)
SHAPE = (4, 6, 6, 3)


@pytest.fixture(scope="module")
def linear():
    """A linear classifier, its images and labels: the attack has a closed form."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(108, 5)), jnp.float32)
    images = jnp.asarray(rng.uniform(size=SHAPE), jnp.float32)
    return lambda x: x.reshape(x.shape[0], -1) @ weight, np.asarray(weight), images, jnp.array([0, 3, 2, 4])


@pytest.fixture(scope="module")
def photographs():
    """Real pictures, 32 pixels."""
    crops = [
        Image.fromarray(p[:427, 100:527]).resize((32, 32), Image.Resampling.BOX) for p in load_sample_images().images
    ]
    return jnp.asarray(np.stack([np.asarray(c) for c in crops]), jnp.float32) / 255


def gradient_by_hand(weight, images, labels):
    """∂CE/∂x of a linear classifier, one example at a time: W (p - 1_y)."""
    found = []
    for x, y in zip(np.asarray(images, np.float64).reshape(len(images), -1), np.asarray(labels), strict=True):
        p = np.exp(x @ weight - (x @ weight).max())
        p = p / p.sum()
        p[y] -= 1
        found.append((weight @ p).reshape(images.shape[1:]))
    return np.stack(found)


def test_fgsm_steps_along_the_sign_of_the_gradient(linear):
    f, weight, images, labels = linear
    expected = np.clip(images + 0.1 * np.sign(gradient_by_hand(weight, images, labels)), 0, 1)
    np.testing.assert_allclose(fgsm(f, images, labels, epsilon=0.1), expected, atol=1e-6)
    np.testing.assert_array_equal(fgsm(f, images, labels, epsilon=0.0), images)


def test_pgd_matches_a_loop_and_stays_in_the_ball(linear):
    f, weight, images, labels = linear
    x = np.asarray(images, np.float64)
    low, high = np.clip(x - 0.08, 0, 1), np.clip(x + 0.08, 0, 1)
    for _ in range(5):
        x = np.clip(x + 0.03 * np.sign(gradient_by_hand(weight, x, labels)), low, high)
    options = dict(epsilon=0.08, steps=5, step_size=0.03)
    np.testing.assert_allclose(pgd(f, images, labels, **options), x, atol=1e-6)
    drawn = jax.jit(lambda key: pgd(f, images, labels, key=key, **options))
    one, two = drawn(KEY), drawn(jax.random.key(1))
    for attacked in (one, two):
        assert np.abs(attacked - images).max() <= 0.08 + 1e-6
        assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not np.array_equal(one, two)


def test_attacks_raise_the_loss_of_each_image_whatever_the_others_are(linear):
    f, _, images, labels = linear

    def losses(x):
        return -jax.nn.log_softmax(f(x))[jnp.arange(4), labels]

    attacked = pgd(f, images, labels, epsilon=0.05, steps=3, step_size=0.03)
    assert (losses(attacked) > losses(fgsm(f, images, labels, epsilon=0.01))).all()
    assert (losses(attacked) > losses(images)).all()
    np.testing.assert_allclose(fgsm(f, images[:1], labels[:1]), fgsm(f, images, labels)[:1], atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_occlusion_hides_whole_patches_and_as_many_as_asked(ratio):
    images = jnp.full((2, 8, 12, 3), 0.5)
    fill = (0.1, 0.2, 0.3)
    hidden = np.asarray(jax.jit(lambda r: occlude(KEY, images, patch=4, ratio=r, fill=fill))(ratio))
    patches = hidden.reshape(2, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(2, 6, 16, 3)
    gone = np.isclose(patches, fill).all((2, 3))
    assert (gone.sum(1) == round(6 * ratio)).all()
    assert (gone[0] == gone[1]).all()
    assert np.isclose(patches[~gone], 0.5).all()


@pytest.fixture(scope="module")
def corrupted():
    return {name: jax.jit(corrupt, static_argnames="name") for name in LEVELS}


QUICK = ("gaussian_noise", "defocus_blur", "contrast", "pixelate")  # the others take seconds to compile


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LEVELS if n != "jpeg"]
)
def test_a_corruption_grows_with_severity_keeps_the_range_and_repeats(name, corrupted, photographs):
    apply = corrupted[name]
    found = [apply(KEY, photographs, name=name, severity=s) for s in range(6)]
    np.testing.assert_array_equal(found[0], photographs)
    distance = [float(np.abs(x - photographs).mean()) for x in found]
    assert name == "pixelate" or all(later > 0.9 * earlier for earlier, later in itertools.pairwise(distance)), distance
    assert distance[5] > 1.2 * distance[1] > 0
    for x in found:
        assert x.shape == photographs.shape
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
    np.testing.assert_array_equal(apply(KEY, photographs, name=name, severity=3), found[3])
    other = apply(jax.random.key(1), photographs, name=name, severity=3)
    assert np.array_equal(other, found[3]) != name.endswith("noise")


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("gaussian_noise", 0.10),
        pytest.param("speckle_noise", 0.2 * 0.5, marks=pytest.mark.slow),
        pytest.param("shot_noise", (0.5 / 50) ** 0.5, marks=pytest.mark.slow),
    ],
)
def test_noises_have_their_spread(name, sigma, corrupted, photographs):
    x = corrupted[name](KEY, jnp.full_like(photographs, 0.5), name=name, severity=5)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(x.std()) == pytest.approx(sigma, rel=0.05)


@pytest.mark.slow
def test_impulse_noise_is_salt_and_pepper(corrupted, photographs):
    x = np.asarray(corrupted["impulse_noise"](KEY, jnp.full_like(photographs, 0.5), name="impulse_noise", severity=5))
    assert np.mean(x == 0) == pytest.approx(0.035, abs=0.007)
    assert np.mean(x == 1) == pytest.approx(0.035, abs=0.007)


def test_pixelate_and_contrast_match_loops(photographs):
    cells = int(32 * 0.65)
    x, step = np.asarray(photographs, np.float64), 32 / cells
    # box means of cells cut at fractions of a pixel, by upsampling 20 times
    fine = np.repeat(np.repeat(x, cells, axis=1), cells, axis=2)
    small = fine.reshape(2, cells, 32, cells, 32, 3).mean((2, 4))
    where = ((np.arange(32) + 0.5) / step).astype(int)
    expected = small[:, where][:, :, where]
    np.testing.assert_allclose(corrupt(KEY, photographs, "pixelate", severity=5), expected, atol=1e-5)
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(KEY, photographs, "contrast", severity=4), (x - mean) * 0.3 + mean, atol=1e-5)


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation(photographs):
    x, bright = np.asarray(photographs), np.asarray(corrupt(KEY, photographs, "brightness", severity=3))
    np.testing.assert_allclose(bright.max(-1), np.minimum(x.max(-1) + 0.15, 1), atol=1e-6)
    share = x.min(-1) / np.maximum(x.max(-1), 1e-6)
    np.testing.assert_allclose(bright.min(-1) / bright.max(-1), share, atol=1e-4)


def test_jpeg_is_that_of_the_imaging_library(photographs):
    buffer = io.BytesIO()
    Image.fromarray(np.round(np.asarray(photographs[0]) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=58)
    found = corrupt(KEY, photographs, "jpeg", severity=3)[0]
    np.testing.assert_allclose(found * 255, np.asarray(Image.open(buffer)), atol=1e-3)


def test_large_images_have_levels_of_their_own():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 65, 2, 3)), jnp.float32)
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(KEY, x, "contrast", severity=5), (x - mean) * 0.05 + mean, atol=1e-6)


def test_mean_corruption_error_matches_a_loop():
    rng = np.random.default_rng(0)
    e, base = rng.uniform(size=(3, 5)), rng.uniform(size=(3, 5))
    expected = np.mean([sum(e[c]) / sum(base[c]) for c in range(3)])
    assert mean_corruption_error(e, base) == pytest.approx(expected)
    assert mean_corruption_error(e) == pytest.approx(e.mean())


def test_bad_input_is_refused_in_words(linear):
    f, _, images, labels = linear
    rgb = jnp.zeros((1, 8, 8, 3))
    for call, message in (
        (lambda: fgsm(f, 2 * images - 1, labels), "before they are normalised"),
        (lambda: fgsm(f, images[0], labels), "B, H, W, K"),
        (lambda: fgsm(f, images, labels, epsilon=8), "8/255, not 8"),
        (lambda: fgsm(f, images, labels.astype(jnp.float32)), "integers"),
        (lambda: pgd(f, images, labels[:2]), "labels must be 4"),
        (lambda: pgd(f, images, labels, steps=0), "steps"),
        (lambda: pgd(f, images, labels, step_size=0.0), "step_size"),
        (lambda: occlude(KEY, images, patch=4, ratio=0.5), "divide"),
        (lambda: occlude(KEY, images, patch=3, ratio=1.5), "ratio"),
        (lambda: corrupt(KEY, rgb, "snowfall", severity=1), "unknown corruption"),
        (lambda: corrupt(KEY, rgb, "contrast", severity=6), "severity"),
        (lambda: corrupt(KEY, rgb[..., :1], "contrast", severity=1), "RGB"),
        (lambda: corrupt(KEY, rgb - 1, "contrast", severity=1), r"\[0, 1\]"),
        (lambda: jax.jit(lambda x: corrupt(KEY, x, "jpeg", severity=1))(rgb), "outside jit"),
        (lambda: mean_corruption_error([0.1, 0.2]), "corruptions, severities"),
        (lambda: mean_corruption_error([[0.1]], [[0.0]]), "an error in every row"),
    ):
        with pytest.raises(InputError, match=message):
            call()
