"""Contrast with a queue of earlier keys (MoCo), and with harder negatives mixed from it (MoCHi).

A mixture of unit vectors is never formed: its similarity to the query follows from the similarities of its parts,
`q·norm(a x + b y) = (a q·x + b q·y) / √(a² + b² + 2ab x·y)`, so that a query costs some numbers for each mixture and
not a vector.

Shapes: B queries, K queue rows, D features, N hardest negatives, s + s' mixtures of each query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.mixers.embedding import HardDraws, mochi_draws
from mixcon.objectives.batch import (
    LossOrAux,
    Metrics,
    batch_mean,
    global_size,
    inverse_temperature,
    row_dot,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.objectives.memory import Queue, push, random_queue
from mixcon.objectives.objective import Objective
from mixcon.ops import Block, Impl, Pairs, Reduce, checks, pairs
from mixcon.ops.gathered import picked_pairs, picked_similarity
from mixcon.ops.statistics import log_weighted

EPS = 1e-12  # of a squared norm: opposite vectors mix to zero


def mochi(
    query: Array,
    key: Array,
    queue: Array,
    *,
    temperature: ArrayLike,
    num_hard: int = 0,
    draws: HardDraws | None = None,
    negatives: Pairs | None = None,
    use_mix: ArrayLike = True,
    use_query_mix: ArrayLike = True,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Each query picks its key among a queue of negatives and mixtures of its hardest ones; MoCo without `draws`.

    With n_1, n_2, ... the queue rows of a query by falling q·n, `h_c = norm(α n_i + (1-α) n_j)` for i, j ≤ N and
    `h'_c = norm(β q + (1-β) n_j)`, all constants like the key and the queue:
    `loss = mean [ log( exp(q·k/τ) + Σ_m exp(q·n_m/τ) + Σ_c exp(q·h_c/τ) + Σ_c exp(q·h'_c/τ) ) - q·k/τ ]`.

    Args:
      query, key: [B, D] unit rows, row i of each a pair. queue: [K, D] unit rows, the same on every device.
      temperature: τ > 0 (differentiable).
      num_hard: N ≤ K. draws: ranks among the N hardest and shares, `mixcon.mixers.embedding.mochi_draws`; shares that
        are known must lie in [0, 1] (α) and [0, ½] (β).
      negatives: yes/no pairs [B, K], which rows are negatives of which query, e.g. `~pairs.same_label(ids, queue_ids)`;
        default all. A mixture that would need a row which a query lacks is left out.
      use_mix, use_query_mix: booleans, may be traced: False leaves h (h') out, as in a warm-up.
      normalize: divide rows of query and key by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`. has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also {"proxy_accuracy": share of queries whose key outranks every negative, mixtures
      included; "queue_accuracy": every negative of the queue; "probability": mean softmax probability of the key}.

    Raises:
      InputError: shapes that differ, τ not above 0, N outside 1..K, shares outside their range, rows not of unit length
        or (outside jit) a query with fewer than N negatives.

    Example:
      >>> draws = mochi_draws(key, len(q), num_hard=64, num_mix=32, num_query_mix=32)
      >>> loss = mochi(q, k, queue.features, temperature=0.2, num_hard=64, draws=draws)

    Reference: Kalantidis, Sariyildiz, Pion, Weinzaepfel, Larlus, "Hard Negative Mixing for Contrastive Learning", 2020,
      section 3; without mixtures He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation
      Learning", 2020, eq. 1.
    """
    same_shape("query", query, "key", key)
    query, key = unit_rows("query", query, normalize), unit_rows("key", key, normalize)
    checks.features(query, queue)
    checks.unit_norm("queue", queue)
    scale = inverse_temperature(temperature)
    key, queue = lax.stop_gradient((key, queue))
    positive = row_dot(query, key)
    scale = scale.astype(positive.dtype)
    here: Any = {"impl": "auto" if axis_name else impl}  # the queue is whole on every device: no axis to go around
    real = ops.pair_reduce(
        _NegativesTile(None if negatives is None else negatives.rule),
        query,
        queue,
        {"log_sum": Reduce("logits", "logsumexp"), "hardest": Reduce("logits", "max")},
        rows=() if negatives is None else negatives.rows,
        cols=() if negatives is None else negatives.cols,
        shared=(scale, () if negatives is None else negatives.shared),
        **here,
    )
    positive = positive * scale
    log_sum = jnp.logaddexp(positive, real["log_sum"])
    hardest = hardest_real = lax.stop_gradient(real["hardest"])
    if draws is not None:
        check_draws(draws, query, queue, num_hard)
        found = ops.top_k(query, queue, num_hard, included=negatives, **here).indices
        enough_negatives(found)
        use = jnp.concatenate(
            [
                jnp.broadcast_to(jnp.asarray(on, bool), rank.shape)
                for on, rank in ((use_mix, draws.first), (use_query_mix, draws.query))
            ],
            axis=1,
        )
        logits = jnp.where(use, mixed_similarity(query, queue, found, draws) * scale, -jnp.inf)
        log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(logits, axis=1))
        hardest = jnp.maximum(hardest, lax.stop_gradient(logits).max(1, initial=-jnp.inf))
    loss = batch_mean(log_sum - positive, axis_name)
    if not has_aux:
        return loss
    of_rows = {
        "proxy_accuracy": positive > hardest,
        "queue_accuracy": positive > hardest_real,
        "probability": jnp.exp(positive - log_sum),
    }
    return with_aux(loss, {name: batch_mean(x.astype(loss.dtype), axis_name) for name, x in of_rows.items()})


