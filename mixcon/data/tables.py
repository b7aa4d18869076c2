"""Tables of image paths and captions: CSV, TSV, JSON lines, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcon.data.records import BadRecord, Record, readable
from mixcon.errors import InputError

TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
MAX_BYTES = 64 << 20  # of the files of one record
MAX_GROWTH = 1_000  # of a column in memory against the file: pictures and captions do not come near it
ROWS_AT_ONCE = 16  # of a table with files inside


def open_parquet(path: str | Path, columns: Sequence[str] = ()) -> Any:
    """A `ParquetFile` whose columns do not fill the memory from a few bytes.

    Raises:
        InputError: a column that grows a thousand times and beyond 64 MiB.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    for group in range(file.metadata.num_row_groups):
        for number in range(file.metadata.num_columns):
            part = file.metadata.row_group(group).column(number)
            size, stored = part.total_uncompressed_size, part.total_compressed_size
            if part.path_in_schema.partition(".")[0] in columns and size > max(MAX_BYTES, MAX_GROWTH * stored):
                raise InputError(
                    f"{path}: {stored:,} bytes of column {part.path_in_schema!r} stand for {size:,}; that is refused."
                )
    return file


def column_names(path: Path) -> list[str]:
    """Names of a table's columns; of JSON lines, the keys of the first."""
    with readable(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if path.suffix == ".jsonl":
            return list(next(_json_lines(path), {}))
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file, delimiter=_delimiter(path)), [])


def count_rows(path: Path, columns: Sequence[str]) -> int:
    """How many rows there are; of a parquet file without reading them."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with readable(path):
            return pq.read_metadata(path).num_rows
    return sum(1 for _ in read_rows(path, columns))


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """These cells of every row, as they stand there."""
    with readable(path):
        if path.suffix == ".parquet":
            for batch in open_parquet(path, columns).iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                cells = [batch.column(column) for column in columns]
                yield from (tuple(cell[row].as_py() for cell in cells) for row in range(len(batch)))
        elif path.suffix == ".jsonl":
            for line in _json_lines(path):
                yield tuple(line.get(column) for column in columns)
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file, delimiter=_delimiter(path)):
                    yield tuple(row[column] for column in columns)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield line


def caption_field(language: str) -> str:
    """Where a record has its caption in this language."""
    return f"text_{language}"


def with_captions(text: Any, spoken: Mapping[str, Any]) -> Record:
    """`text`, and beside it a caption for each language, empty where there is none; the first is the text's stand-in.

    Raises:
        BadRecord: no caption at all.

    Example:
        >>> with_captions(None, {"text_en": None, "text_de": "Hund"})
        {'text': 'Hund', 'text_en': '', 'text_de': 'Hund'}
    """
    captions = {name: value if isinstance(value, str) else "" for name, value in spoken.items()}
    if not isinstance(text, str) or not text.strip():
        text = next((caption for caption in captions.values() if caption.strip()), text)
    if not isinstance(text, str):
        raise BadRecord("no caption")
    return {"text": text} | captions


def read_pair(folder: Path, image: Any, text: Any) -> Record:
    """`image` bytes and `text` of a row: a path relative to `folder`, or what parquet keeps inside.

    Raises:
        BadRecord: no caption, no such file, or one above 64 MiB.
    """
    if not isinstance(text, str):
        raise BadRecord("no caption")
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return {"image": image, "text": text}
    try:
        file = folder / str(image)
        if not file.is_file():  # a device would never end
            raise BadRecord("no file")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise BadRecord(f"image of {size:,} bytes; at most {MAX_BYTES:,} are allowed")
        return {"image": file.read_bytes(), "text": text}
    except (OSError, ValueError) as reason:  # ValueError: a name with a null in it
        raise BadRecord(f"no file ({reason})") from None
