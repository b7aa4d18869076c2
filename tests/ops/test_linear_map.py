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


def test_the_matrix_is_left_as_it_was():
    """A product of sparse matrices has its columns in no order; laying it out sorts a copy."""
    unsorted = sp.csr_matrix((np.array([1.0, 2.0]), np.array([3, 0]), np.array([0, 2])), shape=(1, 4))
    before = unsorted.toarray()
    matrix = linear_map(unsorted, dense_above=1.0)
    np.testing.assert_array_equal(unsorted.toarray(), before)
    np.testing.assert_array_equal(apply(matrix, jnp.eye(4)), before)


def test_the_form_follows_the_share_of_nonzeros():
    assert isinstance(linear_map(sp.identity(20)).rows, tuple)
    assert not isinstance(linear_map(np.tri(6)).rows, tuple)


def test_equal_rows_are_multiplied_once():
    kinds = np.array([[0, 1, 0, 2, 0], [0, 0, 0, 0, 0]], np.float32)
    of = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1])
    matrix = linear_map(kinds[of])
    assert matrix.distinct == (2, 5)
    assert matrix.shape == (9, 5)
    np.testing.assert_allclose(jax.jit(apply)(matrix, X), kinds[of] @ X, rtol=1e-6)
    pull = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    grad = jax.jit(jax.grad(lambda x: jnp.vdot(apply(matrix, x), pull)))(jnp.asarray(X))
    np.testing.assert_allclose(grad, kinds[of].T @ pull, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="not finite"):
        linear_map(np.array([[np.inf]]))
    with pytest.raises(InputError, match="must be"):
        linear_map(np.zeros(3))
    with pytest.raises(InputError, match=r"shape \(7, 5\) multiplies \[5, D\], got \(4, 3\)"):
        apply(linear_map(MATRIX), jnp.zeros((4, 3)))
