"""Pairwise sigmoid, Gaussian potential and top-k against plain loops, and over a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mixcon import ops
from mixcon.errors import InputError
from mixcon.ops import pairs

RNG = np.random.default_rng(3)
Q = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
K = jnp.asarray(RNG.normal(size=(11, 4)), jnp.float32)
Y, YK = np.arange(9) % 3, np.arange(11) % 3


def ring_of(devices=4):
    return jax.set_mesh(jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]))


@pytest.mark.parametrize("impl", ["dense", "tiled", "ring"])
def test_pairwise_sigmoid_is_a_sum_of_log_sigmoids(impl):
    def total(q, k, scale, bias):
        loss = ops.pairwise_sigmoid(
            q, k, scale=scale, bias=bias, positives=pairs.same_label(Y, YK), impl=impl, tile_size=(4, 5)
        )
        return jnp.sum(loss * jnp.arange(1.0, 10.0)), loss

    expected = np.zeros(9)
    for i in range(9):
        for j in range(11):
            logit = 2.0 * np.dot(np.float64(Q[i]), np.float64(K[j])) - 1.0
            expected[i] += np.log1p(np.exp(-logit if Y[i] == YK[j] else logit))
    with ring_of():
        (_, loss), gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(Q, K, 2.0, -1.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    sign = np.where(Y[:, None] == YK, 1.0, -1.0)
    plain = lambda q, k, s, b: jnp.sum(jnp.arange(1.0, 10.0)[:, None] * -jax.nn.log_sigmoid(sign * (s * q @ k.T + b)))  # noqa: E731
    for a, b in zip(gradient, jax.grad(plain, (0, 1, 2, 3))(Q, K, 2.0, -1.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_siglip_by_its_diagonal_equals_siglip_by_its_tiles():
    square = K[:9]
    fast = ops.pairwise_sigmoid(Q, square, scale=3.0, bias=-2.0)
    slow = ops.pairwise_sigmoid(Q, square, scale=3.0, bias=-2.0, positives=pairs.same_label(np.arange(9)))
    np.testing.assert_allclose(fast, slow, rtol=1e-5)
    kept = ops.pairwise_sigmoid(Q, square, scale=3.0, bias=-2.0, included=pairs.identity())
    np.testing.assert_allclose(kept, -jax.nn.log_sigmoid(3.0 * jnp.sum(Q * square, 1) - 2.0), rtol=1e-5)


@pytest.mark.parametrize("impl", ["dense", "tiled", "gather"])
def test_gaussian_potential(impl):
    with ring_of():
        value, count = ops.gaussian_potential(Q, t=0.5, included=pairs.not_self(), impl=impl, tile_size=4)
    square = ((np.float64(Q)[:, None] - np.float64(Q)[None]) ** 2).sum(-1)
    potential = np.exp(-0.5 * square) * (1 - np.eye(9))
    np.testing.assert_allclose(value, np.log(potential.sum(1)), rtol=1e-5)
    np.testing.assert_array_equal(count, 8)


def brute(q, k, number, allowed):
    sim = np.where(allowed, np.float32(q @ k.T), -np.inf)
    order = np.argsort(-sim, axis=1, kind="stable")[:, :number]
    value = np.take_along_axis(sim, order, 1)
    return value, np.where(np.isneginf(value), -1, order)


@pytest.mark.parametrize("impl", ["dense", "tiled", "ring"])
@pytest.mark.parametrize("number", [1, 3, 8])
def test_top_k(impl, number):
    """More than some rows have, with ties, over tiles that overlap and blocks that arrive in any order."""
    grid = jnp.round(2 * Q), jnp.round(2 * K).at[9].set(jnp.round(2 * K)[1])
    with ring_of(3):
        call = functools.partial(ops.top_k, k=number, included=~pairs.same_label(Y, YK), impl=impl, tile_size=4)
        got = jax.jit(call)(*grid)
    value, index = brute(np.asarray(grid[0]), np.asarray(grid[1]), number, Y[:, None] != YK)
    np.testing.assert_array_equal(got.similarity, value)
    np.testing.assert_array_equal(got.indices, index)


def test_top_k_carries_no_gradient():
    assert np.all(jax.grad(lambda q: jnp.sum(ops.top_k(q, K, 2).similarity))(Q) == 0)
    with pytest.raises(InputError, match="k must be at least 1"):
        ops.top_k(Q, K, 0)
