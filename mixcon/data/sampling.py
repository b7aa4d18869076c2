"""Which examples make a batch: pure functions from the step to *global* indices.

A sampler is any callable `step -> int64 [batch]`. Nothing here knows how many processes there are: each reads its slice
of the same global batch, so the order of examples is the same on one machine and on a pod.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from mixcon.errors import InputError

Sampler = Callable[[int], np.ndarray]

_ROUNDS = 8
_SMALL = 1 << 16  # examples whose order is computed once an epoch; it is the same either way
_MASK64 = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that scatters every input bit (xor-shift and multiply)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Where a pseudo-random permutation of `range(size)` sends `positions`, without building it.

    A Feistel network permutes the smallest domain of 4**k >= size; values that fall outside `range(size)` are sent
    through again until they fall inside (cycle walking), which keeps it a permutation. Time and memory are O(batch).

    Args:
        positions: int [batch], each in `range(size)`.
        size: number of examples.
        seed, epoch: name the permutation; every pair gives another one.

    Returns:
        int64 [batch], each in `range(size)`.

    Example:
        >>> sorted(permute(np.arange(10), 10, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = np.uint64(max(1, (size - 1).bit_length() + 1 >> 1))
    low = np.uint64((1 << int(half)) - 1)
    words = np.array([seed & _MASK64, epoch], np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(_mix(words[:1] + np.uint64(0x9E3779B97F4A7C15)) + words[1:])
        keys = _mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))

        def feistel(x: np.ndarray) -> np.ndarray:
            left, right = x >> half, x & low
            for round_key in keys:
                left, right = right, left ^ (_mix(right + round_key) & low)
            return (left << half) | right

        result = feistel(np.asarray(positions).astype(np.uint64))
        while (outside := result >= np.uint64(size)).any():
            result[outside] = feistel(result[outside])
    return result.astype(np.int64)


def global_indices(step: int, *, batch_size: int, num_examples: int, seed: int = 0, shuffle: bool = True) -> np.ndarray:
    """Indices of the global batch at `step`.

    Epochs are whole batches: `num_examples // batch_size` steps, each epoch with its own permutation, so no batch
    holds an example twice (a duplicate would be a false negative) and what is left over differs from epoch to epoch.

    Args:
        step: 0, 1, ...
        batch_size: global batch size.
        num_examples: length of the source.
        seed: names the sequence of permutations.
        shuffle: False reads every epoch in order.

    Returns:
        int64 [batch_size].

    Raises:
        InputError: an empty source, a batch size below 1 or above the number of examples.

    Example:
        >>> global_indices(1, batch_size=2, num_examples=5, shuffle=False)
        array([2, 3])
    """
    if num_examples < 1 or batch_size < 1:
        raise InputError(
            f"a batch needs examples: batch_size={batch_size}, num_examples={num_examples}; both must be >= 1."
        )
    if batch_size > num_examples:
        raise InputError(
            f"batch_size={batch_size} is larger than the data set of {num_examples} examples: a batch would hold some "
            "twice, and each would be a negative of itself. Choose a smaller batch."
        )
    epoch, step_in_epoch = divmod(step, num_examples // batch_size)
    positions = np.arange(batch_size, dtype=np.int64) + step_in_epoch * batch_size
    return permute(positions, num_examples, seed=seed, epoch=epoch) if shuffle else positions


def uniform(num_examples: int, batch_size: int, *, seed: int = 0, shuffle: bool = True) -> Sampler:
    """The sampler `step -> global_indices(step, ...)`: every example once per epoch (but for the remainder).

    Example:
        >>> uniform(8, 4, shuffle=False)(1)
        array([4, 5, 6, 7])
    """
    global_indices(0, batch_size=batch_size, num_examples=num_examples)  # refuse bad sizes now, not at the first step

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return permute(np.arange(num_examples), num_examples, seed=seed, epoch=epoch)

    def sampler(step: int) -> np.ndarray:
        if shuffle and num_examples <= _SMALL:
            epoch, within = divmod(step, num_examples // batch_size)
            return order(epoch)[within * batch_size : (within + 1) * batch_size].copy()
        return global_indices(step, batch_size=batch_size, num_examples=num_examples, seed=seed, shuffle=shuffle)

    return sampler


def one_pass(num_examples: int, batch_size: int) -> Sampler:
    """In order, once; rows beyond the end are -1 (padding).

    Example:
        >>> one_pass(5, 3)(1)
        array([ 3,  4, -1])
    """
    if num_examples < 1 or batch_size < 1:
        raise InputError(
            f"a batch needs examples: batch_size={batch_size}, num_examples={num_examples}; both must be >= 1."
        )

    def sampler(step: int) -> np.ndarray:
        indices = np.arange(batch_size, dtype=np.int64) + step * batch_size
        return np.where(indices < num_examples, indices, -1)

    return sampler
