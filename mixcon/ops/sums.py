"""Sums over pairs other than a softmax: the pairwise sigmoid loss and Gaussian potentials."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.ops import checks
from mixcon.ops.engine import pair_reduce
from mixcon.ops.pairs import Block, Pairs, Shift, everything, identity, weights, wide
from mixcon.ops.reference import Impl, Reduce
from mixcon.ops.statistics import log_weighted


def pairwise_sigmoid(
    queries: Array,
    keys: Array,
    *,
    scale: ArrayLike = 1.0,
    bias: ArrayLike = 0.0,
    positives: Pairs | None = None,
    included: Pairs | None = None,
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> Array:
    """Logistic loss of every pair, summed over the keys of each query.

    `loss_i = Σ_j softplus(L_ij) - T_ij L_ij`, `L_ij = s q_i·k_j + b`; for 0/1 targets this is -Σ_j log σ(±L_ij).

    Args:
      queries, keys: [B, D], [N, D]. scale, bias: scalars, differentiable.
      positives: T in [0, 1], default `pairs.identity()`. included: yes/no pairs that count (default all).
      impl, tile_size, axis_name: see `pair_reduce`.

    Returns:
      [B] float32; SigLIP is its mean.

    Example:
      >>> loss = pairwise_sigmoid(image, text, scale=10.0, bias=-10.0).mean()

    Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, eq. 1.
    """
    checks.features(queries, keys)
    checks.positive("scale", scale)
    dtype = wide(queries.dtype)
    scale, bias = jnp.asarray(scale, dtype), jnp.asarray(bias, dtype)
    positives = identity() if positives is None else positives
    aligned = positives.rule == Shift(0) and queries.shape[0] == keys.shape[0] and included is None
    target = ~everything() if aligned else positives
    kept = everything() if included is None else included
    out = pair_reduce(
        _SigmoidTile(None if aligned else target.rule, None if included is None else kept.rule),
        queries,
        keys,
        {"loss": Reduce("loss", "sum", "row")},
        rows=(target.rows, kept.rows),
        cols=(target.cols, kept.cols),
        shared=(target.shared, kept.shared, scale, bias),
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )["loss"]
    if aligned:
        out = out - (jnp.einsum("bd,bd->b", queries, keys, preferred_element_type=dtype) * scale + bias)
    return out


@dataclasses.dataclass(frozen=True)
class _SigmoidTile:
    positives: Any
    included: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        target_shared, kept_shared, scale, bias = shared
        logits = sim * scale + bias
        loss = jax.nn.softplus(logits)
        if self.positives is not None:
            target = self.positives(Block(row.position, row.data[0]), Block(col.position, col.data[0]), target_shared)
            loss = loss - weights(target, sim.dtype) * logits
        if self.included is not None:
            kept = self.included(Block(row.position, row.data[1]), Block(col.position, col.data[1]), kept_shared)
            loss = jnp.where(kept, loss, 0)
        return {"loss": loss}


def gaussian_potential(
    queries: Array,
    keys: Array | None = None,
    *,
    t: ArrayLike = 2.0,
    included: Pairs | None = None,
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Log of the Gaussian potential of each query: `log Σ_j w_ij exp(-t ‖q_i - k_j‖²)`, and `Σ_j w_ij`.

    Args:
      queries: [B, D], of any norm. keys: [N, D], default `queries`. t: inverse bandwidth, scalar.
      included: pairs or weights w (e.g. `pairs.not_self()`), default all.
      impl, tile_size, axis_name: see `pair_reduce`.

    Returns:
      (log potential [B], weight [B]); an empty sum is -inf.

    Example:
      >>> value, count = gaussian_potential(z, included=pairs.not_self())
      >>> uniformity = jax.nn.logsumexp(value) - jnp.log(count.sum())

    Reference: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere", 2020, section 4.1.2.
    """
    keys = queries if keys is None else keys
    checks.features(queries, keys)
    dtype = wide(queries.dtype)
    included = everything() if included is None else included
    square_q = jnp.square(queries.astype(dtype)).sum(1)
    square_k = jnp.square(keys.astype(dtype)).sum(1)
    out = pair_reduce(
        _PotentialTile(included.rule),
        queries,
        keys,
        {"value": Reduce("value", "logsumexp", "row"), "weight": Reduce("weight", "sum", "row")},
        rows=(square_q, included.rows),
        cols=(square_k, included.cols),
        shared=(jnp.asarray(t, dtype), included.shared),
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )
    return out["value"], out["weight"]


@dataclasses.dataclass(frozen=True)
class _PotentialTile:
    rule: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        t, rule_shared = shared
        included = self.rule(Block(row.position, row.data[1]), Block(col.position, col.data[1]), rule_shared)
        square = row.data[0][:, None] + col.data[0][None, :] - 2 * sim
        return {"value": log_weighted(-t * square, included), "weight": weights(included, sim.dtype)}