def mixed_similarity(query: Array, queue: Array, hard: Array, draws: HardDraws) -> Array:
    """Similarity of each query to its mixtures, [B, s + s'] (first `hard_negative_mix`, then `query_mix`).

    The mixtures are constants: `d out_bc / d q_b` is the mixture itself. -inf where `hard` has no such row (-1).

    Args:
      query: [B, D]. queue: [K, D] unit rows. hard: [B, N] rows of the queue, hardest first. draws: ranks and shares.

    Example:
      >>> hard = ops.top_k(q, queue, 64).indices
      >>> similarity = mixed_similarity(q, queue, hard, draws)
    """
    similar = picked_similarity(query, lax.stop_gradient(queue), hard)
    dtype = similar.dtype

    def at(values: Array, rank: Array) -> Array:
        return jnp.take_along_axis(values, rank, axis=1)

    def over_norm(mixture: Array, a: Array, b: Array, square: Array | float, product: Array) -> Array:
        norm2 = lax.stop_gradient(jnp.square(a) * square + jnp.square(b) + 2 * a * b * product)
        return mixture * lax.rsqrt(jnp.maximum(norm2, 0) + EPS)

    alpha, beta = draws.alpha.astype(dtype), draws.beta.astype(dtype)
    between = picked_pairs(lax.stop_gradient(queue), at(hard, draws.first), at(hard, draws.second))
    mixture = alpha * at(similar, draws.first) + (1 - alpha) * at(similar, draws.second)
    of_negatives = over_norm(mixture, alpha, 1 - alpha, 1, between)

    own = row_dot(query, lax.stop_gradient(query))[:, None]
    other = at(similar, draws.query)
    with_query = over_norm(beta * own + (1 - beta) * other, beta, 1 - beta, own, other)
    there = jnp.concatenate(
        [(at(hard, draws.first) >= 0) & (at(hard, draws.second) >= 0), at(hard, draws.query) >= 0], axis=1
    )
    return jnp.where(there, jnp.concatenate([of_negatives, with_query], axis=1), -jnp.inf)


class Mixing(NamedTuple):
    """How MoCHi makes negatives: (N, s, s') and when it begins."""

    num_hard: int  # N
    num_mix: int  # s, of two negatives
    num_query_mix: int  # s', of the query and a negative
    replace: bool = False  # a negative may be mixed with itself
    warmup_steps: int = 0  # without any mixture
    query_warmup_steps: int | None = None  # without mixtures with the query; as warmup_steps when None


def momentum_contrast(
    size: int,
    dim: int,
    *,
    temperature: ArrayLike = 0.2,
    mixing: Mixing | None = None,
    oracle: bool = False,
    dtype: jnp.dtype | type = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """MoCo, or with `mixing` MoCHi: the loss `mochi` and the queue that it needs.

    The keys of the batch are pushed after the loss. Under a mesh the queue is the same on every device.

    Args:
      size: K, a multiple of the batch. dim: D. temperature: τ > 0.
      mixing: N, s, s' and the warm-up; None for MoCo.
      oracle: rows of the query's class are no negatives and are not mixed (an upper bound; needs labels).
      dtype: of the queue. normalize, impl, axis_name: as for `mochi`.

    Returns:
      `Objective`: `init(key) -> Queue` of random unit rows; `apply(queue, query, key, *, rng, step, ids=None,
      labels=None) -> (loss, aux, queue)`. With `ids` [B], rows that are other views of a query's own image are no
      negatives either. `rng` and `step` are for the mixtures only. aux as for `mochi`.

    Raises:
      InputError: sizes, counts or a warm-up that make no sense; at `apply` a batch that does not divide K, an oracle
        without labels, or as for `mochi`.

    Example:
      >>> objective = momentum_contrast(65536, 128, mixing=Mixing(1024, 512, 256, warmup_steps=15_000))
      >>> state = objective.init(jax.random.key(0))
      >>> loss, aux, state = objective.apply(state, q, k, rng=key, step=step, ids=batch["index"])

    Reference: as for `mochi`; ImageNet settings in the first's section 4, class oracle in section 3.4.
    """
    checks.positive("temperature", temperature)
    if mixing is not None:
        check_mixing(mixing, size)

    def init(key: Array) -> Queue:
        return random_queue(key, size, dim, dtype)

    def apply(
        queue: Queue,
        query: Array,
        key: Array,
        *,
        rng: Array | None = None,
        step: ArrayLike = 0,
        ids: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> tuple[Array, Metrics, Queue]:
        batch = global_size(query.shape[0], axis_name)
        if size % batch:
            raise InputError(f"a queue of size={size} cannot be filled by batches of {batch}: choose a multiple of it.")
        same = [pairs.same_label(jnp.asarray(ids, jnp.int32), queue.ids)] if ids is not None else []
        if oracle:
            if labels is None:
                raise InputError("oracle=True needs the labels of the batch.")
            same.append(pairs.same_label(jnp.asarray(labels, jnp.int32), queue.labels))
        apart = None if not same else ~same[0] if len(same) == 1 else ~(same[0] | same[1])
        options: dict[str, Any] = {}
        if mixing is not None:
            if rng is None:
                raise InputError("mixing draws at random: pass rng=, a key of this step.")
            options = mixing_options(mixing, rng, query.shape[0], axis_name, jnp.asarray(step))
        loss, aux = mochi(
            query,
            key,
            queue.features.astype(query.dtype),
            temperature=temperature,
            negatives=apart,
            normalize=normalize,
            impl=impl,
            axis_name=axis_name,
            has_aux=True,
            **options,
        )
        return loss, aux, push(queue, unit_rows("key", key, normalize), labels, ids=ids, axis_name=axis_name)

    return Objective(init, apply)


def mixing_options(mixing: Mixing, rng: Array, rows: int, axis_name: str | None, step: Array) -> dict[str, Any]:
    """What `mochi` takes: draws of this device's rows, cut from those of the whole batch, and whether to use them."""
    later = mixing.warmup_steps if mixing.query_warmup_steps is None else mixing.query_warmup_steps
    draws = mochi_draws(
        rng,
        global_size(rows, axis_name),
        num_hard=mixing.num_hard,
        num_mix=mixing.num_mix,
        num_query_mix=mixing.num_query_mix,
        replace=mixing.replace,
    )
    if axis_name is not None:
        start = lax.axis_index(axis_name) * rows
        draws = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), draws)
    return {
        "num_hard": mixing.num_hard,
        "draws": draws,
        "use_mix": step >= mixing.warmup_steps,
        "use_query_mix": step >= later,
    }


