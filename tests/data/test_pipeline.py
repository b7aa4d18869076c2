"""Batches are pure functions of the step, the same however many processes read them, and resumable at every element."""

import json
import threading

import numpy as np
import pytest

from mixcon.data.emoji import Emoji
from mixcon.data.pipeline import Batches, collate, eval_batches, iterate, train_iterator
from mixcon.data.records import BadRecord, Source
from mixcon.data.sampling import uniform
from mixcon.data.sources import Arrays, Mapped
from mixcon.errors import InputError


class Flaky:
    """Record i is i, except that some cannot be read."""

    def __init__(self, size, bad=()):
        self.size, self.bad, self.lock, self.reads = size, set(bad), threading.Lock(), 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self.lock:
            self.reads += 1
        if index in self.bad:
            raise BadRecord("unreadable image")
        return {"x": float(index), "text": f"item {index}"}


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype


def test_sources_fit_the_protocol():
    assert isinstance(Emoji(), Source)
    assert isinstance(Flaky(3), Source)


def test_a_batch_holds_the_records_that_the_sampler_names():
    source = Emoji("composition", "train")
    sampler = uniform(len(source), 32, seed=4)
    batch = Batches(source, sampler)[3]
    np.testing.assert_array_equal(batch["index"], sampler(3))
    for row, index in enumerate(sampler(3)):
        np.testing.assert_array_equal(batch["image"][row], source[int(index)]["image"])
        assert batch["tone_id"][row] == source[int(index)]["tone_id"]
    assert {value.dtype.kind for value in batch.values()} <= set("biuf")
    assert not batch["skipped"].any()


