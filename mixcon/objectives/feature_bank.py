"""Contrast of each example with a memory of all: one slot for each, a moving average of its features."""

import inspect
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.objectives.batch import Metrics, batch_sum, l2_normalize, same_shape, unit_rows
from mixcon.objectives.objective import Objective
from mixcon.objectives.per_example import example_ids, recall, remember
from mixcon.ops import Impl


class FeatureBank(NamedTuple):
    """What is remembered of N examples."""

    features: Array  # [N, D] unit rows


class Contrast(Protocol):
    """A loss of queries [B, D] over keys [N, D], each query's own at `positive_index`: `info_nce` and its relatives."""

    def __call__(
        self, queries: Array, keys: Array, /, *, positive_index: Array, has_aux: bool, impl: Impl, axis_name: str | None
    ) -> tuple[Array, Metrics]: ...


def feature_bank(
    num_examples: int,
    dim: int,
    *,
    contrast: Contrast,
    momentum: float = 0.5,
    dtype: jnp.dtype | type = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """A loss over the memory of all examples, of which an example's own slot is the positive.

    After the loss, `m_i ← norm(μ m_i + (1-μ) f(x_i))` for the examples of the batch; no gradient flows into the memory.

    Args:
      num_examples: N, size of the training set. dim: D.
      contrast: the loss, such as `functools.partial(info_nce, temperature=0.3)`, or `simple_contrastive`,
        `hard_info_nce`, `hard_simple_contrastive`.
      momentum: μ in [0, 1]. dtype: of the memory. normalize: divide rows by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`; under `axis_name` the memory is the same on every device.

    Returns:
      `Objective`: `init(key) -> FeatureBank` of random unit rows; `apply(bank, features [B, D], *, index [B]) ->
      (loss, aux, bank)` with the metrics of the loss.

    Raises:
      InputError: sizes below 1 (N below 2), a momentum outside [0, 1], a loss without `positive_index`; at `apply` rows
        of another size, and ids that are not in the memory or twice in the batch (outside jit).

    Example:
      >>> objective = feature_bank(50_000, 128, contrast=functools.partial(info_nce, temperature=0.3))
      >>> state = objective.init(jax.random.key(0))
      >>> loss, aux, state = objective.apply(state, features, index=batch["index"])

    Reference: Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
      section 3; Wang, Liu, "Understanding the Behaviour of Contrastive Loss", 2021, section 5.
    """
    if num_examples < 2 or dim < 1:
        raise InputError(f"a memory needs num_examples >= 2 and dim >= 1, got {num_examples} and {dim}.")
    if not 0 <= momentum <= 1:
        raise InputError(f"momentum must lie in [0, 1], got {momentum}.")
    if "positive_index" not in inspect.signature(contrast).parameters:
        raise InputError(
            "contrast must take positive_index, the slots of the queries' own: info_nce, simple_contrastive, "
            f"hard_info_nce and hard_simple_contrastive do, {getattr(contrast, 'func', contrast)!r} does not."
        )

    def init(key: Array) -> FeatureBank:
        return FeatureBank(l2_normalize(jax.random.normal(key, (num_examples, dim))).astype(dtype))

    def apply(bank: FeatureBank, features: Array, *, index: ArrayLike) -> tuple[Array, Metrics, Any]:
        features = unit_rows("features", features, normalize)
        ids = example_ids("index", index, len(features), num_examples)
        known = recall(bank, ids)
        same_shape("features", features, "their slots in the memory", known.features)
        keys = lax.stop_gradient(bank.features).astype(features.dtype)
        loss, aux = contrast(features, keys, positive_index=ids, has_aux=True, impl=impl, axis_name=axis_name)
        # For an id outside, the loss would take the nearest slot; `recall` gives NaN, which stops the run.
        lost = batch_sum(jnp.isnan(known.features[:, 0]).astype(loss.dtype), axis_name)
        loss = jnp.where(lost > 0, jnp.nan, loss)
        moved = l2_normalize(momentum * known.features + (1 - momentum) * lax.stop_gradient(features))
        return loss, aux, remember(bank, ids, FeatureBank(moved), axis_name)

    return Objective(init, apply)
