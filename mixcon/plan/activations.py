"""What a step keeps of its forward pass until the backward pass needs it, counted in the traced program."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mixcon.train.state import PyTree, Task, TrainState, stream


def saved(task: Task, state: TrainState, batch: Mapping[str, PyTree], *, parts: int = 1) -> float:
    """Bytes that encoding a batch saves for its backward pass, over all chips.

    They are what reverse differentiation of `task.encode` holds on to as the program is written: with recomputation,
    what a layer takes in; without, all that its derivative needs. A compiler may save less, and compute it again.

    Args:
      task: of the experiment.
      state: shapes suffice.
      batch: shapes suffice; the batch is the first axis of every array.
      parts: of the batch that are encoded one after another, with the activations of one at a time.

    Example:
      >>> saved(experiment.task, state, batch) / len(topology.devices)
    """

    def held(rows: int) -> int:
        some = {key: jax.tree.map(lambda x: of_rows(x, rows), value) for key, value in batch.items()}
        pullback = jax.eval_shape(pull_back, plain(state), some)
        return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    def pull_back(state: TrainState, batch: Mapping[str, PyTree]) -> PyTree:
        ready = task.prepare(batch, key=stream(state.seed, "prepare", state.step), step=state.step)
        key = stream(state.seed, "encode", state.step)
        return jax.vjp(
            lambda params: task.encode(params, state.extra, ready, key=key, train=True), state.params, has_aux=True
        )[1]

    size = jax.tree.leaves(batch)[0].shape[0] // parts
    less = size // 2
    return (held(size) - held(less)) * size / (size - less)  # what does not grow with the batch is parameters


def of_rows(leaf: jax.ShapeDtypeStruct, rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)


def plain(tree: PyTree) -> PyTree:
    """Shapes without places: nothing here is split."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
