"""Numbers that belong to the records of a source, kept beside it: features that a frozen network gave once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcon.data.records import BadRecord, Record, Source
from mixcon.errors import InputError


class Parts:
    """Rows [N, ...] in files of equal numbers of rows, the last one shorter; read where they lie.

    Example:
        >>> rows = Parts(sorted(folder.glob("image-*.npy")))  # doctest: +SKIP
        >>> rows[np.array([5, 70_000])].shape  # doctest: +SKIP
        (2, 1024)
    """

    def __init__(self, paths: Sequence[Path]):
        self._parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        self._each = len(self._parts[0])

    def __len__(self) -> int:
        return self._each * (len(self._parts) - 1) + len(self._parts[-1])

    def __getitem__(self, index: Any) -> np.ndarray:
        if np.ndim(index) == 0:
            part, row = divmod(int(index), self._each)
            return np.asarray(self._parts[part][row])
        found = np.empty((len(index), *self._parts[0].shape[1:]), self._parts[0].dtype)
        part_of, row_of = np.divmod(np.asarray(index), self._each)
        for part in np.unique(part_of):
            mine = part_of == part
            found[mine] = self._parts[part][row_of[mine]]
        return found


class Beside:
    """Records of a source with more fields, row i of each column with record i.

    A record whose row is not a number is bad: it had none to compute it from.

    Args:
        source: records.
        columns: arrays [N, ...], or `Parts`.
        without: fields of the source that are left out.

    Raises:
        InputError: columns of another length.

    Example:
        >>> from mixcon.data.sources import Arrays
        >>> source = Beside(Arrays({"x": np.arange(3), "image": np.zeros(3)}), {"f": np.eye(3)}, without=("image",))
        >>> sorted(source[1])
        ['f', 'x']
    """

    def __init__(self, source: Source, columns: Mapping[str, Any], *, without: Sequence[str] = ()):
        if wrong := {name: len(rows) for name, rows in columns.items() if len(rows) != len(source)}:
            raise InputError(f"columns must have a row for each of the {len(source)} records, not {wrong}.")
        self.source, self.columns, self.without = source, dict(columns), frozenset(without)
        if hasattr(source, "read_rows"):  # instance attribute: the pipeline asks whether it is there
            self.read_rows = self._read_rows

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        own = {name: value for name, value in self.source[index].items() if name not in self.without}
        more = {name: rows[index] for name, rows in self.columns.items()}
        for name, row in more.items():
            if np.isnan(row).any():
                raise BadRecord(f"it has no {name}")
        return own | more

    def _read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        own = self.source.read_rows(indices)  # type: ignore[attr-defined]
        kept = {name: column for name, column in own.items() if name not in self.without}
        return kept | {name: rows[indices] for name, rows in self.columns.items()}
