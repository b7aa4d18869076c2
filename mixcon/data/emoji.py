"""The embedded image–text set: 3,634 emoji with their names in 18 languages, and two splits that do not leak."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mixcon.errors import InputError

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "pl", "ru", "tr", "ar", "hi", "zh", "ja", "ko", "vi", "sw", "id", "cs")
SPLITS = ("concept", "composition", "both")
SIDES = ("train", "test", "all")
LABELS = ("group", "subgroup", "base", "tone", "gender")


@cache
def _columns(*names: str) -> tuple[list[Any], ...]:
    table = pq.read_table(io.BytesIO(_file()), columns=list(names))
    return tuple(table.column(name).to_pylist() for name in names)


def _file() -> bytes:
    return files("mixcon.data").joinpath("embedded", "emoji.parquet").read_bytes()


@cache
def _sides(split: str) -> tuple[str, ...]:
    """The side of each row; in "both" a row is on the train side only if it is so in either split."""
    if split != "both":
        return tuple(_columns(split)[0])
    return tuple(
        "train" if sides == ("train", "train") else "test"
        for sides in zip(*_columns("concept", "composition"), strict=True)
    )


@cache
def images() -> np.ndarray:
    """uint8 [3634, 64, 64, 3], decoded once per process and shared by every source; read-only."""
    (encoded,) = _columns("image")
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded])
    decoded.flags.writeable = False
    return decoded


@cache
def names() -> dict[str, tuple[str, ...]]:
    """Name tables of the integer labels: `names()["tone"][record["tone_id"]] == record["tone"]`.

    "none" is id 0 of tone and gender; the others are in order of first appearance, the same for every split and side.
    """
    return {label: tuple(dict.fromkeys(column)) for label, column in zip(LABELS, _columns(*LABELS), strict=True)}


class Emoji:
    """Random-access source of emoji and their names.

    One item is one (emoji, language) pair; item `i` is emoji `i // len(languages)` of the chosen side in language
    `languages[i % len(languages)]`.

    Args:
        split: "composition" (test: a seen base with a seen skin tone and gender, in an unseen combination) or
            "concept" (test: bases of which no variant is in train) or "both" (train: what neither split holds out).
        side: "train", "test" or "all".
        languages: any of `LANGUAGES`.

    Raises:
        InputError: unknown split, side or language.

    Example:
        >>> source = Emoji("composition", "train", languages=("en", "de"))
        >>> record = source[1]
        >>> record["text"], record["group"], record["image"].shape
        ('grinsendes Gesicht', 'Smileys & Emotion', (64, 64, 3))

    Reference:
        Pictures: Noto Color Emoji (SIL OFL 1.1). Names and keywords: Unicode CLDR 41. Groups: emoji-test.txt 15.0.
    """

    def __init__(
        self,
        split: Literal["composition", "concept", "both"] = "composition",
        side: Literal["train", "test", "all"] = "train",
        *,
        languages: Sequence[str] = ("en",),
    ):
        if split not in SPLITS:
            raise InputError(f"emoji: split={split!r} is not one of {', '.join(SPLITS)}.")
        if side not in SIDES:
            raise InputError(f"emoji: side={side!r} is not one of {', '.join(SIDES)}.")
        languages = (languages,) if isinstance(languages, str) else tuple(languages)
        if not languages or not set(languages) <= set(LANGUAGES):
            raise InputError(f"emoji: languages={languages!r} must be one or more of {', '.join(LANGUAGES)}.")
        self.languages = languages
        sides = _sides(split)
        self.rows = np.flatnonzero([side in ("all", value) for value in sides])  # positions in the whole set
        self._texts = dict(zip(languages, _columns(*(f"name_{language}" for language in languages)), strict=True))
        self._keywords = dict(zip(languages, _columns(*(f"keywords_{lang}" for lang in languages)), strict=True))
        columns = dict(zip(LABELS, _columns(*LABELS), strict=True))
        ids = {label: {name: i for i, name in enumerate(table)} for label, table in names().items()}
        (emoji,) = _columns("emoji")
        self._labels = [
            {"emoji": emoji[row]}
            | {label: columns[label][row] for label in LABELS}
            | {f"{label}_id": np.int32(ids[label][columns[label][row]]) for label in LABELS}
            for row in range(len(sides))
        ]

    def __len__(self) -> int:
        return len(self.rows) * len(self.languages)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{image uint8 [64, 64, 3], text, language, keywords, emoji, group, subgroup, base, tone, gender, *_id}`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        position, which = divmod(int(index), len(self.languages))
        row, language = int(self.rows[position]), self.languages[which]
        return {
            "image": images()[row],
            "text": self._texts[language][row],
            "language": language,
            "keywords": self._keywords[language][row],
            **self._labels[row],
        }
