"""Constant matrices: sparse and dense forms are the matrix, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from mixcon.errors import InputError
from mixcon.ops.linear_map import apply, linear_map

MATRIX = sp.random(7, 5, 0.3, random_state=0, dtype=np.float32).tocsr()
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.mark.parametrize("dense_above", [-1.0, 1.0])
def test_product_and_gradient_are_the_matrix(dense_above):
    matrix = linear_map(MATRIX, dense_above=dense_above)
    assert isinstance(matrix.rows, tuple) == (dense_above == 1.0)
    out = jax.jit(apply)(matrix, X)
    np.testing.assert_allclose(out, MATRIX @ X, rtol=1e-6)
    pull = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    grad = jax.jit(jax.grad(lambda x: jnp.vdot(apply(matrix, x), pull)))(jnp.asarray(X))
    np.testing.assert_allclose(grad, MATRIX.T @ pull, rtol=1e-5, atol=1e-6)


def test_the_form_follows_the_share_of_nonzeros():
    assert isinstance(linear_map(sp.identity(20)).rows, tuple)
    assert not isinstance(linear_map(np.ones((4, 4))).rows, tuple)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="not finite"):
        linear_map(np.array([[np.inf]]))
    with pytest.raises(InputError, match="must be"):
        linear_map(np.zeros(3))
    with pytest.raises(InputError, match=r"shape \(7, 5\) multiplies \[5, D\], got \(4, 3\)"):
        apply(linear_map(MATRIX), jnp.zeros((4, 3)))