@dataclasses.dataclass(frozen=True)
class _NegativesTile:
    """Logits of the queue, -inf where a row is no negative; static, hence hashable."""

    negatives: Callable[..., Array] | None

    def __call__(self, similarity: Array, row: Block, col: Block, shared: Any) -> dict[str, Array]:
        scale, own = shared
        keep = None if self.negatives is None else self.negatives(row, col, own)
        return {"logits": log_weighted(similarity * scale, keep)}


def check_mixing(mixing: Mixing, size: int) -> None:
    """Refuse counts that cannot be drawn."""
    hard, mix, query_mix, replace, warmup, later = mixing
    if min(mix, query_mix) < 0:
        raise InputError(f"num_mix={mix} and num_query_mix={query_mix} must not be negative.")
    if mix + query_mix and not 1 <= hard <= size:
        raise InputError(f"num_hard={hard} must lie in 1..{size}, the rows of the queue.")
    if mix + query_mix == 0:
        raise InputError("num_mix and num_query_mix are both 0: that is MoCo, mixing=None.")
    if hard == 1 and mix and not replace:
        raise InputError("two distinct negatives cannot be drawn from num_hard=1; pass replace=True.")
    if warmup < 0 or (later is not None and later < 0):
        raise InputError(f"warmup_steps={warmup} and query_warmup_steps={later} must not be negative.")


def check_draws(draws: HardDraws, query: Array, queue: Array, num_hard: int) -> None:
    """Refuse draws that do not fit the batch, and shares and ranks that are known to be out of range."""
    if not 1 <= num_hard <= queue.shape[0]:
        raise InputError(f"num_hard={num_hard} must lie in 1..{queue.shape[0]}, the rows of the queue.")
    for names in (("first", "second", "alpha"), ("query", "beta")):
        shapes = {getattr(draws, name).shape for name in names}
        if len(shapes) > 1 or any(len(shape) != 2 or shape[0] != query.shape[0] for shape in shapes):
            raise InputError(f"draws.{', '.join(names)} must share a shape [{query.shape[0]}, n], got {shapes}.")
    for name, high in (("alpha", 1.0), ("beta", 0.5)):
        known = checks.concrete(getattr(draws, name))
        if known is not None and known.size and not (known.min() >= 0 and known.max() <= high):
            raise InputError(f"draws.{name} must lie in [0, {high:g}], got {known.min():.4g} .. {known.max():.4g}.")
    for name in ("first", "second", "query"):
        known = checks.concrete(getattr(draws, name))
        if known is not None and known.size and not 0 <= known.min() <= known.max() < num_hard:
            raise InputError(f"draws.{name} are ranks in 0..{num_hard - 1}, got {known.min()} .. {known.max()}.")


def enough_negatives(found: Array) -> None:
    """Refuse, where it can be seen, a query with fewer than N negatives."""
    known = checks.concrete(found)
    if known is not None and (known < 0).any():
        row = int((known < 0).any(1).argmax())
        raise InputError(
            f"query {row} has only {int((known[row] >= 0).sum())} negatives in the queue, fewer than "
            f"num_hard={known.shape[1]}: lower it, or lengthen the queue."
        )
