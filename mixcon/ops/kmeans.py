"""K-means by inner product, inside jit, and how dense its clusters are.

Shapes: N rows, D features, K clusters.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks

SPLIT = 1 / 1024  # relative distance of the two halves of a cluster that is split to fill an empty one
Distance = Literal["inner", "l2"]


class Clusters(NamedTuple):
    """A clustering."""

    assignments: Array  # [N] int32
    centroids: Array  # [K, D] plain means, not of unit length
    score: Array  # scalar, Σ_i x_i·c_{y_i}


def spherical_kmeans(x: Array, k: int, *, iters: int = 20, restarts: int = 5, key: Array) -> Clusters:
    """K-means that assigns by inner product: `y_i = argmax_k x_i·c_k`, `c_k = mean of its members`.

    From distinct rows drawn at random; an empty cluster takes half of one of the largest. The best of several starts
    by `Σ_i x_i·c_{y_i}`. The same key gives the same clusters; no gradient flows.

    Args:
      x: [N, D], usually unit rows.
      k: clusters, 2 ≤ k ≤ N.
      iters: rounds of assignment and mean. restarts: starts.
      key: of the starts.

    Returns:
      `Clusters`; pass static `k`, `iters`, `restarts` under jit.

    Raises:
      InputError: k outside [2, N], no round or start, x not [N, D] or (outside jit) not finite.

    Example:
      >>> found = spherical_kmeans(features, 100, key=jax.random.key(0))

    Reference: Dhillon, Modha, "Concept Decompositions for Large Sparse Text Data using Clustering", 2001.
    """
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x must be [N, D] floats, got {x.dtype} {x.shape}.")
    check_clusters(k, x.shape[0])
    if iters < 1 or restarts < 1:
        raise InputError(f"iters={iters} and restarts={restarts} must be at least 1.")
    known = checks.concrete(x)
    if known is not None and not np.isfinite(known).all():
        raise InputError("x holds values that are not finite.")
    x = lax.stop_gradient(x)

    def start(key: Array) -> tuple[Array, Array]:
        centroids = x[jax.random.choice(key, x.shape[0], (k,), replace=False)]

        def round_(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            own, similarity = assign(x, carry[0])
            return means(x, own, k), similarity.sum()

        return lax.fori_loop(0, iters, round_, (centroids, jnp.zeros((), x.dtype)))

    # One start after the other: all at once, the similarities would not fit into a core's cache.
    centroids, score = lax.map(start, jax.random.split(key, restarts))
    best = centroids[jnp.argmax(score)]
    own, similarity = assign(x, best)
    return Clusters(own, best, similarity.sum())


def check_clusters(k: int, size: int) -> None:
    """Refuse a number of clusters that cannot be."""
    if not 2 <= k <= size:
        raise InputError(f"k={k} clusters of {size} rows: it must lie in [2, {size}].")


def assign(x: Array, centroids: Array) -> tuple[Array, Array]:
    """Cluster of the largest inner product for each row (the first of equals), and that product.

    Example:
      >>> own, product = assign(x, centroids)
    """
    # Clusters along the first axis, and the index as the least that attains the maximum: both vectorise over rows,
    # which argmax does not.
    similarity = centroids @ x.T
    top = similarity.max(0)
    index = jnp.arange(len(centroids), dtype=jnp.int32)[:, None]
    return jnp.where(similarity >= top[None], index, len(centroids) - 1).min(0), top


def means(x: Array, own: Array, k: int) -> Array:
    """Mean of each cluster; the r-th empty one takes half of the r-th largest."""
    total = jax.ops.segment_sum(x, own, k)
    size = jax.ops.segment_sum(jnp.ones(len(own), x.dtype), own, k)
    centroids = total / jnp.maximum(size, 1)[:, None]
    empty = size == 0
    donor = jnp.argsort(-size)[jnp.cumsum(empty) - 1]  # of the empty ones only
    apart = jnp.where(jnp.arange(x.shape[1]) % 2 == 0, 1 + SPLIT, 1 - SPLIT).astype(x.dtype)[None]
    gives = jnp.zeros(k, bool).at[jnp.where(empty, donor, k)].set(True, mode="drop")
    halved = jnp.where(gives[:, None], centroids * (2 - apart), centroids)
    return jnp.where(empty[:, None], centroids[donor] * apart, halved)


def cluster_density(
    x: Array, centroids: Array, assignments: Array, *, temperature: ArrayLike, distance: Distance = "inner"
) -> Array:
    """Temperature of each cluster: lower for the denser, `temperature` on average.

    `φ_k = mean_{i in k} √d_i / log(n_k + 5)`; clusters of at most one member take the largest φ; clipped to the 10th
    and 90th percentile; `φ ← τ φ / mean φ`. With "inner" d is the inner product of a member with the plain mean of its
    cluster, as the original has it (a dense cluster then gets a high φ); negative ones count as 0. "l2": Euclidean
    distance, and √d its root.

    Args:
      x: [N, D]. centroids: [K, D] plain means. assignments: [N].
      temperature: τ > 0.

    Returns:
      φ [K], above 0 but for clusters whose members all have d = 0.

    Raises:
      InputError: shapes that do not fit; (outside jit) no cluster of two or more, where φ is 0/0.

    Example:
      >>> density = cluster_density(x, found.centroids, found.assignments, temperature=0.4)

    Reference: Li, Zhou, Xiong, Hoi, "Prototypical Contrastive Learning of Unsupervised Representations", 2021, eq. 12.
    """
    if centroids.ndim != 2 or assignments.shape != x.shape[:1] or centroids.shape[1:] != x.shape[1:]:
        raise InputError(f"x {x.shape}, centroids {centroids.shape}, assignments {assignments.shape} do not fit.")
    if distance not in get_args(Distance):
        raise InputError(f"distance={distance!r} is unknown; choose one of {', '.join(get_args(Distance))}.")
    checks.positive("temperature", temperature)
    own = centroids[assignments]
    d = jnp.maximum((x * own).sum(1), 0) if distance == "inner" else jnp.linalg.norm(x - own, axis=1)
    k = len(centroids)
    size = jax.ops.segment_sum(jnp.ones(len(d), x.dtype), assignments, k)
    known = checks.concrete(size)
    if known is not None and known.max() < 2:
        raise InputError("no cluster has two members: the density of single points is not defined; use fewer clusters.")
    spread = jax.ops.segment_sum(jnp.sqrt(d), assignments, k) / jnp.maximum(size, 1)
    phi = jnp.where(size > 1, spread / jnp.log(size + 5), 0)
    phi = jnp.where(size > 1, phi, phi.max())
    phi = jnp.clip(phi, jnp.percentile(phi, 10), jnp.percentile(phi, 90))
    return lax.stop_gradient(jnp.asarray(temperature, x.dtype) * phi / phi.mean())
