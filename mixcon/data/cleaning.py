"""Which pairs of a noisy crawl are kept: ALIGN's rules on image and alt-text, as predicates on what was counted before.

A census of all pairs comes first, because some rules ask how often a text, an image or a word occurs in the raw data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from PIL import Image

from mixcon.data.records import decode_image
from mixcon.errors import InputError, nearest

RULES = ("size", "aspect", "texts_of_image", "held_out", "images_of_text", "rare_text", "length")  # in this order
WORD = re.compile(r"\w+(?:['’\-]\w+)*")
HASH_SIDE = 8


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds; the defaults are the published ones."""

    min_side: int = 200  # pixels; the shorter side must be longer
    max_aspect: float = 3.0  # longer over shorter side; must be below
    max_texts: int = 1000  # different alt-texts of one image; must be below
    max_distance: int = 4  # of 64 bits of a difference hash: an image this near a held-out one is that one
    max_images: int = 10  # different images that share one alt-text; at most
    vocabulary: int = 100_000_000  # most frequent unigrams and bigrams of the raw data; others are rare
    min_words: int = 3  # at least
    max_words: int = 20  # at most

    def __post_init__(self) -> None:
        if min(self.min_side, self.max_texts, self.max_distance, self.max_images, self.min_words) < 0:
            raise InputError(f"rules of cleaning must not be negative: {self}")
        if not self.max_aspect > 1 or self.vocabulary < 1 or self.max_words < max(self.min_words, 1):
            raise InputError(f"max_aspect must be above 1, vocabulary at least 1, max_words at least min_words: {self}")


def align_image_filter(
    size: tuple[int, int], *, texts: int, picture: int, held_out: np.ndarray, rules: Rules = Rules()
) -> str:
    """The first rule that an image breaks, or "".

    Args:
        size: width and height in pixels.
        texts: how many different alt-texts it has in the raw data.
        picture: its `difference_hash`.
        held_out: uint64 [H], those of the images that evaluations use.
        rules: thresholds.

    Example:
        >>> align_image_filter((640, 480), texts=1, picture=0, held_out=np.zeros(0, np.uint64))
        ''
        >>> align_image_filter((640, 200), texts=1, picture=0, held_out=np.zeros(0, np.uint64))
        'size'

    Reference: Jia et al., "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision",
        2021, section 3 (image-based filtering; their near-duplicates are found by a learned model).
    """
    if min(size) <= rules.min_side:
        return "size"
    if max(size) >= rules.max_aspect * min(size):
        return "aspect"
    if texts >= rules.max_texts:
        return "texts_of_image"
    if len(held_out) and int(np.bitwise_count(held_out ^ np.uint64(picture)).min()) <= rules.max_distance:
        return "held_out"
    return ""


def align_text_filter(text: str, *, images: int, common: Collection[int] | None, rules: Rules = Rules()) -> str:
    """The first rule that an alt-text breaks, or "".

    Args:
        text: as it was found.
        images: how many different images share it in the raw data.
        common: digests of the most frequent unigrams and bigrams; None if all are.
        rules: thresholds.

    Example:
        >>> align_text_filter("a photo of a cat", images=1, common=None)
        ''
        >>> align_text_filter("IMG 0233", images=1, common=None)
        'length'

    Reference: Jia et al., 2021, section 3 (text-based filtering).
    """
    if images > rules.max_images:
        return "images_of_text"
    if common is not None and not all(gram in common for gram in grams(text)):
        return "rare_text"
    return "" if rules.min_words <= len(words(text)) <= rules.max_words else "length"


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, joined by apostrophes and hyphens.

    Example:
        >>> words("The cat's   mat!")
        ['the', "cat's", 'mat']
    """
    return WORD.findall(text.lower())


def grams(text: str) -> Iterator[int]:
    """Digests of the unigrams and bigrams of a text."""
    found = words(text)
    for gram in (*found, *(" ".join(pair) for pair in itertools.pairwise(found))):
        yield digest(gram.encode())


def digest(data: bytes) -> int:
    """64 bits that are the same in every process; two of a billion items coincide with probability 3 %."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def difference_hash(image: Image.Image) -> int:
    """64 bits of what is brighter than its right neighbour, on an 8x9 grid: alike for scaled or recompressed copies.

    Example:
        >>> difference_hash(Image.new("RGB", (20, 20)))
        0
    """
    grid = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grid[:, 1:] < grid[:, :-1]).tobytes(), "little")


