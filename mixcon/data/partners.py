"""Partners out of the whole data set: pure functions of (seed, step) on the host, for mixing beyond the batch.

A partner that is drawn by similarity over all labels is hardly ever in the batch, so the sampler reads it along: the
batch of a `paired` sampler is B couples, example and partner in turn. It is as random-access and as resumable as any
sampler, needs nothing on the device but the rows, and serves sources that do not fit into memory.

Shapes: N examples, B batch, D label dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mixcon.data.sampling import Sampler
from mixcon.errors import InputError

Partner = Callable[[np.ndarray, int], np.ndarray]  # indices int64 [B], step -> partners int64 [B]
Kernel = Literal["gaussian", "tophat"]

_STREAM = 0x9A27  # tells these draws from others of the same seed


def paired(sampler: Sampler, partner: Partner) -> Sampler:
    """A sampler of couples: `i0, j0, i1, j1, ...`, twice as long, so that couples stay together on their device.

    Args:
        sampler: step -> int64 [B].
        partner: one of this module's.

    Returns:
        step -> int64 [2B]; undo with `x[0::2]` (examples) and `x[1::2]` (partners).

    Example:
        >>> paired(lambda step: np.arange(2), lambda indices, step: indices + 5)(0)
        array([0, 5, 1, 6])
    """

    def sample(step: int) -> np.ndarray:
        indices = sampler(step)
        return np.stack([indices, partner(indices, step)], axis=1).reshape(-1)

    return sample


def uniform_partner(num_examples: int, *, seed: int = 0) -> Partner:
    """Any example, with replacement, the example itself included.

    Example:
        >>> uniform_partner(1)(np.zeros(2, np.int64), 7)
        array([0, 0])
    """
    if num_examples < 1:
        raise InputError("there is no example to take a partner from.")

    def partner(indices: np.ndarray, step: int) -> np.ndarray:
        return _generator(seed, step).integers(0, num_examples, len(indices))

    return partner


def class_partner(labels: np.ndarray, *, seed: int = 0) -> Partner:
    """Another example of the same class, all others alike: positive pairs for supervised contrast.

    Args:
        labels: integers [N].
        seed: of the draws.

    Raises:
        InputError: labels that are no integers; a class has one member, who has nobody to be paired with.

    Example:
        >>> class_partner(np.array([0, 1, 0, 1]))(np.arange(4), 0)
        array([2, 3, 0, 1])
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"classes are integers, not {labels.dtype}.")
    classes, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if (counts < 2).any():
        alone = classes[counts < 2]
        raise InputError(
            f"{len(alone)} of {len(classes)} classes have one member, the first is {alone[0]}: pairs need two. Leave "
            "such classes out, or merge them."
        )
    by_class = np.argsort(own, kind="stable")
    first = np.cumsum(counts) - counts
    place = np.empty_like(by_class)  # of each example within its class
    place[by_class] = np.arange(len(by_class)) - first[own[by_class]]

    def partner(indices: np.ndarray, step: int) -> np.ndarray:
        mine = own[indices]
        further = _generator(seed, step).integers(1, counts[mine])  # 1 ... n-1 places on, in a circle
        return by_class[first[mine] + (place[indices] + further) % counts[mine]]

    return partner


def kernel_partner(values: np.ndarray, *, bandwidth: float, kernel: Kernel = "gaussian", seed: int = 0) -> Partner:
    """Partners that are close in label (or in any other value): `P(j | i) ∝ exp(-‖v_i - v_j‖² / 2h²)`, j = i included.

    Only the B rows of P that a step needs are computed, in float32.

    Args:
        values: [N] or [N, D], labels in their own units (or inputs, flattened).
        bandwidth: h > 0, in the units of the values.
        kernel: "gaussian", or "tophat": uniform over {j: ‖v_i - v_j‖ ≤ h}.
        seed: of the draws.

    Returns:
        (indices, step) -> partners.

    Raises:
        InputError: no values, values that are not finite, bandwidth ≤ 0, unknown kernel.

    Example:
        >>> partner = kernel_partner(np.array([0.0, 9.0, 0.0, 9.0]), bandwidth=0.1)
        >>> (partner(np.array([0, 1]), 5) % 2).tolist()
        [0, 1]

    Reference:
        Yao, Wang, Zhang, Zou, Finn, "C-Mixup: Improving Generalization in Regression", 2022, equation 6
    """
    table = check_values(values)
    kernel_weights(table, table[:1], bandwidth=bandwidth, kernel=kernel)  # refuses now, not at the first step

    def partner(indices: np.ndarray, step: int) -> np.ndarray:
        weights = kernel_weights(table, table[indices], bandwidth=bandwidth, kernel=kernel)
        below = np.cumsum(weights, axis=1, dtype=np.float64)
        drawn = _generator(seed, step).random((len(indices), 1)) * below[:, -1:]
        first = (below <= drawn).sum(axis=1)  # whose sum exceeds the draw: never one of weight 0
        return np.minimum(first, len(table) - 1)  # a draw next to 1 may round to the whole sum

    return partner


def kernel_weights(
    values: np.ndarray, rows: np.ndarray, *, bandwidth: float, kernel: Kernel = "gaussian"
) -> np.ndarray:
    """Weights of similarity of some rows to all values, 1 at the same value; divided by its sum, a row is P(· | i).

    Args:
        values: [N, D].
        rows: [B, D].
        bandwidth, kernel: as in `kernel_partner`.

    Returns:
        float32 [B, N].

    Example:
        >>> kernel_weights(np.array([[0.0], [1.0], [3.0]]), np.array([[0.0]]), bandwidth=1.0, kernel="tophat").tolist()
        [[1.0, 1.0, 0.0]]
    """
    if not bandwidth > 0:
        raise InputError(f"bandwidth must be > 0, in units of the labels; got {bandwidth}.")
    if kernel not in ("gaussian", "tophat"):
        raise InputError(f"kernel must be 'gaussian' or 'tophat'; got {kernel!r}.")
    squared = np.zeros((len(rows), len(values)), np.float32)
    for row, value in zip(rows.T, values.T, strict=True):  # one dimension at a time: no [B, N, D]
        squared += np.square(row[:, None] - value[None, :])
    if kernel == "tophat":
        return (squared <= np.float32(bandwidth) ** 2).astype(np.float32)
    return np.exp(squared / np.float32(-2 * bandwidth**2))


def check_values(values: np.ndarray) -> np.ndarray:
    """Values as float32 [N, D].

    Raises:
        InputError: none at all, or some that are not finite (the first is named).
    """
    values = np.asarray(values, np.float32)
    if values.size == 0:
        raise InputError("the labels are empty: there is nothing to measure similarity by.")
    table = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if bad.size:
        raise InputError(
            f"{bad.size} of {len(table)} labels are not finite, the first in row {bad[0]}: {table[bad[0]][:4]}. "
            "Drop or fill such rows in the source."
        )
    return table


def _generator(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, _STREAM, step])
