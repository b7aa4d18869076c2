"""From a source to a matrix of embeddings: one pass in order, batches spread over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def embed(
    encode: Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]], batches: Iterable[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Encode every batch and keep the rows that are real.

    Args:
      encode: batch of arrays [B, ...] -> arrays [B, D]; compiled once.
      batches: from `mixcon.data.eval_batches`; `mask` marks the rows that count.

    Returns:
      For each output of `encode`, [N, D] in the order of the source, on every process; and `index` [N], which record
      of the source each row is.

    Example:
      >>> found = embed(lambda batch: {"image": model(batch["image"])}, eval_batches(source, batch_size=64))
    """
    return embedder(lambda _, batch: encode(batch))((), batches)


def embedder(
    encode: Callable[[Any, dict[str, jax.Array]], Mapping[str, jax.Array]],
) -> Callable[[Any, Iterable[Mapping[str, Any]]], dict[str, np.ndarray]]:
    """`embed` with parameters that change: compiled once for all evaluations of a run.

    Args:
      encode: (parameters, batch of arrays [B, ...]) -> arrays [B, D].

    Returns:
      `(parameters, batches) -> ` what `embed` returns.

    Example:
      >>> predict = embedder(lambda params, batch: {"logits": model(params, batch["image"])})
      >>> found = predict(state.params, eval_batches(source, batch_size=64))
    """

    @functools.cache
    def compiled(
        mesh: jax.sharding.Mesh,
    ) -> Callable[[Any, dict[str, jax.Array]], tuple[dict[str, jax.Array], jax.Array]]:
        @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
        def encoded(params: Any, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
            return {**encode(params, batch), "index": batch["index"]}, batch["mask"]

        return encoded

    def run(params: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        mesh = jax.sharding.get_mesh()
        spread = NamedSharding(mesh, PartitionSpec("data"))
        found: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            placed = {k: jax.make_array_from_process_local_data(spread, v) for k, v in batch.items()}
            outputs, mask = jax.device_get(compiled(mesh)(params, placed))
            for name, rows in outputs.items():
                found.setdefault(name, []).append(rows[mask])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    return run
