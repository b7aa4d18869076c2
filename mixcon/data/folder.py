"""A folder of pictures with captions, read where it lies: a table beside the pictures, or a text file beside each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mixcon.data.catalog import cache_dir
from mixcon.data.records import BadRecord, Record, Source, image_text
from mixcon.data.sources import Cached, Mapped
from mixcon.data.tables import TABLES, column_names, read_pair, read_rows
from mixcon.data.tars import IMAGES
from mixcon.errors import InputError

IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "image_path", "filepath", "path")
TEXT_COLUMNS = ("text", "caption", "captions", "description", "title", "sentence", "prompt")
SIDES = ("train", "test", "all")


def image_folder(
    path: str | os.PathLike[str],
    *,
    side: Literal["train", "test", "all"] = "all",
    held_out: float = 0.1,
    size: tuple[int, int] = (224, 224),
    image_column: str = "",
    text_column: str = "",
    keep: bool = False,
) -> Source:
    """Pairs of a folder: `image` uint8 [*size, 3] (scaled to cover, centre cut), `text`, and `file`, its name.

    Either one table lies in the folder (`.csv`, `.tsv`, `.jsonl` or `.parquet`, with the pictures' paths and captions),
    or beside each picture a file of the same name that ends in `.txt`, in the folder or below it.

    Which side a pair is on depends on the picture's name alone: a picture with several captions is never on both, and
    pictures that are added later move none.

    Args:
        path: the folder; a relative one is looked for from here, in `$MIXCON_DATA`, then in the cache folder.
        side: "train", "test" or "all".
        held_out: share of the pictures that is on the test side.
        size: height and width in pixels.
        image_column, text_column: of the table; by default the first that is named as people name them.
        keep: decode each picture once and keep it in memory.

    Raises:
        InputError: no such folder, no captions in it, several tables, a table without such columns, an unknown side, a
            share outside [0, 1], or a side without pictures.

    Example:
        >>> source = image_folder("holiday", side="train", size=(64, 64))  # doctest: +SKIP

    """
    if side not in SIDES:
        raise InputError(f"image_folder: side={side!r} is not one of {', '.join(SIDES)}.")
    if not 0 <= held_out <= 1:
        raise InputError(f"image_folder: held_out={held_out} is a share, between 0 and 1.")
    folder = _find(path)
    found = _pairs(folder, image_column, text_column)
    chosen = [pair for pair in found if side == "all" or (_place(pair[0]) < held_out) == (side == "test")]
    if not chosen:
        raise InputError(
            f"image_folder: none of the {len(found)} pictures of {folder} is on the {side} side; change held_out."
        )
    source = Mapped(ImageFolder(folder, chosen), image_text(*size))
    return Cached(source) if keep else source


class ImageFolder:
    """Records `image` (bytes of the file), `text` and `file`, of pairs of a path and a caption (or of its file).

    Example:
        >>> ImageFolder(Path("holiday"), [("beach.jpg", "two dogs on a beach")])[0]["text"]  # doctest: +SKIP
        'two dogs on a beach'
    """

    def __init__(self, folder: Path, pairs: Sequence[tuple[str, str | Path | None]]):
        self.folder, self.pairs = folder, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, text = self.pairs[index]
        return read_pair(self.folder, name, _words(text) if isinstance(text, Path) else text) | {"file": name}


def _find(path: str | os.PathLike[str]) -> Path:
    given = Path(path).expanduser()
    for root in (Path(), Path(os.environ.get("MIXCON_DATA", "")).expanduser(), cache_dir()):
        if (root / given).is_dir():
            return root / given
    raise InputError(f"there is no folder {path}, neither from here nor in MIXCON_DATA nor in {cache_dir()}.")


def _pairs(folder: Path, image_column: str, text_column: str) -> list[tuple[str, str | Path | None]]:
    tables = sorted(file for file in folder.iterdir() if file.suffix in TABLES)
    if len(tables) > 1:
        raise InputError(f"{folder} has several tables ({', '.join(t.name for t in tables)}); keep one of them there.")
    if tables:
        present = column_names(tables[0])
        columns = (
            _column(tables[0], image_column, IMAGE_COLUMNS, present),
            _column(tables[0], text_column, TEXT_COLUMNS, present),
        )
        return [(str(image), text) for image, text in read_rows(tables[0], columns)]
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
    beside = [(str(file.relative_to(folder)), file.with_suffix(".txt")) for file in pictures]
    found: list[tuple[str, str | Path | None]] = [(name, text) for name, text in beside if text.is_file()]
    if not found:
        raise InputError(
            f"{folder} has {len(pictures)} pictures and no captions: put a table there (captions.csv, columns image "
            "and text; also .tsv, .jsonl, .parquet), or beside each picture a .txt of the same name."
        )
    return found


def _column(table: Path, named: str, usual: Sequence[str], present: Sequence[str]) -> str:
    if found := [name for name in ((named,) if named else usual) if name in present]:
        return found[0]
    wanted = repr(named) if named else f"{', '.join(usual)}"
    raise InputError(f"{table} has no column {wanted}; it has {', '.join(present)}. Name image_column and text_column.")


def _words(file: Path) -> str:
    try:
        return " ".join(file.read_text(encoding="utf-8-sig")[:10_000].split())
    except (OSError, ValueError) as reason:
        raise BadRecord(f"unreadable caption ({reason})") from None


def _place(name: str) -> float:
    """Where a name lies in [0, 1): the same everywhere and always."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big") / 2**64