def test_strings_reach_the_transform_and_no_further():
    def lengths(batch):
        return batch | {"length": np.array([len(text) for text in batch["text"]])}

    batch = Batches(Flaky(20), uniform(20, 4, shuffle=False), transform=lengths)[3]
    assert batch["length"].tolist() == [len(f"item {i}") for i in range(12, 16)]
    assert "text" not in batch


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_slices_of_any_number_of_processes_are_the_same_global_batch(count):
    source, sampler = Flaky(100, bad=[5, 6, 50]), uniform(100, 12, seed=1)
    whole = Batches(source, sampler, max_bad_share=1.0)
    slices = [Batches(source, sampler, process_index=i, process_count=count, max_bad_share=1.0) for i in range(count)]
    for step in (0, 7, 8, 30):
        parts = [part[step] for part in slices]
        equal(whole[step], {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def test_every_saved_state_gives_the_whole_rest_again():
    def start():
        return train_iterator(
            Flaky(37, bad=[3]), batch_size=5, seed=2, num_steps=24, num_threads=2, prefetch=3, max_bad_share=1.0
        )

    iterator, states, batches = start(), [], []
    for _ in range(24):
        states.append(json.loads(json.dumps(iterator.get_state())))  # as a checkpoint would keep it
        batches.append(next(iterator))
    with pytest.raises(StopIteration):
        next(iterator)
    other = start()
    for position, state in enumerate(states):
        other.set_state(state)
        rest = list(other)
        assert len(rest) == 24 - position
        for got, expected in zip(rest, batches[position:], strict=True):
            equal(got, expected)


def test_random_access_agrees_with_iteration_whatever_the_threads():
    batches = Batches(Flaky(50), uniform(50, 8, seed=9), num_steps=12)
    for threads, prefetch in ((1, 1), (4, 8)):
        for step, batch in enumerate(iterate(batches, num_threads=threads, prefetch=prefetch)):
            equal(batch, batches[step])
        assert step == 11
    assert len(list(batches)) == 12
    with pytest.raises(IndexError):
        batches[12]


def test_bad_records_are_replaced_by_the_next_one_and_counted():
    source = Flaky(10, bad=[3, 4, 9])
    batch = Batches(source, uniform(10, 10, shuffle=False), max_bad_share=1.0)[0]
    assert batch["index"].tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert batch["skipped"].tolist() == [0, 0, 0, 2, 1, 0, 0, 0, 0, 1]
    assert batch["x"].tolist() == batch["index"].tolist()


def test_too_many_bad_records_stop_the_run_and_a_few_do_not():
    few = Batches(Flaky(10_000, bad=range(0, 10_000, 200)), uniform(10_000, 100), max_bad_share=0.01)
    for step in range(100):
        few[step]
    many = Batches(Flaky(10_000, bad=range(0, 10_000, 20)), uniform(10_000, 100), max_bad_share=0.01)
    with pytest.raises(InputError, match=r"max_bad_share=0.01 .*unreadable image"):
        [many[step] for step in range(100)]


def test_nothing_readable_is_an_error_not_a_loop():
    with pytest.raises(InputError, match="unreadable image"):
        Batches(Flaky(5000, bad=range(5000)), uniform(5000, 8))[0]
    with pytest.raises(InputError, match="none of the 5 records"):
        Batches(Flaky(5, bad=range(5)), uniform(5, 4), max_bad_share=1.0)[0]


def test_the_error_reaches_whoever_iterates():
    with pytest.raises(InputError, match="none of the 5 records"):
        next(train_iterator(Flaky(5, bad=range(5)), batch_size=4, max_bad_share=1.0))


@pytest.mark.parametrize("count", [1, 2])
def test_one_pass_covers_everything_once_and_masks_the_padding(count):
    seen = []
    for index in range(count):
        batches = eval_batches(Flaky(10), batch_size=4, process_index=index, process_count=count)
        assert len(batches) == 3
        for batch in batches:
            assert len(batch["x"]) == 4 // count
            seen += batch["x"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(10))


def test_one_pass_masks_what_replaced_a_bad_record():
    batches = eval_batches(Flaky(6, bad=[2]), batch_size=6, max_bad_share=1.0)
    assert batches[0]["mask"].tolist() == [True, True, False, True, True, True]


def test_collate_narrows_and_refuses_what_does_not_stack():
    batch = collate([{"a": 1, "b": 1.5, "c": np.ones(2), "d": True, "e": "x"}] * 2)
    assert [batch[key].dtype.name for key in "abcd"] == ["int32", "float32", "float32", "bool"]
    assert batch["e"] == ["x", "x"]
    with pytest.raises(InputError, match=r"'image' has different shapes"):
        collate([{"image": np.ones((2, 2))}, {"image": np.ones((3, 2))}])
    with pytest.raises(InputError, match="'a' is missing"):
        collate([{"a": 1}, {"b": 1}])


def test_a_batch_that_does_not_divide_among_processes_is_refused_with_the_nearest_that_do():
    with pytest.raises(InputError, match=r"batch_size=10 .*: 8 and 12"):
        Batches(Flaky(20), uniform(20, 10), process_count=4)
    with pytest.raises(InputError, match="process_index"):
        Batches(Flaky(20), uniform(20, 10), process_index=2, process_count=2)


def test_an_own_sampler_replaces_the_uniform_one():
    iterator = train_iterator(
        Arrays({"x": np.arange(10)}), batch_size=3, sampler=lambda step: np.array([step % 10, 7, 7])
    )
    assert next(iterator)["x"].tolist() == [0, 7, 7]
    assert next(iterator)["x"].tolist() == [1, 7, 7]


def test_arrays_are_read_at_once_as_they_would_be_one_by_one():
    columns = {"x": np.arange(24.0).reshape(12, 2), "label": np.arange(12), "text": [f"t{i}" for i in range(12)]}
    whole = Arrays(columns)
    sampler = uniform(12, 4, seed=3)
    seen = []
    kept = {"transform": lambda batch: (seen.append(batch["text"]), batch)[1]}
    for step in (0, 5):
        fast = Batches(whole, sampler, **kept)[step]
        slow = Batches(Mapped(whole, lambda record: record), sampler, **kept)[step]
        assert fast.keys() == slow.keys() == {"x", "label", "index", "skipped"}
        for key in fast:
            assert fast[key].dtype == slow[key].dtype
            np.testing.assert_array_equal(fast[key], slow[key])
        assert seen[-1] == seen[-2]