class Census:
    """What is in the raw data: how many texts an image has, how many images a text has, how often words occur.

    Kept as 64-bit digests; memory grows with the number of different pairs and n-grams, some hundred bytes each.

    Example:
        >>> census = Census()
        >>> census.add(b"...", "a cat")
        >>> census.images_of("a cat")
        1
    """

    def __init__(self) -> None:
        self._pairs: set[int] = set()
        self._texts: Counter[int] = Counter()  # of an image
        self._images: Counter[int] = Counter()  # of a text
        self._grams: Counter[int] = Counter()

    def add(self, image: bytes, text: str) -> None:
        """Counts one pair; the same pair again counts for its words only."""
        picture, caption = digest(image), digest(text.strip().encode())
        self._grams.update(grams(text))
        pair = digest(picture.to_bytes(8, "little") + caption.to_bytes(8, "little"))
        if pair not in self._pairs:
            self._pairs.add(pair)
            self._texts[picture] += 1
            self._images[caption] += 1

    def texts_of(self, image: bytes) -> int:
        """How many different texts an image has."""
        return self._texts[digest(image)]

    def images_of(self, text: str) -> int:
        """How many different images a text has."""
        return self._images[digest(text.strip().encode())]

    def common(self, limit: int) -> frozenset[int] | None:
        """Digests of the `limit` most frequent n-grams, ties in order of digest; None if there are no more."""
        if len(self._grams) <= limit:
            return None
        ordered = sorted(self._grams.items(), key=lambda item: (-item[1], item[0]))
        return frozenset(gram for gram, _ in ordered[:limit])


@dataclasses.dataclass(frozen=True)
class Cleaner:
    """All rules on one record.

    Args:
        census: of the raw data.
        rules: thresholds.
        held_out: encoded images of the sets that evaluations use.
    """

    census: Census
    rules: Rules
    held_out: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        hashes = [difference_hash(decode_image(image)) for image in self.held_out]
        object.__setattr__(self, "_hashes", np.asarray(hashes, np.uint64))
        object.__setattr__(self, "_common", self.census.common(self.rules.vocabulary))

    def broken(self, image: bytes, decoded: Image.Image, text: str) -> str:
        """The first of `RULES` that a pair breaks, or "".

        Example:
            >>> Cleaner(Census(), Rules(min_side=5)).broken(b"", Image.new("RGB", (8, 8)), "a white square here")
            ''
        """
        counts = self.census.texts_of(image), self.census.images_of(text)
        return align_image_filter(
            decoded.size,
            texts=counts[0],
            picture=difference_hash(decoded) if len(self.held_out) else 0,
            held_out=self._hashes,  # type: ignore[attr-defined]
            rules=self.rules,
        ) or align_text_filter(text, images=counts[1], common=self._common, rules=self.rules)  # type: ignore[attr-defined]


def parse_rules(settings: Sequence[str]) -> Rules:
    """Rules from `name=value` as on the command line; what is not named has the published value.

    Raises:
        InputError: an unknown name, or a value that is no number.

    Example:
        >>> parse_rules(["min_side=64"]).min_side
        64
    """
    known = {name: type(value) for name, value in dataclasses.asdict(Rules()).items()}
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise InputError(f"rule {name!r}: {nearest(name, known)}")
        try:
            found[name] = known[name](value)
        except ValueError:
            raise InputError(f"rule {setting!r} must be NAME=NUMBER, such as {name}={getattr(Rules, name)}") from None
    return Rules(**found)
