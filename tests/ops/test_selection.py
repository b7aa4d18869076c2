"""The k-th largest similarity, against sorting; ties, too few candidates, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.ops import Kth, kth_largest, pairs
from mixcon.train.mesh import make_mesh

QUERIES, KEYS, DIM = 12, 30, 4


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(QUERIES, DIM)), rng.normal(size=(KEYS, DIM))
    return jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32), rng.permutation(KEYS)[:QUERIES].astype(np.int32)


def sorted_similarities(q, k, own):
    similarity = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T
    similarity[np.arange(len(q)), own] = -np.inf
    return -np.sort(-similarity, axis=1)


@pytest.mark.parametrize(("count", "tile"), [(1, None), (6, None), (6, (5, 7)), (KEYS - 1, (5, 7))])
def test_it_is_where_sorting_finds_it(rows, count, tile):
    q, k, own = rows
    apart = ~pairs.same_label(own, np.arange(KEYS, dtype=np.int32))
    impl = "tiled" if tile else "dense"
    found = jax.jit(lambda q, k: kth_largest(q, k, count, included=apart, impl=impl, tile_size=tile))(q, k)
    want = sorted_similarities(q, k, own)
    np.testing.assert_allclose(found.value, want[:, count - 1], rtol=1e-5)
    kept = Kth.weights(jnp.asarray(want[:, :-1], jnp.float32), *found[1:])
    np.testing.assert_array_equal(kept, np.broadcast_to(np.arange(KEYS - 1) < count, kept.shape))


def test_over_a_mesh_it_is_the_same(rows):
    q, k, _ = rows
    want = kth_largest(q, k, 5, impl="dense")
    with jax.set_mesh(make_mesh(data=4, devices=jax.devices()[:4])):
        got = jax.jit(lambda q, k: kth_largest(q, k, 5, impl="ring"))(q, k)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_ties_at_the_end_share_what_is_left():
    keys = jnp.asarray([[0.9], [0.5], [0.5], [0.5], [-0.5]])
    found = kth_largest(jnp.ones((1, 1)), keys, 3)
    weights = Kth.weights(keys.T, *found[1:])
    np.testing.assert_allclose(weights, [[1, 2 / 3, 2 / 3, 2 / 3, 0]], rtol=1e-6)


def test_neighbours_in_the_last_bit_are_told_apart():
    value = np.float32(0.7)
    keys = jnp.asarray([np.nextafter(value, np.float32(1)), value, np.nextafter(value, np.float32(0))])[:, None]
    for count in (1, 2, 3):
        found = kth_largest(jnp.ones((1, 1)), keys, count)
        np.testing.assert_array_equal(Kth.weights(keys.T, *found[1:]), [np.arange(3) < count])


def test_with_too_few_candidates_all_are_kept():
    keys = jnp.asarray([[0.3], [-0.2], [0.1]])
    found = kth_largest(jnp.ones((1, 1)), keys, 3, included=pairs.not_self())
    assert found.value == -np.inf
    np.testing.assert_array_equal(Kth.weights(keys.T, *found[1:])[:, 1:], [[1, 1]])


def test_nothing_to_count_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        kth_largest(jnp.ones((1, 1)), jnp.ones((2, 1)), 0)
