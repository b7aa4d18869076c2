"""All predictions of one batch in one program, and their accuracies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import corrupt, fgsm, occlude
from mixcon.evals.stress import accuracies, predictions

KEY = jax.random.key(0)


def test_predictions_are_those_of_each_function_alone():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(192, 3)), jnp.float32)
    images, labels = jnp.asarray(rng.uniform(size=(6, 8, 8, 3)), jnp.float32), jnp.array([0, 1, 2, 0, 1, 2])

    def f(x):
        return (x - 0.5).reshape(x.shape[0], -1) @ weight

    options = dict(epsilon=0.02, pgd_steps=2, corruptions=("gaussian_noise", "contrast"), occlusion_patch=4,
                   occlusion_ratios=(0.25, 0.75), occlusion_fill=(0.5, 0.5, 0.5))  # fmt: skip
    found = jax.jit(lambda x: predictions(f, x, labels, key=KEY, **options))(images)
    keys = jax.random.split(KEY, 4)
    np.testing.assert_array_equal(found["fgsm"], f(fgsm(f, images, labels, epsilon=0.02)).argmax(1))
    for s in range(1, 6):
        contrast = f(corrupt(keys[3], images, "contrast", severity=s)).argmax(1)
        np.testing.assert_array_equal(found["corrupt/contrast"][:, s - 1], contrast)
    for i, ratio in enumerate((0.25, 0.75)):
        covered = occlude(keys[1], images, patch=4, ratio=ratio, fill=(0.5, 0.5, 0.5))
        np.testing.assert_array_equal(found["occlude"][:, i], f(covered).argmax(1))
    assert found["pgd"].shape == (6,)

    measured = dict(accuracies({k: np.asarray(v) for k, v in found.items()} | {"label": np.asarray(labels)}))
    right = np.asarray(found["corrupt/contrast"]) == np.asarray(labels)[:, None]
    assert measured["corrupt/contrast"] == pytest.approx(right.mean())
    mean = 1 - (measured["corrupt/contrast"] + measured["corrupt/gaussian_noise"]) / 2
    assert measured["mean_corruption_error"] == pytest.approx(mean)


def test_what_is_not_asked_for_is_not_made():
    x, y = jnp.zeros((2, 4, 4, 3)), jnp.array([0, 1])
    assert predictions(lambda x: x[:, 0, 0], x, y, key=KEY, epsilon=0) == {}
    with pytest.raises(InputError, match="unknown corruption"):
        predictions(lambda x: x[:, 0, 0], x, y, key=KEY, epsilon=0, corruptions=("rain",))
