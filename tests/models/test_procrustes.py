"""The rotation of one embedding space onto another: golden vectors, and what makes it a rotation."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models.heads import l2_normalize
from mixcon.models.procrustes import procrustes_alignment

with np.load(Path(__file__).parents[1] / "golden" / "contrastive-gap.npz") as _file:
    GOLDEN = {key: _file[key] for key in _file.files if key.startswith("c1/")}


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0])
def test_golden(gap):
    image, text = (l2_normalize(jnp.asarray(GOLDEN[f"c1/in/{side}"], jnp.float32)) for side in ("image", "text"))
    rotation = procrustes_alignment(image, text, gap=gap)
    np.testing.assert_allclose(rotation, GOLDEN[f"c1/out/procrustes/W_gap{gap}"], atol=2e-5)
    np.testing.assert_allclose(text @ rotation.T, GOLDEN[f"c1/out/procrustes/text_aligned_gap{gap}"], atol=2e-5)


def test_a_turned_space_is_turned_back():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    first = l2_normalize(jnp.asarray(rng.normal(size=(50, 6)), jnp.float32))
    rotation = procrustes_alignment(first, first @ jnp.asarray(turn, jnp.float32))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(rotation.T, turn.T, atol=1e-5)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="share a shape"):
        procrustes_alignment(jnp.zeros((3, 4)), jnp.zeros((3, 5)))
