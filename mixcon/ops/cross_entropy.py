"""Contrastive cross-entropies: a softmax over similarities against a target row, for any factored target."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.ops.engine import pair_reduce
from mixcon.ops.pairs import Block, Pairs, everything, weights
from mixcon.ops.reference import Impl, Reduce
from mixcon.ops.statistics import Statistics, anchor_scale, pair_statistics


class Direction(NamedTuple):
    """One direction of a contrastive loss: one entry for each anchor."""

    loss: Array  # [B]; 0 for an anchor without a positive
    log_denominator: Array  # [B] log Σ_j D_ij exp(L_ij)
    positive: Array  # [B] Σ_j T_ij L_ij, the target-weighted sum of logits
    mass: Array  # [B] Σ_j T_ij

    @property
    def has_positive(self) -> Array:
        """[B] bool: anchors that have a positive."""
        return self.mass > 0

    @property
    def without_positive(self) -> Array:
        """How many anchors have none (of this device's, under `axis_name`)."""
        return jnp.sum(~self.has_positive)

    @property
    def probability(self) -> Array:
        """[B] softmax probability of the positive (geometric mean over several; 0 without one)."""
        mean = self.positive / jnp.where(self.has_positive, self.mass, 1)
        return jnp.where(self.has_positive, jnp.exp(mean - self.log_denominator), 0)


class CrossEntropy(NamedTuple):
    """`rows` with the queries as anchors, `cols` with the keys (None unless symmetric)."""

    rows: Direction
    cols: Direction | None


class Bank(NamedTuple):
    """More keys for the query direction: a queue, a memory, mined negatives."""

    keys: Array  # [M, D]
    positives: Pairs | None = None  # [B, M]; None: none of them is a positive
    denominator: Pairs | None = None  # [B, M] weights in the denominator; None: all with weight 1


def contrastive_cross_entropy(
    queries: Array,
    keys: Array,
    *,
    scale: ArrayLike = 1.0,
    col_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    margin: ArrayLike | None = None,
    positives: Pairs | None = None,
    denominator: Pairs | None = None,
    form: Literal["out", "in"] = "out",
    normalize_targets: bool = True,
    symmetric: bool = False,
    row_mask: ArrayLike | None = None,
    col_mask: ArrayLike | None = None,
    banks: Sequence[Bank] = (),
    row_keys: Array | None = None,
    empty: Literal["zero", "error"] = "zero",
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> CrossEntropy:
    """Cross-entropy of each query's softmax over the keys against its row of targets, and of each key's over queries.

    `L_ij = s_i (q_i·k_j - m T_ij) + b`, `R_i = log Σ_j D_ij exp(L_ij)`, `M_i = Σ_j T_ij`;
    form "out": `loss_i = (1/M_i) Σ_j T_ij (R_i - L_ij)`, without 1/M_i when `normalize_targets` is False;
    form "in": `loss_i = R_i - log[(1/M_i) Σ_j T_ij exp(L_ij)]`, likewise.

    Args:
      queries, keys: [B, D] and [N, D], unit rows for cosine logits; float32 or bfloat16.
      scale: 1/temperature, a scalar or [B] for one per query. Differentiable, like everything that is an array.
      col_scale: the same for the key direction, a scalar or [N]; default `scale`, which must then be a scalar.
      bias: scalar added to the logits. margin: scalar taken from the similarity of positives.
      positives: T, default `pairs.identity()`. denominator: D, weights of pairs (positive's own included); default 1.
      form: mean of logs ("out") or log of the mean ("in") over several positives.
      symmetric: return the key direction too, from the same tiles.
      row_mask, col_mask: [B], [N] bool, False for padding: those anchors have loss 0 and appear in no denominator.
      banks: further keys for the query direction. row_keys: [B, M, D] further negatives of each query's own.
      empty: an anchor without a positive costs 0 and is counted (`without_positive`), or is an error (outside jit).
      impl, tile_size, axis_name: see `pair_reduce`. Under `axis_name`, banks are local to the device.

    Returns:
      `CrossEntropy` with per-anchor losses and statistics; take the mean yourself.

    Raises:
      InputError: shapes that do not fit, a scale that is not above zero, or, when asked, an anchor without a positive.

    Example:
      >>> ce = contrastive_cross_entropy(image, text, scale=jnp.exp(log_scale), symmetric=True)
      >>> loss = (ce.rows.loss.mean() + ce.cols.loss.mean()) / 2

    Reference: Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4; Khosla et
      al., "Supervised Contrastive Learning", 2020, eq. 2 ("out") and 3 ("in").
    """
    if form not in ("out", "in"):
        raise InputError(f"form must be 'out' or 'in', got {form!r}.")
    row, col = pair_statistics(
        queries,
        keys,
        scale=scale,
        col_scale=col_scale,
        bias=bias,
        margin=margin,
        positives=positives,
        denominator=denominator,
        row_mask=row_mask,
        col_mask=col_mask,
        symmetric=symmetric,
        log_positive=form == "in",
        impl=impl,
        tile_size=tile_size,
        axis_name=axis_name,
    )
    for bank in banks:
        more, _ = pair_statistics(
            queries,
            bank.keys,
            scale=scale,
            bias=bias,
            margin=margin if bank.positives is not None else None,
            positives=~everything() if bank.positives is None else bank.positives,
            denominator=bank.denominator,
            row_mask=row_mask,
            log_positive=form == "in",
            impl="auto" if axis_name else impl,
        )
        row = _merge(row, more)
    if row_keys is not None:
        if row_keys.ndim != 3 or row_keys.shape[::2] != queries.shape:
            raise InputError(f"row_keys must be [B, M, D] beside queries {queries.shape}, got {row_keys.shape}.")
        own = jnp.einsum("bd,bmd->bm", queries, row_keys, preferred_element_type=row.positive.dtype)
        own = own * jnp.asarray(scale, own.dtype).reshape(-1, 1) + (0 if bias is None else jnp.asarray(bias, own.dtype))
        extra = jax.nn.logsumexp(own, axis=1)
        row = row._replace(log_denominator=jnp.logaddexp(row.log_denominator, extra))
    rows = _direction(row, form, normalize_targets)
    cols = None if col is None else _direction(col, form, normalize_targets)
    if empty == "error":
        checks.some_positive("queries", rows.mass, row_mask)
        if cols is not None:
            checks.some_positive("keys", cols.mass, col_mask)
    return CrossEntropy(rows, cols)


def per_positive_cross_entropy(
    queries: Array,
    keys: Array,
    *,
    positives: Pairs,
    negatives: Pairs | None = None,
    scale: ArrayLike = 1.0,
    impl: Impl = "auto",
    tile_size: int | tuple[int, int] | None = None,
    axis_name: str | None = None,
) -> Direction:
    """Each positive against the negatives only, with a denominator of its own.

    `L_ij = s_i q_i·k_j`, `n_i = log Σ_j D_ij exp(L_ij)`;
    `loss_i = (1/M_i) Σ_j T_ij [log(exp(L_ij) + exp(n_i)) - L_ij]`.
    Unlike in a softmax, no positive is ever pushed down by another.

    Args:
      queries, keys: [B, D] and [N, D]. scale: scalar or [B].
      positives: T. negatives: D, default `~positives` (T must then be yes/no).
      impl, tile_size, axis_name: see `pair_reduce`.

    Returns:
      `Direction`; `log_denominator` is n_i, and `loss * mass` is the sum over positives, for micro averages.

    Example:
      >>> loss = per_positive_cross_entropy(q, k, positives=pairs.multi_label(y, y_k), scale=20.0).loss.mean()

    Reference: Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification", ICLR 2024 (decoupled softmax).
    """
    placement: dict[str, Any] = {"impl": impl, "tile_size": tile_size, "axis_name": axis_name}
    negatives = ~positives if negatives is None else negatives
    row, _ = pair_statistics(queries, keys, scale=scale, positives=positives, denominator=negatives, **placement)
    row_scale = jnp.broadcast_to(anchor_scale("scale", scale, queries.shape[0], row.positive.dtype), row.positive.shape)
    out = pair_reduce(
        _PerPositiveTile(positives.rule),
        queries,
        keys,
        {"loss": Reduce("loss", "sum", "row")},
        rows={"scale": row_scale, "negatives": row.log_denominator, "positives": positives.rows},
        cols=positives.cols,
        shared=positives.shared,
        **placement,
    )
    has = row.mass > 0
    loss = jnp.where(has, out["loss"] / jnp.where(has, row.mass, 1), 0)
    return Direction(loss, row.log_denominator, row.positive, row.mass)


@dataclasses.dataclass(frozen=True)
class _PerPositiveTile:
    rule: Any

    def __call__(self, sim: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        target = self.rule(Block(row.position, row.data["positives"]), col, shared)
        logits = sim * row.data["scale"][:, None]
        return {"loss": weights(target, sim.dtype) * jax.nn.softplus(row.data["negatives"][:, None] - logits)}


def _merge(a: Statistics, b: Statistics) -> Statistics:
    return Statistics(
        jnp.logaddexp(a.log_denominator, b.log_denominator),
        jnp.logaddexp(a.log_positive, b.log_positive),
        a.positive + b.positive,
        a.mass + b.mass,
    )


def _direction(stats: Statistics, form: str, normalize: bool) -> Direction:
    has = stats.mass > 0
    mass = jnp.where(has, stats.mass, 1)
    # An anchor that is left out may have an empty denominator: keep its -inf out of the arithmetic and the gradient.
    denominator = jnp.where(has, stats.log_denominator, 0)
    if form == "in":
        inner = jnp.where(has, stats.log_positive, 0)
        loss = denominator - (inner - jnp.log(mass) if normalize else inner)
    else:
        loss = mass * denominator - stats.positive
        loss = loss / mass if normalize else loss
    return Direction(jnp.where(has, loss, 0), stats.log_denominator, stats.positive, stats.mass)
