"""What contrastive losses need to know of the pair matrix: log-denominators, positive sums and masses, per anchor."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.engine import pair_reduce
from mixcon.ops.pairs import Block, Pairs, Shift, identity, valid, weights, wide
from mixcon.ops.reference import Impl, Reduce


class Statistics(NamedTuple):
    """Of one direction: one entry for each anchor. Differentiable, in float32."""

    log_denominator: Array  # log Σ_j D_ij exp(L_ij); -inf for an empty denominator
    log_positive: Array  # log Σ_j T_ij exp(L_ij); -inf without a positive
    positive: Array  # Σ_j T_ij L_ij
    mass: Array  # Σ_j T_ij


def pair_statistics(
    queries: Array,
    keys: Array,
    *,
    scale: ArrayLike = 1.0,
    col_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    margin: ArrayLike | None = None,
    positives: Pairs | None = None,
    denominator: Pairs | None = None,
    row_mask: ArrayLike | None = None,
    col_mask: ArrayLike | None = None,
    symmetric: bool = False,
    log_positive: bool = False,
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> tuple[Statistics, Statistics | None]:
    """Statistics of the logits of each query over the keys, and of each key over the queries.

    `L_ij = s_i (q_i·k_j - m T_ij) + b`, with targets T and denominator weights D.

    Args: as for `contrastive_cross_entropy`. log_positive: compute that field too (else it may be -inf).

    Returns:
      (of the queries [B], of the keys [N] or None unless `symmetric`).

    Example:
      >>> row, _ = pair_statistics(q, k, scale=10.0)
      >>> info_nce = (row.log_denominator - row.positive).mean()
    """
    checks.features(queries, keys)
    checks.positive("scale", scale)
    checks.positive("col_scale", col_scale)
    dtype = wide(queries.dtype)
    num_rows, num_cols = queries.shape[0], keys.shape[0]
    row_scale = anchor_scale("scale", scale, num_rows, dtype)
    if col_scale is None and symmetric and row_scale.ndim == 1:
        raise InputError("scale is one per query, so a symmetric loss needs col_scale too (a scalar or one per key).")
    column_scale = None if col_scale is None else anchor_scale("col_scale", col_scale, num_cols, dtype)
    offset = jnp.zeros((), dtype) if bias is None else jnp.asarray(bias, dtype)
    if offset.ndim:
        raise InputError(f"bias must be a scalar, got shape {offset.shape}.")
    positives = identity() if positives is None else positives

    # Aligned pairs lie on the diagonal: their sums are row-wise products, and need no tile.
    aligned = positives.rule == Shift(0) and num_rows == num_cols and margin is None
    if row_mask is not None or col_mask is not None:
        row_mask = jnp.ones(num_rows, bool) if row_mask is None else jnp.asarray(row_mask, bool)
        col_mask = jnp.ones(num_cols, bool) if col_mask is None else jnp.asarray(col_mask, bool)
        checks.leading("row_mask", row_mask, num_rows, "queries")
        checks.leading("col_mask", col_mask, num_cols, "keys")
        both = valid(row_mask, col_mask)
        positives = positives & both
        denominator = both if denominator is None else denominator & both

    tile = _StatisticsTile(
        None if aligned else positives.rule,
        None if denominator is None else denominator.rule,
        margin is not None,
        column_scale is not None,
        log_positive,
    )
    reductions = {"row_denominator": Reduce("row_denominator", "logsumexp", "row")}
    if symmetric:
        channel = "row_denominator" if column_scale is None else "col_denominator"
        reductions["col_denominator"] = Reduce(channel, "logsumexp", "col")
    for per in ("row", "col") if symmetric and not aligned else ("row",) if not aligned else ():
        logits = "row" if column_scale is None else per
        reductions[f"{per}_target"] = Reduce(f"{logits}_target", "sum", per)
        reductions[f"{per}_mass"] = Reduce("mass", "sum", per)
        if log_positive:
            reductions[f"{per}_log_positive"] = Reduce(f"{logits}_log_positive", "logsumexp", per)
    none = Pairs(_nothing)
    t, d = none if aligned else positives, denominator or none
    out = pair_reduce(
        tile,
        queries,
        keys,
        reductions,
        rows={"scale": row_scale if row_scale.ndim else (), "positives": t.rows, "denominator": d.rows},
        cols={
            "scale": column_scale if column_scale is not None and column_scale.ndim else (),
            "positives": t.cols,
            "denominator": d.cols,
        },
        shared={
            "scale": () if row_scale.ndim else row_scale,
            "col_scale": () if column_scale is None or column_scale.ndim else column_scale,
            "bias": offset,
            "margin": () if margin is None else jnp.asarray(margin, dtype),
            "positives": t.shared,
            "denominator": d.shared,
        },
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )
    if aligned:
        mask = jnp.ones(num_rows, bool) if row_mask is None or col_mask is None else row_mask & col_mask
        dot = jnp.einsum("bd,bd->b", queries, keys, preferred_element_type=dtype)
        for per, own_scale in (("row", row_scale), ("col", row_scale if column_scale is None else column_scale)):
            value = dot * own_scale + offset
            out[f"{per}_target"] = jnp.where(mask, value, 0)
            out[f"{per}_mass"] = mask.astype(dtype)
            out[f"{per}_log_positive"] = jnp.where(mask, value, -jnp.inf)

    def collect(per: str) -> Statistics:
        missing = jnp.full_like(out[f"{per}_mass"], -jnp.inf)
        log_pos = out.get(f"{per}_log_positive", missing)
        return Statistics(out[f"{per}_denominator"], log_pos, out[f"{per}_target"], out[f"{per}_mass"])

    return collect("row"), collect("col") if symmetric else None


@dataclasses.dataclass(frozen=True)
class _StatisticsTile:
    """The tile function of `pair_statistics`; static, hence hashable."""

    positives: Any
    denominator: Any
    margin: bool
    own_col_scale: bool
    log_positive: bool

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        def build(rule: Any, name: str) -> Array:
            return rule(Block(row.position, row.data[name]), Block(col.position, col.data[name]), shared[name])

        target = None if self.positives is None else weights(build(self.positives, "positives"), sim.dtype)
        pair_weight = None if self.denominator is None else build(self.denominator, "denominator")
        if self.margin:
            sim = sim - shared["margin"] * target
        row_scale = shared["scale"] if isinstance(row.data["scale"], tuple) else row.data["scale"][:, None]
        logits = {"row": sim * row_scale + shared["bias"]}
        if self.own_col_scale:
            col_scale = shared["col_scale"] if isinstance(col.data["scale"], tuple) else col.data["scale"][None, :]
            logits["col"] = sim * col_scale + shared["bias"]
        channels: dict[str, Array] = {}
        for per, value in logits.items():
            channels[f"{per}_denominator"] = log_weighted(value, pair_weight)
            if target is not None:
                channels[f"{per}_target"] = target * value
                if self.log_positive:
                    channels[f"{per}_log_positive"] = log_weighted(value, target)
        if target is not None:
            channels["mass"] = target
        return channels


def log_weighted(logits: Array, weight: Array | None) -> Array:
    """L_ij + log w_ij, with -inf (and no gradient) where the weight is zero or False."""
    if weight is None:
        return logits
    if weight.dtype == jnp.bool_:
        return jnp.where(weight, logits, -jnp.inf)
    kept = weight > 0
    return jnp.where(kept, logits + jnp.log(jnp.where(kept, weight, 1).astype(logits.dtype)), -jnp.inf)


def anchor_scale(name: str, value: ArrayLike, size: int, dtype: Any) -> Array:
    """1/temperature as a float array, a scalar or one per anchor [size]."""
    scale = jnp.asarray(value, dtype)
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] != size):
        raise InputError(f"{name} must be a scalar or one per anchor [{size}], got shape {scale.shape}.")
    return scale


def _nothing(row: Block, col: Block, shared: Any) -> Array:
    raise AssertionError("never built")
