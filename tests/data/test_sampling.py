"""Samplers are pure functions of the step; permutations are permutations, spread well, and cost O(batch)."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcon.data import sampling
from mixcon.data.sampling import global_indices, one_pass, permute, uniform
from mixcon.errors import InputError


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**70), epoch=st.integers(0, 10**6))
def test_permute_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed=seed, epoch=epoch).tolist()) == list(range(size))


def test_permute_is_the_same_whatever_is_asked_together():
    whole = permute(np.arange(1000), 1000, seed=3, epoch=1)
    alone = [permute(np.array([i]), 1000, seed=3, epoch=1)[0] for i in range(0, 1000, 37)]
    assert whole[::37].tolist() == alone


@pytest.mark.parametrize("size", [10, 17, 64, 3234])
def test_permutations_are_uniform_over_epochs(size):
    """Where the first example lands, over epochs: chi-square, and lag-1 neighbours are not kept together."""
    draws = np.array([permute(np.arange(2), size, seed=0, epoch=epoch) for epoch in range(2000)])
    bins = min(size, 10)
    counts = np.bincount(draws[:, 0] * bins // size, minlength=bins)
    expected = 2000 * np.array([np.sum(np.arange(size) * bins // size == b) for b in range(bins)]) / size
    assert ((counts - expected) ** 2 / expected).sum() < 28  # 9 degrees of freedom, p = 0.001
    assert np.mean(draws[:, 1] == draws[:, 0] + 1) < 3 / size


def test_seeds_and_epochs_are_not_shifts_of_each_other():
    orders = {tuple(permute(np.arange(50), 50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_an_epoch_visits_each_example_once_and_drops_a_different_rest():
    sampler = uniform(103, 10, seed=5)
    epochs = [np.concatenate([sampler(step) for step in range(first, first + 10)]) for first in (0, 10)]
    assert all(len(set(epoch.tolist())) == 100 for epoch in epochs)
    assert set(range(103)) - set(epochs[0].tolist()) != set(range(103)) - set(epochs[1].tolist())
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="batch_size=25 is larger than the data set of 10"):
        uniform(10, 25)


def test_unshuffled_order_and_one_pass():
    assert [global_indices(s, batch_size=2, num_examples=5, shuffle=False).tolist() for s in range(3)] == [
        [0, 1],
        [2, 3],
        [0, 1],
    ]
    assert [one_pass(5, 2)(s).tolist() for s in range(3)] == [[0, 1], [2, 3], [4, -1]]


def test_memory_does_not_grow_with_the_data_set():
    tracemalloc.start()
    indices = global_indices(10**6, batch_size=1024, num_examples=2 * 10**9, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(indices.tolist())) == 1024
    assert indices.dtype == np.int64
    assert indices.max() > 10**9


def test_order_is_pinned():
    """Resuming an old run needs yesterday's order: a change of these numbers breaks every checkpoint."""
    assert global_indices(0, batch_size=6, num_examples=1000, seed=0).tolist() == [769, 98, 584, 57, 743, 7]
    later = global_indices(500, batch_size=6, num_examples=1000, seed=7)
    assert later.tolist() == [845, 970, 307, 794, 464, 336]


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_bad_sizes_are_refused_at_once(sizes):
    with pytest.raises(InputError, match="batch_size"):
        uniform(*sizes)
    with pytest.raises(InputError, match="batch_size"):
        one_pass(*sizes)


@pytest.mark.parametrize("size", [103, sampling._SMALL + 3])
def test_the_order_is_the_same_whether_an_epoch_is_kept_or_not(size):
    batch = size // 4
    sampler = sampling.uniform(size, batch, seed=7)
    for step in (9, 0, 5, 4, 9):
        expected = sampling.global_indices(step, batch_size=batch, num_examples=size, seed=7)
        np.testing.assert_array_equal(sampler(step), expected)
