"""Triplets of a labelled batch: an anchor, a sample of its class, and one of another class that should be farther."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, batch_mean, batch_sum, gather
from mixcon.objectives.metric import root, split_pairs
from mixcon.objectives.supervised import class_labels
from mixcon.ops import Block, Impl, Reduce, checks

Distance = Literal["euclidean", "squared", "cosine"]
Mining = Literal["hard", "semi_hard", "all"]


def triplet(
    features: Array,
    labels: ArrayLike,
    *,
    margin: float | None = 0.2,
    mining: Mining = "hard",
    distance: Distance = "euclidean",
    average: Literal["all", "active"] = "all",
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Positives nearer than negatives by a margin: `h(d_ap - d_an)`, `h(x) = max(0, x + m)`, or log(1 + eˣ) for m None.

    Over which triplets the mean is taken, by `mining`:
    "hard": for each anchor its farthest positive and its nearest negative;
    "semi_hard": for each anchor and positive the nearest negative that is farther than the positive, or the farthest
    negative when none is;
    "all": every triplet of the batch.

    Args:
      features: [B, D]. labels: [B] classes.
      margin: m ≥ 0, or None for the soft margin.
      distance: ‖a - b‖, its square, or 1 - a·b (unit rows).
      average: over "all" of these triplets, or the "active" ones, whose loss is not zero.
      impl, axis_name: see `mixcon.ops.pair_reduce`; "semi_hard" and "all" form the [B, B] distances whatever `impl`.

    Returns:
      Scalar; 0 when there is no triplet.

    Raises:
      InputError: labels of the wrong length, an unknown name, a negative margin.

    Example:
      >>> loss = triplet(features, labels, mining="hard", margin=None)

    Reference: Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015,
      eq. 2 to 4; Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, eq. 5.
    """
    labels = class_labels(labels, features.shape[0])
    checks.nonnegative("margin", margin)
    if distance not in ("euclidean", "squared", "cosine"):
        raise InputError(f"distance must be euclidean, squared or cosine, got {distance!r}.")
    if mining not in ("hard", "semi_hard", "all"):
        raise InputError(f"mining must be hard, semi_hard or all, got {mining!r}.")
    if average not in ("all", "active"):
        raise InputError(f'average must be "all" or "active", got {average!r}.')

    def hinge(gap: Array) -> Array:
        return jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)

    def mean(losses: Array, valid: Array) -> Array:
        return batch_mean(losses, axis_name, valid & (losses > 0) if average == "active" else valid)

    if mining == "hard":
        far, near = _hardest(features, labels, distance, impl, axis_name)
        valid = jnp.isfinite(far) & jnp.isfinite(near)
        gap = _length(jnp.where(valid, far, 0), distance) - _length(jnp.where(valid, near, 0), distance)
        return mean(jnp.where(valid, hinge(gap), 0), valid)

    lengths, positive, negative = _matrices(features, labels, distance, axis_name)
    if mining == "semi_hard":
        chosen = _semi_hard(lengths, negative)
        valid = positive & negative.any(1, keepdims=True)
        return mean(jnp.where(valid, hinge(lengths - chosen), 0).reshape(-1), valid.reshape(-1))

    @jax.checkpoint
    def anchor(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:  # one [B, B] block of triplets at a time
        length, own, other = row
        valid = own[:, None] & other[None, :]
        losses = jnp.where(valid, hinge(length[:, None] - length[None, :]), 0)
        return losses.sum(), (valid & (losses > 0) if average == "active" else valid).sum(dtype=losses.dtype)

    total, count = lax.map(anchor, (lengths, positive, negative))
    return batch_sum(total, axis_name) / jnp.maximum(batch_sum(count, axis_name), 1)


def _hardest(
    features: Array, labels: Array, distance: Distance, impl: Impl, axis_name: str | None
) -> tuple[Array, Array]:
    """(farthest positive, nearest negative) of each anchor [B], ±inf without one; squared unless cosine."""
    data = (labels, _square_norms(features, distance))
    out = ops.pair_reduce(
        _Hardest(distance == "cosine"),
        features,
        features,
        {"far": Reduce("far", "max"), "near": Reduce("near", "max")},
        rows=data,
        cols=data,
        impl=impl,
        axis_name=axis_name,
    )
    return out["far"], -out["near"]


@dataclasses.dataclass(frozen=True)
class _Hardest:
    cosine: bool

    def __call__(self, sim: Array, row: Block, col: Block, shared: tuple[()]) -> dict[str, Array]:
        (row_labels, row_square), (col_labels, col_square) = row.data, col.data
        positive, negative = split_pairs(row, col, row_labels, col_labels)
        length = 1 - sim if self.cosine else row_square[:, None] + col_square[None, :] - 2 * sim
        return {"far": jnp.where(positive, length, -jnp.inf), "near": jnp.where(negative, -length, -jnp.inf)}


def _matrices(features: Array, labels: Array, distance: Distance, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Distances, positives and negatives [B, N] of this device's anchors to all samples."""
    keys, key_labels = gather(features, axis_name), gather(labels, axis_name)
    size = features.shape[0]
    offset = 0 if axis_name is None else lax.axis_index(axis_name) * size
    row = Block(jnp.arange(size, dtype=jnp.int32) + offset, ())
    col = Block(jnp.arange(keys.shape[0], dtype=jnp.int32), ())
    positive, negative = split_pairs(row, col, labels, key_labels)
    sim = ops.similarity(features, keys)
    if distance == "cosine":
        return 1 - sim, positive, negative
    square = _square_norms(features, distance)[:, None] + _square_norms(keys, distance)[None, :] - 2 * sim
    return _length(square, distance), positive, negative


def _semi_hard(lengths: Array, negative: Array) -> Array:
    """[B, N] for each anchor and candidate the distance of its semi-hard negative."""
    order = jnp.argsort(lax.stop_gradient(jnp.where(negative, lengths, jnp.inf)), axis=1)
    ascending = jnp.take_along_axis(lengths, order, axis=1)
    count = negative.sum(1, keepdims=True, dtype=jnp.int32)
    place = jnp.arange(lengths.shape[1], dtype=jnp.int32)[None, :]
    searchable = jnp.where(place < count, lax.stop_gradient(ascending), jnp.inf)
    beyond = jax.vmap(lambda row, value: jnp.searchsorted(row, value, side="right"))(searchable, lengths)
    beyond = jnp.clip(jnp.minimum(beyond, count - 1), 0)
    return jnp.take_along_axis(ascending, beyond, axis=1)


def _square_norms(features: Array, distance: Distance) -> Array:
    wide = features.astype(accumulator(features))
    return jnp.zeros(features.shape[0], wide.dtype) if distance == "cosine" else jnp.sum(jnp.square(wide), axis=1)


def _length(value: Array, distance: Distance) -> Array:
    return root(value) if distance == "euclidean" else value
