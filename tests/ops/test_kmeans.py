"""K-means by inner product: the original's density, a loop, and what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.ops.kmeans import assign, cluster_density, means, spherical_kmeans

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "meow.npz")
RNG = np.random.default_rng(0)


def blobs(clusters=4, each=10, dim=5):
    centres = np.linalg.qr(RNG.normal(size=(dim, dim)))[0][:clusters]
    x = np.repeat(centres, each, 0) + 0.1 * RNG.normal(size=(clusters * each, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_assignment_and_density_are_the_originals():
    x, centroids = jnp.asarray(GOLDEN["c4/in/x"]), jnp.asarray(GOLDEN["c4/in/raw_centroids"])
    own, product = assign(x, centroids)
    np.testing.assert_array_equal(own, GOLDEN["c4/out/assign"])
    np.testing.assert_allclose(product, GOLDEN["c4/out/inner_product"], rtol=1e-6)
    density = cluster_density(x, centroids, own, temperature=float(GOLDEN["c4/in/tau"]))
    np.testing.assert_allclose(density, GOLDEN["c4/out/density"], rtol=1e-6)
    unit = centroids / jnp.linalg.norm(centroids, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, GOLDEN["c4/out/centroids"], rtol=1e-6)


def test_blobs_are_found_and_the_same_key_gives_the_same_clusters():
    x = jnp.asarray(blobs())
    run = jax.jit(lambda key: spherical_kmeans(x, 4, key=key))
    found, again = run(jax.random.key(0)), run(jax.random.key(0))
    groups = found.assignments.reshape(4, 10)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0].tolist())) == 4
    jax.tree.map(np.testing.assert_array_equal, found, again)
    for k in range(4):
        mean = x[found.assignments == k].mean(0)
        np.testing.assert_allclose(found.centroids[k], mean, atol=1e-5)
    np.testing.assert_allclose(found.score, (x * found.centroids[found.assignments]).sum(), rtol=1e-5)


def test_one_round_is_the_loops():
    x, start = blobs(), blobs()[::8]
    own, product = assign(jnp.asarray(x), jnp.asarray(start))
    for i, row in enumerate(x):
        scores = [float(row @ c) for c in start]
        assert int(own[i]) == int(np.argmax(scores))
        np.testing.assert_allclose(product[i], max(scores), rtol=1e-5)


def test_an_empty_cluster_takes_half_of_the_largest():
    x = jnp.asarray(blobs(2, 5))
    own = jnp.array([0] * 7 + [2] * 3)  # cluster 1 has nobody
    centroids = means(x, own, 3)
    np.testing.assert_allclose((centroids[0] + centroids[1]) / 2, x[:7].mean(0), rtol=1e-5)
    assert not np.array_equal(centroids[0], centroids[1])
    np.testing.assert_allclose(centroids[2], x[7:].mean(0), rtol=1e-5)


def test_more_restarts_do_not_lower_the_score():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(60, 5)).astype(np.float32))
    one, many = (float(spherical_kmeans(x, 12, restarts=r, key=jax.random.key(1)).score) for r in (1, 8))
    assert many > one * 0.99


def test_a_density_of_points_that_look_away_is_a_number():
    x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    density = cluster_density(x, -x[:2], jnp.array([0, 0, 1, 1]), temperature=0.5)
    assert jnp.isfinite(density).all()
    far = cluster_density(x, x[:2], jnp.array([0, 1, 0, 0]), temperature=0.5, distance="l2")
    np.testing.assert_allclose(far.mean(), 0.5, rtol=1e-6)


def test_bad_input_is_refused():
    x = jnp.asarray(blobs())
    for k in (1, 41):
        with pytest.raises(InputError, match=rf"k={k} clusters of 40 rows: it must lie in \[2, 40\]"):
            spherical_kmeans(x, k, key=jax.random.key(0))
    with pytest.raises(InputError, match="restarts=0 must be at least 1"):
        spherical_kmeans(x, 4, restarts=0, key=jax.random.key(0))
    with pytest.raises(InputError, match="not finite"):
        spherical_kmeans(x.at[0, 0].set(jnp.nan), 4, key=jax.random.key(0))
    with pytest.raises(InputError, match="no cluster has two members"):
        cluster_density(x[:4], x[:4], jnp.arange(4), temperature=0.5)
    with pytest.raises(InputError, match="temperature must be"):
        cluster_density(x, x[:2], jnp.zeros(40, jnp.int32), temperature=0.0)
    with pytest.raises(InputError, match="distance='cosine' is unknown"):
        cluster_density(x, x[:2], jnp.zeros(40, jnp.int32), temperature=1.0, distance="cosine")
