"""From a source and a sampler to batches: random access by step, one slice per process, resumable to the bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any

import grain.python as grain
import numpy as np

from mixcon.data.records import BadRecord, Record, Source
from mixcon.data.sampling import Sampler, one_pass, uniform
from mixcon.errors import InputError

Batch = dict[str, Any]
Transform = Callable[[Batch], Batch]

_NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32, np.dtype(np.float64): np.float32}
_MIN_SEEN = 1024  # a share of bad records means little before this many were read


def collate(records: list[Record]) -> Batch:
    """Stacks numbers and arrays along a new first axis; strings and bytes become lists.

    64-bit numbers become 32-bit, as they would on the device.

    Raises:
        InputError: records with different keys, arrays of different shapes under one key, or integers beyond 32 bits.

    Example:
        >>> collate([{"x": 1.0, "text": "a"}, {"x": 2.0, "text": "b"}])
        {'x': array([1., 2.], dtype=float32), 'text': ['a', 'b']}
    """
    columns: dict[str, list[Any]] = {}
    for key in records[0]:
        try:
            columns[key] = [record[key] for record in records]
        except KeyError:
            raise InputError(f"records differ in their fields: {key!r} is missing in some of them.") from None
    return {key: _stacked(key, column) for key, column in columns.items()}


def _stacked(key: str, column: Sequence[Any] | np.ndarray) -> Any:
    """One field of a batch."""
    if isinstance(column[0], (str, bytes)):
        return list(column)
    try:
        stacked = np.asarray(column)  # faster than np.stack on scalars
    except ValueError:
        shapes = sorted({np.shape(value) for value in column})[:3]
        raise InputError(
            f"{key!r} has different shapes in one batch ({shapes}); resize or pad it in the source."
        ) from None
    if stacked.dtype.kind in "US":
        raise InputError(f"{key!r} has texts beside numbers in one batch.")
    narrow = _NARROW.get(stacked.dtype, stacked.dtype)
    if narrow != stacked.dtype and stacked.dtype.kind in "iu" and stacked.size:
        limits = np.iinfo(narrow)
        if stacked.min() < limits.min or stacked.max() > limits.max:
            raise InputError(f"{key!r} has {stacked.max()} or {stacked.min()}, which 32 bits cannot hold.")
    return stacked.astype(narrow, copy=False)


class Batches:
    """Random access to batches: `batches[step]` is a pure function of the step.

    Each process reads its contiguous slice of the global batch. A record that raises `BadRecord` is replaced by the
    next index that can be read, and counted. Every batch is a dict of numpy arrays with this process's rows first:
    what the records held (through `transform`, which sees whole batches with strings as lists; strings that are left
    afterwards are dropped, since no device takes them) and

        index    int32 [rows]   which record of the source it is
        skipped  int32 [rows]   how many bad records were passed over to fill this row
        mask     bool  [rows]   only `with_mask`: False for padding and for what replaced a bad record

    Args:
        source: random-access records.
        sampler: step -> int64 [global batch]; -1 is padding.
        transform: batch -> batch, on the host (tokenisation); must be a pure function. It also sees `index` and the
            number `at_step`, from which what it draws can be derived.
        process_index, process_count: which slice of the global batch to read.
        num_steps: length; endless by default.
        with_mask: add `mask`.
        max_bad_share: the largest share of bad records among those read that is borne.

    Raises:
        InputError: batch not divisible by the processes; (on reading) too many bad records.

    Example:
        >>> from mixcon.data.emoji import Emoji
        >>> source = Emoji("composition", "train")
        >>> batches = Batches(source, uniform(len(source), 256, seed=0))
        >>> batches[7]["image"].shape
        (256, 64, 64, 3)
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        *,
        transform: Transform | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_steps: int | None = None,
        with_mask: bool = False,
        max_bad_share: float = 0.01,
    ):
        size = len(sampler(0))
        if size % process_count:
            raise InputError(
                f"batch_size={size} is not divisible by the {process_count} processes; "
                f"the nearest sizes that are: {size // process_count * process_count or process_count} "
                f"and {-(-size // process_count) * process_count}."
            )
        if not 0 <= process_index < process_count:
            raise InputError(f"process_index={process_index} must be in range({process_count}).")
        if len(source) > np.iinfo(np.int32).max:
            raise InputError(f"the source has {len(source):,} records; indices in a batch are int32. Shard it.")
        rows = size // process_count
        self.source, self.sampler, self.transform = source, sampler, transform
        self.with_mask, self.max_bad_share = with_mask, max_bad_share
        self._slice = slice(process_index * rows, (process_index + 1) * rows)
        self._num_steps = sys.maxsize if num_steps is None else num_steps
        self._lock, self._read, self._bad, self._last_bad = Lock(), 0, 0, ""

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[Batch]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        wanted = self.sampler(int(step))[self._slice]
        batch, index, skipped = self._read_rows(np.maximum(wanted, 0))
        if self.transform is not None:
            batch = self.transform(batch | {"index": index, "at_step": int(step)})
        batch = {
            key: value for key, value in batch.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        }
        batch |= {"index": index, "skipped": skipped}
        if self.with_mask:
            batch["mask"] = (wanted >= 0) & (skipped == 0)
        return batch

    def _read_rows(self, wanted: np.ndarray) -> tuple[Batch, np.ndarray, np.ndarray]:
        """The collated records, which ones they are, and how many bad ones were passed over for each."""
        if hasattr(self.source, "read_rows"):  # arrays: all rows at once, and none of them can be bad
            batch = {key: _stacked(key, column) for key, column in self.source.read_rows(wanted).items()}
            return batch, wanted.astype(np.int32), np.zeros(len(wanted), np.int32)
        records, index, skipped = [], np.empty(len(wanted), np.int32), np.zeros(len(wanted), np.int32)
        for row, first in enumerate(wanted):
            record, index[row], skipped[row] = self._readable(int(first))
            records.append(record)
        self._count(len(wanted), bad=False)
        return collate(records), index, skipped

    def _readable(self, index: int) -> tuple[Record, int, int]:
        for skipped in range(len(self.source)):
            try:
                return self.source[index], index, skipped
            except BadRecord as reason:
                self._last_bad = f"record {index}: {reason}"
                index = (index + 1) % len(self.source)
                self._count(1, bad=True)
        raise InputError(f"none of the {len(self.source)} records can be used; the last one tried is {self._last_bad}.")

    def _count(self, records: int, *, bad: bool) -> None:
        """Only a guard: the counts decide whether to stop, never what a batch holds."""
        with self._lock:
            self._read += records
            self._bad += records * bad
            read, lost = self._read, self._bad
        if lost > self.max_bad_share * max(read, _MIN_SEEN):
            raise InputError(
                f"{lost} of {read} records read cannot be used, more than max_bad_share={self.max_bad_share:.3g} "
                f"allows; the last one is {self._last_bad}. Repair the data, or raise max_bad_share."
            )


