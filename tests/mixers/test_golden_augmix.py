"""AugMix's operations against the Python Imaging Library's results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.mixers.augmix import OPS, augmix


@pytest.mark.parametrize("name", list(OPS))
def test_operation(golden, name):
    case = golden("openmixup-augmix-ops")[0]
    image = jnp.asarray(case.inp["image"])
    op = jax.jit(OPS[name])
    found = 0
    for full, expected in case.out.items():
        ours, sign, level = full.rsplit("_", 2)
        if ours == name:
            found += 1
            result = op(image, jnp.float32(level), jnp.float32(1 if sign == "pos" else -1))
            difference = np.abs(np.asarray(result, int) - expected)
            assert difference.max() <= 1, (
                full
            )  # the originals compute in float64: a value on an edge may fall one short
            assert (difference > 0).mean() <= 0.002, (full, (difference > 0).mean())
    assert found


def test_augmix_is_a_convex_mix_of_byte_images():
    x = jax.random.randint(jax.random.key(0), (3, 16, 16, 3), 0, 256).astype(jnp.uint8)
    mixed = jax.jit(augmix)(jax.random.key(1), x)
    assert mixed.shape == x.shape
    assert float(mixed.min()) >= 0
    assert float(mixed.max()) <= 1
    again = jax.jit(augmix)(jax.random.key(1), x.astype(jnp.float32) / 255.0)
    np.testing.assert_allclose(mixed, again, atol=1e-6)
    assert float(jnp.abs(mixed - x.astype(jnp.float32) / 255.0).max()) > 0.05
