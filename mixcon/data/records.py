"""What a data source is, and how a record says that it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

Record = dict[str, Any]


class BadRecord(Exception):
    """This record cannot be used (unreadable image, empty caption); the pipeline takes the next one and counts."""


@runtime_checkable
class Source(Protocol):
    """Random access to records: all that the pipeline asks for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def read(source: Source) -> Iterator[Record]:
    """All records of a source in order (a `Protocol` with `__getitem__` alone would need an IndexError to end)."""
    for index in range(len(source)):
        yield source[index]
