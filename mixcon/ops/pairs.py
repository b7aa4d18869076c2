"""Factored descriptions of a [B, N] matrix of pairs, from which any tile can be built on the fly.

A `Pairs` holds arrays that belong to the queries (`rows`, leading axis B), arrays that belong to the keys (`cols`,
leading axis N), arrays that belong to neither (`shared`), and a static `rule` that turns a block of each into a tile of
booleans or weights. It is a pytree, so it passes through `jax.jit`, and it is what the engine shards and slices.

Shape suffixes: R query rows of a tile, C key columns of a tile.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.ops import checks


class Block(NamedTuple):
    """Some consecutive rows (or columns) of the pair matrix."""

    position: Array  # [R] int32, place in the global batch
    data: Any  # pytree, leaves [R, ...]


Rule = Callable[[Block, Block, Any], Array]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A [B, N] matrix of pairs in factored form; combine with `&  |  ~  *  +` and transpose with `.T`."""

    rule: Rule
    rows: Any = ()
    cols: Any = ()
    shared: Any = ()

    def tile(self, row: Block, col: Block, shared: Any) -> Array:
        """The tile [R, C] for blocks whose `data` are blocks of `self.rows` and `self.cols`."""
        return self.rule(row, col, shared)

    def matrix(self, num_rows: int, num_cols: int) -> Array:
        """The whole matrix [B, N]: for small batches, pictures and tests."""
        row = Block(jnp.arange(num_rows, dtype=jnp.int32), self.rows)
        col = Block(jnp.arange(num_cols, dtype=jnp.int32), self.cols)
        return self.rule(row, col, self.shared)

    @property
    def T(self) -> "Pairs":
        return Pairs(_Transposed(self.rule), self.cols, self.rows, self.shared)

    def __and__(self, other: "Pairs") -> "Pairs":
        return _combine("and", self, other)

    def __or__(self, other: "Pairs") -> "Pairs":
        return _combine("or", self, other)

    def __add__(self, other: "Pairs") -> "Pairs":
        return _combine("add", self, other)

    def __mul__(self, other: "Pairs | ArrayLike") -> "Pairs":
        if isinstance(other, Pairs):
            return _combine("mul", self, other)
        return Pairs(_Scaled(self.rule), self.rows, self.cols, (self.shared, jnp.asarray(other)))

    __rmul__ = __mul__

    def __invert__(self) -> "Pairs":
        return Pairs(_Not(self.rule), self.rows, self.cols, self.shared)


jax.tree_util.register_dataclass(Pairs, data_fields=["rows", "cols", "shared"], meta_fields=["rule"])


