"""Partners out of the whole set follow the kernel, are pure functions of the step, and refuse what cannot be drawn."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mixcon.data import partners
from mixcon.data.pipeline import train_iterator
from mixcon.data.sampling import uniform
from mixcon.data.sources import Arrays
from mixcon.errors import InputError


def golden():
    with np.load("tests/golden/cmixup.npz") as arrays:
        return {key[3:]: arrays[key] for key in arrays.files if key.startswith("c0/")}


def test_rows_of_p_are_those_of_the_original_code():
    case = golden()
    y = case["in/y"].astype(np.float32)
    weights = partners.kernel_weights(y, y, bandwidth=float(case["in/bandwidth"]))
    assert weights.dtype == np.float32
    assert_allclose(weights / weights.sum(axis=1, keepdims=True), case["out/rates"], rtol=1e-5, atol=1e-12)


def test_draws_come_as_often_as_p_says():
    y = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [9.0, 9.0]], np.float32)
    expected = np.exp([0.0, -1 / 4.5, -2 / 4.5, -162 / 4.5])  # by hand, h = 1.5
    draw = partners.kernel_partner(y, bandwidth=1.5, seed=3)
    drawn = np.concatenate([draw(np.zeros(1000, np.int64), step) for step in range(20)])
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert_allclose(shares, expected / expected.sum(), atol=4 * (0.25 / len(drawn)) ** 0.5)


def test_tophat_draws_all_within_the_bandwidth_alike_and_nobody_else():
    draw = partners.kernel_partner(np.array([0.0, 1.0, 1.0, 2.5]), bandwidth=1.0, kernel="tophat", seed=1)
    drawn = draw(np.repeat([0, 3], 3000), 0).reshape(2, -1)
    assert_allclose(np.bincount(drawn[0], minlength=4) / 3000, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.04)
    assert set(drawn[1]) == {3}


@pytest.mark.parametrize(("bandwidth", "kind"), [(1e-6, "self"), (1e9, "uniform")])
def test_the_limits_are_no_mixing_and_plain_mixup(bandwidth, kind):
    y = np.linspace(100, 140, 50)  # decibels: far beyond what exp of a raw density would bear
    drawn = partners.kernel_partner(y, bandwidth=bandwidth)(np.repeat(7, 5000), 0)
    if kind == "self":
        assert set(drawn) == {7}
    else:
        assert_allclose(np.bincount(drawn, minlength=50) / 5000, np.full(50, 0.02), atol=0.01)


def test_a_partner_of_the_class_is_every_other_member_alike():
    labels = np.array([7, 3, 7, 3, 7, 7])
    draw = partners.class_partner(labels, seed=2)
    drawn = draw(np.repeat(np.arange(6), 3000), 5).reshape(6, -1)
    for index, row in enumerate(drawn):
        others = [j for j in range(6) if labels[j] == labels[index] and j != index]
        shares = np.bincount(row, minlength=6) / row.size
        assert_allclose(shares, [j in others and 1 / len(others) for j in range(6)], atol=0.04)
    assert_array_equal(draw(np.arange(6), 5), draw(np.arange(6), 5))


def test_a_class_of_one_cannot_be_paired():
    with pytest.raises(InputError, match="1 of 3 classes have one member, the first is 9"):
        partners.class_partner(np.array([1, 1, 9, 2, 2]))


def test_couples_stay_together_and_depend_on_seed_and_step_alone():
    y = np.arange(12.0)
    own = uniform(12, 4, seed=5)
    sampler = partners.paired(own, partners.kernel_partner(y, bandwidth=2.0, seed=5))
    assert_array_equal(sampler(3)[0::2], own(3))
    assert_array_equal(sampler(3), sampler(3))
    assert (sampler(3)[1::2] != sampler(0)[1::2]).any()
    other = partners.paired(own, partners.kernel_partner(y, bandwidth=2.0, seed=6))
    assert any((sampler(step) != other(step)).any() for step in range(4))
    source = Arrays({"y": y})
    iterator = train_iterator(source, batch_size=4, sampler=sampler)
    next(iterator)
    state = iterator.get_state()
    rest = [next(iterator)["index"] for _ in range(5)]
    resumed = train_iterator(source, batch_size=4, sampler=sampler)
    resumed.set_state(state)
    for index in rest:
        assert_array_equal(next(resumed)["index"], index)
    halves = [
        next(train_iterator(source, batch_size=4, sampler=sampler, process_index=p, process_count=2)) for p in (0, 1)
    ]
    assert_array_equal(np.concatenate([half["index"] for half in halves]), sampler(0))


def test_uniform_partners_are_any_of_the_set():
    drawn = partners.uniform_partner(10, seed=2)(np.zeros(5000, np.int64), 1)
    assert_allclose(np.bincount(drawn, minlength=10) / 5000, np.full(10, 0.1), atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(values=np.array([0.0, np.nan, 1.0]), bandwidth=1.0), "first in row 1"),
        (dict(values=np.array([0.0, np.inf]), bandwidth=1.0), "not finite"),
        (dict(values=np.zeros((0, 1)), bandwidth=1.0), "empty"),
        (dict(values=np.zeros(3), bandwidth=0.0), "bandwidth must be > 0"),
        (dict(values=np.zeros(3), bandwidth=-1.0), "bandwidth must be > 0"),
        (dict(values=np.zeros(3), bandwidth=float("nan")), "bandwidth must be > 0"),
        (dict(values=np.zeros(3), bandwidth=1.0, kernel="box"), "gaussian"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        partners.kernel_partner(**arguments)
