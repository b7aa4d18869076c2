"""Samples of earlier steps as further keys: a first-in-first-out queue in plain arrays, and contrast with it."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import Metrics, batch_mean, inverse_temperature, l2_normalize, unit_rows
from mixcon.objectives.objective import Objective
from mixcon.objectives.supervised import class_labels, positive_metrics
from mixcon.ops import Bank, Impl, checks, pairs


class Queue(NamedTuple):
    """The last M rows that were pushed; slot `cursor` is the next to be overwritten."""

    features: Array  # [M, D]
    labels: Array  # [M] int32, -1 where not known
    ids: Array  # [M] int32, which example a row is of; -1 where not known
    cursor: Array  # [] int32
    filled: Array  # [] int32, slots that hold a row

    @property
    def valid(self) -> Array:
        """[M] bool: slots that hold a row (the first `filled`, as the queue fills from slot 0)."""
        return jnp.arange(self.labels.shape[0], dtype=jnp.int32) < self.filled


def empty_queue(size: int, dim: int, dtype: jnp.dtype | type = jnp.float32) -> Queue:
    """A queue of M slots that holds nothing.

    Example:
      >>> queue = empty_queue(4096, 128)
    """
    if size < 1 or dim < 1:
        raise InputError(f"size and dim of a queue must be at least 1, got {size} and {dim}.")
    zero, unknown = jnp.zeros((), jnp.int32), jnp.full(size, -1, jnp.int32)
    return Queue(jnp.zeros((size, dim), dtype), unknown, unknown, zero, zero)


def random_queue(key: Array, size: int, dim: int, dtype: jnp.dtype | type = jnp.float32) -> Queue:
    """A full queue of M random directions, each row of unit length: what MoCo contrasts with at first.

    Example:
      >>> queue = random_queue(jax.random.key(0), 4096, 128)
    """
    queue = empty_queue(size, dim, dtype)
    rows = l2_normalize(jax.random.normal(key, (size, dim))).astype(dtype)
    return queue._replace(features=rows, filled=jnp.asarray(size, jnp.int32))


def push(
    queue: Queue,
    features: Array,
    labels: ArrayLike | None = None,
    *,
    ids: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Queue:
    """The queue with a batch of rows written over its oldest; no gradient flows into it.

    Args:
      queue: of M slots. features: [B, D], B ≤ M. labels, ids: [B] integers, or None.
      axis_name: rows of all devices are pushed, so that the queue stays the same on each.

    Raises:
      InputError: a batch that is larger than the queue, or rows of another size.

    Example:
      >>> queue = push(queue, keys)
    """
    unknown = jnp.full(features.shape[0], -1, jnp.int32)
    labels, ids = (unknown if each is None else jnp.asarray(each, jnp.int32) for each in (labels, ids))
    new = lax.stop_gradient((features, labels, ids))
    if axis_name is not None:  # "invarying": the same on every device, so that the queue may leave `shard_map` as such
        new = lax.all_gather(new, axis_name, tiled=True, to="invarying")
    rows, labels, ids = new
    size, count = queue.features.shape[0], rows.shape[0]
    if count > size or rows.shape[1] != queue.features.shape[1]:
        raise InputError(f"features {rows.shape} do not fit the queue {queue.features.shape}: at most M rows of its D.")
    slots = (queue.cursor + jnp.arange(count, dtype=jnp.int32)) % size
    return Queue(
        queue.features.at[slots].set(rows.astype(queue.features.dtype)),
        queue.labels.at[slots].set(labels),
        queue.ids.at[slots].set(ids),
        (queue.cursor + count) % size,
        jnp.minimum(queue.filled + count, size),
    )


def cross_batch_memory(
    size: int,
    dim: int,
    *,
    temperature: ArrayLike = 0.1,
    form: Literal["out", "in"] = "out",
    dtype: jnp.dtype | type = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """Supervised contrast of the batch with itself and with the embeddings of earlier steps.

    The loss is `supcon` of the batch, with the M remembered rows as further keys: positives when of the anchor's
    class, in the denominator in any case. The batch is pushed after its loss. Embeddings drift slowly, so old ones
    still serve.

    Args:
      size: M, slots of the queue. dim: D. temperature: τ > 0. form: as for `supcon`.
      dtype: of the queue. normalize: divide rows by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`; under `axis_name` the queue is the same on every device.

    Returns:
      `Objective`: `init() -> Queue`, `apply(queue, features [B, D], labels [B]) -> (loss, aux, queue)`, aux with
      "without_positive", "probability" (as for `supcon`) and "filled", the share of the queue in use.

    Raises:
      InputError: size or dim below 1, a temperature not above zero; at `apply`, as for `supcon` and `push`.

    Example:
      >>> objective = cross_batch_memory(4096, 128, temperature=0.1)
      >>> state = objective.init()
      >>> loss, aux, state = objective.apply(state, features, labels)

    Reference: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", 2020, eq. 3 and algorithm 1.
    """
    checks.positive("temperature", temperature)

    def init() -> Queue:
        return empty_queue(size, dim, dtype)

    def apply(queue: Queue, features: Array, labels: ArrayLike) -> tuple[Array, Metrics, Queue]:
        features = unit_rows("features", features, normalize)
        labels = class_labels(labels, features.shape[0]).astype(jnp.int32)
        held = pairs.valid(jnp.ones(features.shape[0], bool), queue.valid)
        bank = Bank(
            lax.stop_gradient(queue.features).astype(features.dtype),
            positives=pairs.same_label(labels, queue.labels) & held,
            denominator=held,
        )
        rows, _ = ops.contrastive_cross_entropy(
            features,
            features,
            scale=inverse_temperature(temperature),
            positives=pairs.same_label(labels) & pairs.not_self(),
            denominator=pairs.not_self(),
            form=form,
            banks=(bank,),
            impl=impl,
            axis_name=axis_name,
        )
        loss = batch_mean(rows.loss, axis_name, rows.has_positive)
        share = queue.filled.astype(loss.dtype) / size
        aux = lax.stop_gradient(positive_metrics(rows, None, axis_name)) | {"filled": share}
        return loss, aux, push(queue, features, labels, axis_name=axis_name)

    return Objective(init, apply)