def wide(dtype: Any) -> Any:
    """The dtype that sums are kept in: float64 for float64, float32 for anything less."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def weights(tile: Array, dtype: Any = jnp.float32) -> Array:
    """A tile as weights: True is 1."""
    return tile.astype(dtype)


# --- combinators -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Transposed:
    rule: Rule

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        return self.rule(col, row, shared).T


@dataclasses.dataclass(frozen=True)
class _Not:
    rule: Rule

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        tile = self.rule(row, col, shared)
        return ~tile if tile.dtype == jnp.bool_ else 1 - tile


@dataclasses.dataclass(frozen=True)
class _Scaled:
    rule: Rule

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        shared, factor = shared
        tile = self.rule(row, col, shared)
        dtype = jnp.float32 if tile.dtype == jnp.bool_ else tile.dtype
        return tile.astype(dtype) * factor.astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Combined:
    op: Literal["and", "or", "add", "mul"]
    left: Rule
    right: Rule

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        (row_l, row_r), (col_l, col_r), (shared_l, shared_r) = row.data, col.data, shared
        left = self.left(Block(row.position, row_l), Block(col.position, col_l), shared_l)
        right = self.right(Block(row.position, row_r), Block(col.position, col_r), shared_r)
        if left.dtype == right.dtype == jnp.bool_ and self.op != "add":
            return left | right if self.op == "or" else left & right
        if self.op == "or":
            raise InputError("`|` joins two yes/no pair matrices; add weighted ones with `+`.")
        if left.dtype == jnp.bool_ and right.dtype != jnp.bool_ and self.op != "add":
            return jnp.where(left, right, 0)  # a mask on weights: exact zeros, and no gradient through the masked pairs
        if right.dtype == jnp.bool_ and left.dtype != jnp.bool_ and self.op != "add":
            return jnp.where(right, left, 0)
        dtype = jnp.float64 if jnp.float64 in (left.dtype, right.dtype) else jnp.float32
        combine = operator.add if self.op == "add" else operator.mul
        return combine(left.astype(dtype), right.astype(dtype))


def _combine(op: Literal["and", "or", "add", "mul"], left: Pairs, right: Pairs) -> Pairs:
    return Pairs(
        _Combined(op, left.rule, right.rule),
        (left.rows, right.rows),
        (left.cols, right.cols),
        (left.shared, right.shared),
    )


# --- by position -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shift:
    """Query i belongs to key i + offset."""

    offset: int

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        return (row.position + self.offset)[:, None] == col.position[None, :]


@dataclasses.dataclass(frozen=True)
class _Grouped:
    row_size: int
    col_size: int

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        return (row.position // self.row_size)[:, None] == (col.position // self.col_size)[None, :]


def _everything(row: Block, col: Block, shared: Any) -> Array:
    return jnp.ones((row.position.size, col.position.size), bool)


def _valid(row: Block, col: Block, shared: Any) -> Array:
    return row.data[:, None] & col.data[None, :]


def everything() -> Pairs:
    """Every pair: T_ij = 1."""
    return Pairs(_everything)


def identity(offset: int = 0) -> Pairs:
    """Query i with key i + offset, the positives of CLIP: T_ij = [j = i + offset]."""
    return Pairs(Shift(offset))


def not_self() -> Pairs:
    """Every pair but (i, i): the denominator of a batch contrasted with itself."""
    return ~identity()


def block(size: int, side: Literal["keys", "queries", "both"] = "keys") -> Pairs:
    """Groups of `size` consecutive keys (or queries, or both): T_ij = [i = j // size] for side="keys".

    With one image and K captions stored image-major, `block(K)` holds the K positives of each image.
    """
    if size < 1:
        raise InputError(f"size must be at least 1, got {size}.")
    return Pairs(_Grouped(1 if side == "keys" else size, 1 if side == "queries" else size))


def valid(rows: ArrayLike, cols: ArrayLike) -> Pairs:
    """Pairs of a valid query [B] and a valid key [N]; multiply it in to leave padding out."""
    return Pairs(_valid, jnp.asarray(rows, bool), jnp.asarray(cols, bool))


# --- by label or by mixing -------------------------------------------------------------------------------------------


def _same(row: Block, col: Block, shared: Any) -> Array:
    return row.data[:, None] == col.data[None, :]


@dataclasses.dataclass(frozen=True)
class _Overlap:
    kind: Literal["any", "count", "jaccard"]

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        common = jnp.dot(row.data, col.data.T, preferred_element_type=jnp.float32)
        if self.kind == "any":
            return common > 0
        if self.kind == "count":
            return common
        union = row.data.sum(1)[:, None] + col.data.sum(1)[None, :] - common
        return common / jnp.maximum(union, 1)


def _slots(row: Block, col: Block, shared: Any) -> Array:
    (row_ids, row_weights), (col_ids, col_weights) = row.data, col.data
    return _slot_sum(row_ids, row_weights, col_ids, col_weights)


def _slots_to_index(row: Block, col: Block, shared: Any) -> Array:
    ids, weight = row.data
    return _slot_sum(ids, weight, col.position[:, None], None)


def _mixed(row: Block, col: Block, shared: Any) -> Array:
    partner, weight = row.data
    ids = jnp.stack([row.position, partner], 1)
    return _slot_sum(ids, jnp.stack([weight, 1 - weight], 1), col.position[:, None], None)


def _slot_sum(row_ids: Array, row_weights: Array, col_ids: Array, col_weights: Array | None) -> Array:
    total = jnp.zeros((row_ids.shape[0], col_ids.shape[0]), row_weights.dtype)
    for a in range(row_ids.shape[1]):  # a handful of slots: unrolled, each a compare and a select
        for b in range(col_ids.shape[1]):
            weight = row_weights[:, a, None]
            if col_weights is not None:
                weight = weight * col_weights[None, :, b]
            total += jnp.where(row_ids[:, a, None] == col_ids[None, :, b], weight, 0)
    return total


def same_label(labels: ArrayLike, key_labels: ArrayLike | None = None) -> Pairs:
    """Query and key of the same class: T_ij = [y_i = y'_j], labels [B] and [N] (self included).

    Leave the sample itself out with `same_label(y) & not_self()`.
    """
    labels = jnp.asarray(labels)
    key_labels = labels if key_labels is None else jnp.asarray(key_labels)
    for name, value in (("labels", labels), ("key_labels", key_labels)):
        if value.ndim != 1:
            raise InputError(f"{name} must be one label each [B], got shape {value.shape}; multi_label takes [B, L].")
    return Pairs(_same, labels, key_labels)


def multi_label(
    labels: ArrayLike, key_labels: ArrayLike | None = None, overlap: Literal["any", "count", "jaccard"] = "any"
) -> Pairs:
    """Query and key that share labels, given as 0/1 matrices [B, L] and [N, L].

    T_ij = [y_i·y'_j > 0], or y_i·y'_j ("count"), or |y_i ∧ y'_j| / |y_i ∨ y'_j| ("jaccard").
    """
    labels = jnp.asarray(labels, jnp.float32)
    key_labels = labels if key_labels is None else jnp.asarray(key_labels, jnp.float32)
    if labels.ndim != 2 or key_labels.ndim != 2 or labels.shape[1] != key_labels.shape[1]:
        raise InputError(f"labels and key_labels must be [B, L] and [N, L], got {labels.shape} and {key_labels.shape}.")
    return Pairs(_Overlap(overlap), labels, key_labels)


def slots(
    ids: ArrayLike, weight: ArrayLike, key_ids: ArrayLike | None = None, key_weight: ArrayLike | None = None
) -> Pairs:
    """Weighted ids on both sides: T_ij = Σ_ab w_ia v_jb [id_ia = id'_jb].

    This is M T Mᵀ for any sparse linear mixing M: `ids` [B, k] are batch positions (or class labels) and `weight`
    [B, k] their shares. Without `key_ids` the keys are unmixed and identified by their position j.
    """
    ids, weight = jnp.asarray(ids), jnp.asarray(weight)
    ids, weight = (ids[:, None], weight[:, None]) if ids.ndim == 1 else (ids, weight)
    checks.nonnegative("weight", weight)
    if ids.shape != weight.shape:
        raise InputError(f"ids and weight must have one shape [B, k], got {ids.shape} and {weight.shape}.")
    if key_ids is None:
        return Pairs(_slots_to_index, (ids, weight))
    key_ids = jnp.asarray(key_ids)
    key_weight = jnp.ones(key_ids.shape, weight.dtype) if key_weight is None else jnp.asarray(key_weight)
    key_ids, key_weight = (key_ids[:, None], key_weight[:, None]) if key_ids.ndim == 1 else (key_ids, key_weight)
    checks.nonnegative("key_weight", key_weight)
    if key_ids.shape != key_weight.shape:
        raise InputError(f"key_ids and key_weight must have one shape [N, k], got {key_ids.shape}, {key_weight.shape}.")
    return Pairs(_slots, (ids, weight), (key_ids, key_weight))


def mixed(partner: ArrayLike, weight: ArrayLike, side: Literal["queries", "keys"] = "queries") -> Pairs:
    """The pairs of a mixed batch with the batch it was mixed from: T = M, the mix as an operator.

    For `x'_i = w_i x_i + (1 - w_i) x_{partner_i}` give `partner` [B] and `weight` [B]; for `x'_i = Σ_k w_ik
    x_{partner_ik}` give both as [B, k]. A fixed point of `partner` keeps the whole weight. `side="keys"`: the keys are
    the mixed ones (the transpose). For mixes on both sides see `slots`.
    """
    partner, weight = jnp.asarray(partner, jnp.int32), jnp.asarray(weight)
    if partner.shape != weight.shape or partner.ndim not in (1, 2):
        raise InputError(f"partner and weight must both be [B] or [B, k], got {partner.shape} and {weight.shape}.")
    checks.nonnegative("weight", weight)
    pairs = Pairs(_mixed, (partner, weight)) if partner.ndim == 1 else slots(partner, weight)
    return pairs if side == "queries" else pairs.T


# --- by value --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Kernel:
    kernel: Callable[[Array], Array]
    distance: bool

    def __call__(self, row: Block, col: Block, shared: Any) -> Array:
        a, b = row.data, col.data
        if not self.distance:
            return self.kernel(jnp.dot(a, b.T, preferred_element_type=wide(a.dtype)))
        if a.ndim == 1:
            return self.kernel(jnp.abs(a[:, None] - b[None, :]))
        return self.kernel(jnp.linalg.norm(a[:, None, :] - b[None, :, :], axis=-1))


def _dense(row: Block, col: Block, shared: Any) -> Array:
    return jnp.take(row.data, col.position, axis=1, mode="clip")


def affine(similarity: Array) -> Array:
    """Cosine to weight in [0, 1]: (1 + s) / 2."""
    return (1 + similarity) / 2


def similarity(
    features: ArrayLike,
    key_features: ArrayLike | None = None,
    kernel: Callable[[Array], Array] = affine,
    frozen: bool = True,
) -> Pairs:
    """Weights from the similarity of two feature matrices: T_ij = kernel(f_i·f'_j), no gradient when `frozen`.

    `kernel` is an elementwise function, e.g. `affine` (CWCL) or `lambda s: s > 0.9` (a false-negative filter);
    define it once at module level, so that compiled functions are found again.
    """
    a = jnp.asarray(features)
    b = a if key_features is None else jnp.asarray(key_features)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"features and key_features must be [B, E] and [N, E], got {a.shape} and {b.shape}.")
    a, b = (jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)) if frozen else (a, b)
    return Pairs(_Kernel(kernel, distance=False), a, b)


def label_distance(
    labels: ArrayLike, key_labels: ArrayLike | None = None, kernel: Callable[[Array], Array] = lambda d: jnp.exp(-d)
) -> Pairs:
    """Weights from the distance of real labels [B] (or vectors [B, L], Euclidean): T_ij = kernel(|y_i - y'_j|)."""
    a = jnp.asarray(labels)
    b = a if key_labels is None else jnp.asarray(key_labels)
    if a.ndim != b.ndim or a.ndim not in (1, 2) or a.shape[1:] != b.shape[1:]:
        raise InputError(f"labels and key_labels must be [B] and [N] (or [B, L], [N, L]), got {a.shape}, {b.shape}.")
    a, b = jax.lax.stop_gradient((a, b))
    return Pairs(_Kernel(kernel, distance=True), a, b)


def dense(matrix: ArrayLike) -> Pairs:
    """A matrix [B, N] as it is (booleans or weights, gradient included): only for batches where B·N is small."""
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise InputError(f"matrix must be [B, N], got shape {matrix.shape}.")
    checks.nonnegative("matrix", matrix)
    return Pairs(_dense, matrix)
