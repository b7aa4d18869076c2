"""Soft assignments of equal mass (Sinkhorn-Knopp), in log space: of scores, or of pairs whose matrix is never formed.

Alternating divisions by column and row sums multiply `exp(S/ε)` by one factor for each row and one for each column.
Their logarithms are all there is to know of the result, so that a tile of it can be built again from the features.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.engine import pair_reduce
from mixcon.ops.pairs import Block, Pairs, wide
from mixcon.ops.reference import Impl, Reduce


def sinkhorn_knopp(scores: Array, *, epsilon: float = 0.05, num_iters: int = 3, axis_name: str | None = None) -> Array:
    """Assignments of samples to K columns that are as even as a few steps of Sinkhorn-Knopp make them.

    `q = exp(S/ε)`, then `num_iters` times: each column divided by its sum, each row by its sum. Rows sum to 1.

    Args:
      scores: [B, K], cosines or the like; float32 (or less, which becomes float32).
      epsilon: ε > 0; small values give hard assignments.
      num_iters: at least 1.
      axis_name: columns are summed over all devices.

    Returns:
      [B, K] without a gradient.

    Raises:
      InputError: scores that are no matrix or not finite, an ε not above zero, no iteration.

    Example:
      >>> targets = sinkhorn_knopp(l2_normalize(z) @ prototypes)

    Reference: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", 2013; Caron et al.,
      "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, eq. 3 and 4.
    """
    _check(epsilon, num_iters)
    if scores.ndim != 2:
        raise InputError(f"scores must be [B, K], got shape {scores.shape}.")
    checks.finite("scores", scores)
    dtype = wide(scores.dtype)
    logits = lax.stop_gradient(scores).astype(dtype) / jnp.asarray(epsilon, dtype)
    for _ in range(num_iters):
        top = logits.max(0)
        top = top if axis_name is None else lax.pmax(top, axis_name)
        total = jnp.exp(logits - top[None, :]).sum(0)
        total = total if axis_name is None else lax.psum(total, axis_name)
        logits = jax.nn.log_softmax(logits - (top + jnp.log(total))[None, :], axis=1)
    return jnp.exp(logits)


def sinkhorn_pairs(
    queries: Array,
    keys: Array,
    *,
    epsilon: float = 0.05,
    num_iters: int = 3,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Pairs:
    """`sinkhorn_knopp(queries keysᵀ)` as factored pairs: the targets of a contrast without a batch × batch matrix.

    `q_ij = exp(x_i·y_j / ε + a_i + b_j)`; each iteration is two passes of the engine,
    `b_j = -log Σ_i exp(x_i·y_j / ε + a_i)`, then `a_i = -log Σ_j exp(x_i·y_j / ε + b_j)`.

    Args:
      queries, keys: [B, D] and [N, D], unit rows; the targets carry no gradient.
      epsilon, num_iters: as for `sinkhorn_knopp`.
      impl, axis_name: see `pair_reduce`.

    Returns:
      `Pairs` whose rows sum to 1.

    Raises:
      InputError: as for `sinkhorn_knopp` and `pair_reduce`.

    Example:
      >>> targets = sinkhorn_pairs(image[1], text[1])
      >>> loss = contrastive_cross_entropy(image[0], text[0], scale=10.0, positives=targets).rows.loss.mean()

    Reference: as for `sinkhorn_knopp`.
    """
    _check(epsilon, num_iters)
    checks.features(queries, keys)
    queries, keys = lax.stop_gradient((queries, keys))
    dtype = wide(queries.dtype)
    sharpness = jnp.asarray(1 / epsilon, dtype)
    row, col = jnp.zeros(queries.shape[0], dtype), jnp.zeros(keys.shape[0], dtype)

    def total(per: str) -> Array:
        return pair_reduce(
            _logits,
            queries,
            keys,
            {"total": Reduce("logits", "logsumexp", per)},  # type: ignore[arg-type]
            rows=row,
            cols=col,
            shared=sharpness,
            impl=impl,
            axis_name=axis_name,
        )["total"]

    for _ in range(num_iters):
        col = col - total("col")
        row = row - total("row")
    return Pairs(_plan, (queries, lax.stop_gradient(row)), (keys, lax.stop_gradient(col)), sharpness)


def _logits(sim: Array, row: Block, col: Block, sharpness: Array) -> dict[str, Array]:
    return {"logits": sim * sharpness + row.data[:, None] + col.data[None, :]}


def _plan(row: Block, col: Block, sharpness: Array) -> Array:
    (x, a), (y, b) = row.data, col.data
    sim = jnp.dot(x, y.T, preferred_element_type=wide(x.dtype))
    return jnp.exp(sim * sharpness + a[:, None] + b[None, :])


def _check(epsilon: float, num_iters: int) -> None:
    if not epsilon > 0:
        raise InputError(f"epsilon={epsilon} must be above zero; it divides the scores.")
    if num_iters < 1:
        raise InputError(f"num_iters={num_iters} must be at least 1, or the targets sum to nothing in particular.")
