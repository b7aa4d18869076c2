"""Even assignments against plain division of a matrix; factored ones against those; tiles, meshes, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.ops import Block, contrastive_cross_entropy, sinkhorn_knopp, sinkhorn_pairs
from mixcon.train.mesh import make_mesh

SAMPLES, KEYS, DIM = 12, 20, 4
EPSILON = 0.1


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(n, DIM)) for n in (SAMPLES, KEYS)))
    return jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32)


def divided(scores, num_iters):
    """The matrix itself, columns and rows divided in turn."""
    q = np.exp(np.asarray(scores, np.float64) / EPSILON)
    for _ in range(num_iters):
        q = q / q.sum(0, keepdims=True) / KEYS
        q = q / q.sum(1, keepdims=True) / SAMPLES
    return q * SAMPLES


@pytest.mark.parametrize("num_iters", [1, 3])
def test_it_is_division_of_columns_and_rows(rows, num_iters):
    q, k = rows
    want = divided(q @ k.T, num_iters)
    got = sinkhorn_knopp(q @ k.T, epsilon=EPSILON, num_iters=num_iters)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    factored = sinkhorn_pairs(q, k, epsilon=EPSILON, num_iters=num_iters)
    np.testing.assert_allclose(factored.matrix(SAMPLES, KEYS), want, rtol=5e-5, atol=1e-7)
    part = factored.tile(  # any tile of it comes from blocks of its rows and columns
        Block(jnp.arange(3, dtype=jnp.int32), jax.tree.map(lambda x: x[:3], factored.rows)),
        Block(jnp.arange(5, dtype=jnp.int32), jax.tree.map(lambda x: x[:5], factored.cols)),
        factored.shared,
    )
    np.testing.assert_allclose(part, want[:3, :5], rtol=5e-5, atol=1e-7)


def test_many_steps_make_columns_even(rows):
    q, k = rows
    found = sinkhorn_knopp(q @ k.T, epsilon=1.0, num_iters=50)
    np.testing.assert_allclose(found.sum(0), SAMPLES / KEYS, rtol=1e-4)


def cross_entropy(q, k, impl):
    targets = sinkhorn_pairs(k[:SAMPLES], q, epsilon=EPSILON, impl=impl)
    return contrastive_cross_entropy(q, k[:SAMPLES], scale=5.0, positives=targets, impl=impl).rows.loss.mean()


def test_targets_are_the_same_on_a_mesh_and_carry_no_gradient(rows):
    q, k = rows
    weights = sinkhorn_knopp(k[:SAMPLES] @ q.T, epsilon=EPSILON)

    def plain(q, k):
        return -jnp.sum(weights * jax.nn.log_softmax(5.0 * q @ k[:SAMPLES].T)) / SAMPLES

    want = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(q, k)
    with jax.set_mesh(make_mesh(data=4, devices=jax.devices()[:4])):
        ring = jax.jit(jax.value_and_grad(lambda q, k: cross_entropy(q, k, "ring"), argnums=(0, 1)))(q, k)
    for a, b in zip(jax.tree.leaves(ring), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_columns_are_summed_over_devices(rows):
    scores = rows[0] @ rows[1].T
    inside = jax.shard_map(
        lambda s: sinkhorn_knopp(s, epsilon=EPSILON, axis_name="data"),
        mesh=make_mesh(data=4, devices=jax.devices()[:4]),
        in_specs=jax.sharding.PartitionSpec("data"),
        out_specs=jax.sharding.PartitionSpec("data"),
    )
    np.testing.assert_allclose(jax.jit(inside)(scores), sinkhorn_knopp(scores, epsilon=EPSILON), rtol=1e-4, atol=1e-7)


def test_scores_beyond_the_range_of_the_exponential():
    found = sinkhorn_knopp(jnp.asarray([[900.0, 0.0], [0.0, 900.0]]), epsilon=0.05)
    np.testing.assert_allclose(found, np.eye(2), atol=1e-6)


def test_half_precision_is_widened():
    found = sinkhorn_knopp(jnp.ones((2, 3), jnp.bfloat16), epsilon=0.05)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-5)


def test_one_sample_is_spread_evenly():
    np.testing.assert_allclose(sinkhorn_knopp(jnp.asarray([[0.3, -0.2]])), [[0.5, 0.5]], rtol=1e-5)
    np.testing.assert_allclose(sinkhorn_knopp(jnp.asarray([[0.3]])), [[1.0]])


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (np.zeros((2, 2, 2)), {}, "must be"),
        (np.full((2, 2), np.nan), {}, "must be finite"),
        (np.zeros((2, 2)), {"epsilon": 0.0}, "epsilon"),
        (np.zeros((2, 2)), {"num_iters": 0}, "num_iters"),
    ],
)
def test_bad_input(scores, options, message):
    with pytest.raises(InputError, match=message):
        sinkhorn_knopp(jnp.asarray(scores, jnp.float32), **options)
    if options:
        with pytest.raises(InputError, match=message):
            sinkhorn_pairs(jnp.eye(2), jnp.eye(2), **options)