def iterate(batches: Batches, *, num_threads: int = 1, prefetch: int = 2) -> grain.DatasetIterator:
    """A Grain iterator over `batches`, read ahead by threads; `get_state`/`set_state` resume it exactly."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def train_iterator(
    source: Source,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    sampler: Sampler | None = None,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_steps: int | None = None,
    max_bad_share: float = 0.01,
    num_threads: int = 1,
    prefetch: int = 2,
) -> grain.DatasetIterator:
    """Endless (or `num_steps`) shuffled batches with a state that can be saved.

    Args:
        source: random-access records.
        batch_size: global batch size.
        sampler: replaces the uniform one (then `batch_size`, `seed` and `shuffle` are the sampler's business).
        num_threads, prefetch: batches are read ahead by that many threads, that many at a time.
        For the others see `Batches` and `sampling.global_indices`.

    Returns:
        An iterator of dicts of numpy arrays with `get_state()` and `set_state(state)`.

    Raises:
        InputError: see `Batches`.

    Example:
        >>> from mixcon.data.emoji import Emoji
        >>> iterator = train_iterator(Emoji(), batch_size=32)
        >>> sorted(next(iterator))[:2]
        ['base_id', 'gender_id']
    """
    sampler = sampler or uniform(len(source), batch_size, seed=seed, shuffle=shuffle)
    batches = Batches(
        source,
        sampler,
        transform=transform,
        process_index=process_index,
        process_count=process_count,
        num_steps=num_steps,
        max_bad_share=max_bad_share,
    )
    return iterate(batches, num_threads=num_threads, prefetch=prefetch)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    max_bad_share: float = 0.01,
) -> Batches:
    """One pass in order; the last batch is padded, and `mask` says which rows count.

    Returns:
        A sequence of batches: `len(batches)` of them, `for batch in iterate(batches)` or `batches[i]`.

    Example:
        >>> from mixcon.data.emoji import Emoji
        >>> batches = eval_batches(Emoji("composition", "test"), batch_size=256)
        >>> len(batches), int(batches[1]["mask"].sum())
        (2, 144)
    """
    return Batches(
        source,
        one_pass(len(source), batch_size),
        transform=transform,
        process_index=process_index,
        process_count=process_count,
        num_steps=-(-len(source) // batch_size),
        with_mask=True,
        max_bad_share=max_bad_share,
    )
