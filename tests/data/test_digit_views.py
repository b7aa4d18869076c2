"""Two views of the same digits, and long tails."""

import numpy as np
import pytest

from mixcon.data.digit_views import digit_views, long_tail
from mixcon.errors import InputError


def test_the_sides_are_balanced_disjoint_and_aligned():
    train, test = digit_views("train"), digit_views("test")
    assert np.bincount(train.columns["label"]).tolist() == [150] * 10
    assert np.bincount(test.columns["label"]).tolist() == [50] * 10
    rows = {bytes(row) for row in train.columns["pix"]}
    assert len(rows & {bytes(row) for row in test.columns["pix"]}) <= 6  # six of the 2,000 scans are there twice
    assert train[0]["pix"].shape == (240,)
    assert train[0]["fou"].shape == (76,)
    assert train[0]["pix"].dtype == np.float32


def test_views_are_standardised_by_the_whole_training_side_however_long_its_tail():
    whole, tail = digit_views("train"), digit_views("train", factor=0.02)
    for view in ("pix", "fou"):
        np.testing.assert_allclose(whole.columns[view].mean(0), 0, atol=1e-5)
        kept = {bytes(row) for row in whole.columns[view]}
        assert all(bytes(row) in kept for row in tail.columns[view])


def test_the_tail_falls_exponentially_and_is_repeatable():
    sizes = np.bincount(digit_views("train", factor=0.02).columns["label"])
    assert sizes.tolist() == [int(150 * 0.02 ** (c / 9) + 1e-9) for c in range(10)]
    labels = np.repeat([0, 1, 2], 100)
    first = long_tail(labels, 0.01, seed=3)
    assert np.array_equal(first, long_tail(labels, 0.01, seed=3))
    assert not np.array_equal(first, long_tail(labels, 0.01, seed=4))
    assert np.array_equal(long_tail(labels, 1.0), np.arange(300))


def test_some_are_kept_and_some_are_mismatched_but_nothing_is_lost():
    few = digit_views("train", keep=200).columns
    assert np.bincount(few["label"]).tolist() == [20] * 10
    whole, noisy = digit_views("train").columns, digit_views("train", mismatched=0.2).columns
    np.testing.assert_array_equal(noisy["pix"], whole["pix"])
    moved = (noisy["fou"] != whole["fou"]).any(1)
    assert 295 <= moved.sum() <= 300  # a few digits are there twice
    rows = lambda x: sorted(map(tuple, x.tolist()))  # noqa: E731
    assert rows(noisy["fou"]) == rows(whole["fou"])
    np.testing.assert_array_equal(
        digit_views("test", mismatched=0.5).columns["fou"], digit_views("test").columns["fou"]
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: digit_views("valid"), "side='valid'"),
        (lambda: digit_views(views=("pix", "pixels")), "must name two of"),
        (lambda: digit_views(views=("pix", "pix")), "must name two of"),
        (lambda: digit_views(keep=1600), "keep=1600"),
        (lambda: digit_views(mismatched=1.5), "mismatched=1.5"),
        (lambda: long_tail(np.zeros(5, int), 0.0), "must lie in"),
        (lambda: long_tail(np.repeat([0, 1], [100, 3]), 0.5), "class 1 has 3 examples"),
    ],
)
def test_bad_input_is_said(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_another_view_is_looked_for_where_data_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="mixcon data fetch mfeat"):
        digit_views(views=("pix", "kar"))
