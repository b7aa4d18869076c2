"""Multi30K captions in English, German, French and Czech, as hashed character n-grams: translations without images."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np

from mixcon.data.catalog import locate
from mixcon.data.records import readable
from mixcon.data.sources import Arrays
from mixcon.errors import InputError

LANGUAGES = ("en", "de", "fr", "cs")
FILES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


def multi30k(
    side: Literal["train", "valid", "test"] = "train",
    *,
    languages: Sequence[str] = LANGUAGES,
    keep: int | None = None,
    buckets: int = 2048,
) -> Arrays:
    """The captions of task 1 (29,000, 1,014 and 1,000 of the 2016 test), one record an image, features by language.

    Args:
        side: "train", "valid" or "test". languages: of en, de, fr, cs. keep: the first so many; None keeps all.
        buckets: of `hashed_ngrams`.

    Returns:
        Records with a float32 row [buckets] under the name of each language.

    Raises:
        InputError: an unknown side or language, or a folder that is not there.

    Example:
        >>> multi30k("test", languages=("en", "de"))[0]["de"].shape
        (2048,)

    Reference: Elliott, Frank, Sima'an, Specia, "Multi30K: Multilingual English-German Image Descriptions", 2016.
    """
    return Arrays({language: _features(side, language, keep, buckets) for language in languages})


def captions(side: str, language: str) -> list[str]:
    """The texts of one language, in the order of the images."""
    if side not in FILES or language not in LANGUAGES:
        raise InputError(
            f"side={side!r}, language={language!r}: Multi30K has {', '.join(FILES)} in {', '.join(LANGUAGES)}."
        )
    path = locate("multi30k") / f"{FILES[side]}.{language}.gz"
    if not path.is_file():
        raise InputError(f"there is no {path}; `mixcon data fetch multi30k` gets it.")
    with readable(path), gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]


@cache
def _features(side: str, language: str, keep: int | None, buckets: int) -> np.ndarray:
    features = hashed_ngrams(captions(side, language)[:keep], buckets=buckets)
    features.flags.writeable = False
    return features


def hashed_ngrams(texts: Sequence[str], *, buckets: int = 2048, sizes: tuple[int, int] = (3, 5)) -> np.ndarray:
    """Character n-grams counted in hashed buckets: `x_b = log(1 + count_b)`, then unit length.

    Texts are lower-cased and have a space before and after them; the hash is CRC-32, the same everywhere.

    Args:
        texts: N strings. buckets: D. sizes: shortest and longest n-gram, in characters.

    Returns:
        float32 [N, D]; a text shorter than the shortest n-gram is a zero row.

    Raises:
        InputError: sizes or buckets that make no n-gram.

    Example:
        >>> a, b, c = hashed_ngrams(["a red heart", "red hearts", "ein Hund"])
        >>> bool(a @ b > 0.4 > a @ c)
        True
    """
    if not 1 <= sizes[0] <= sizes[1] or buckets < 1:
        raise InputError(f"sizes={sizes} must rise from at least 1, and buckets={buckets} be at least 1.")
    counts = np.zeros((len(texts), buckets), np.float32)
    for row, text in zip(counts, texts, strict=True):
        padded = f" {text.lower()} "
        grams = [padded[i : i + n] for n in range(sizes[0], sizes[1] + 1) for i in range(len(padded) - n + 1)]
        if grams:
            np.add.at(row, [zlib.crc32(gram.encode()) % buckets for gram in grams], 1)
    logs = np.log1p(counts)
    return logs / np.maximum(np.linalg.norm(logs, axis=1, keepdims=True), 1e-12)
