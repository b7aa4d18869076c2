"""Parameters for tests: drawn by NumPy, so that no initialiser has to be compiled, and nowhere zero."""

import jax
import numpy as np
import pytest

from mixcon.models import functional, map_with_path


@pytest.fixture(scope="session")
def drawn():
    """`drawn(make) -> (model, params, extra)` with the shapes of the model's init and random values."""

    def draw(make, seed=0):
        model, rng = functional(make), np.random.default_rng(seed)
        params, extra = jax.eval_shape(model.init, jax.random.key(0))

        def noise(path, x):
            return (float(path.endswith(("scale", "var"))) + rng.uniform(-0.4, 0.4, x.shape)).astype(np.float32)

        return model, map_with_path(noise, params), map_with_path(noise, extra)

    return draw
