"""Items with captions in several languages: one record an item, a field `text_<language>` for each.

A caption that is missing is an empty string. Shapes: B items, K languages, n of them drawn, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.data.emoji import Emoji
from mixcon.data.records import Record, Source
from mixcon.data.tokenizer import Tokenizer
from mixcon.errors import InputError


class EmojiCaptions:
    """The emoji set with all names of an emoji in one record.

    Args:
        split, side: see `Emoji`. languages: any of its languages, in the order of the captions.

    Example:
        >>> record = EmojiCaptions("concept", "test", languages=("en", "de"))[0]
        >>> record["text_en"], record["text_de"], record["image"].shape
        ('face with tears of joy', 'Gesicht mit Freudentränen', (64, 64, 3))
    """

    def __init__(
        self,
        split: Literal["composition", "concept", "both"] = "composition",
        side: Literal["train", "test", "all"] = "train",
        *,
        languages: Sequence[str],
    ):
        self.names = Emoji(split, side, languages=languages)
        self.languages = self.names.languages

    def __len__(self) -> int:
        return len(self.names) // len(self.languages)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * len(self.languages)
        record = self.names[first]
        shared = {key: value for key, value in record.items() if key not in ("text", "language", "keywords")}
        texts = {f"text_{name}": self.names[first + k]["text"] for k, name in enumerate(self.languages)}
        return shared | texts


class OneLanguage:
    """Every caption of a multilingual source as a record of its own with the field `text`; for tokenizers.

    Example:
        >>> names = OneLanguage(EmojiCaptions(languages=("en", "de")), ("en", "de"))
        >>> len(names), names[1]["text"]
        (6468, 'grinsendes Gesicht')
    """

    def __init__(self, source: Source, languages: Sequence[str]):
        self.source, self.languages = source, tuple(languages)

    def __len__(self) -> int:
        return len(self.source) * len(self.languages)

    def __getitem__(self, index: int) -> Record:
        item, which = divmod(int(index), len(self.languages))
        return {"text": _caption(self.source[item], self.languages[which])}


def tokenize_captions(
    tokenizer: Tokenizer, length: int, languages: Sequence[str]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A pipeline transform: `tokens` [B, K, T] and `text_mask` [B, K], False where a caption is empty.

    Raises:
        InputError: (on reading) records without one of the languages.

    Example:
        >>> transform = tokenize_captions(tokenizer, 24, ("en", "de"))
        >>> transform({"text_en": ["red heart"], "text_de": [""]})["text_mask"]
        array([[ True, False]])
    """

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        captions = [_caption(batch, language) for language in languages]
        tokens = np.stack([tokenizer.encode(column, length) for column in captions], axis=1)
        there = np.array([[bool(text.strip()) for text in column] for column in captions]).T
        return batch | {"tokens": tokens, "text_mask": there}

    return transform


def draw_languages(key: Array, mask: Array, number: int) -> Array:
    """Which captions of each item a step sees: `number` of its K without replacement, in the fixed order of languages.

    Captions that are missing are taken only where an item has fewer than `number`.

    Args:
        key: of the draw. mask: [B, K] bool, False for missing. number: n, 1..K.

    Returns:
        int32 [B, n], increasing in each row.

    Raises:
        InputError: a number that is not 1..K.

    Example:
        >>> chosen = draw_languages(key, batch["text_mask"], 1)  # one random language an item
        >>> tokens = jnp.take_along_axis(batch["tokens"], chosen[:, :, None], axis=1)

    Reference: Nie et al., "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive
        Learning", 2024 (number of captions).
    """
    batch, languages = mask.shape
    if not 1 <= number <= languages:
        raise InputError(f"number={number} captions of {languages} languages: it must be 1 to {languages}.")
    if number == languages:
        return jnp.broadcast_to(jnp.arange(languages, dtype=jnp.int32)[None], (batch, languages))
    order = jnp.argsort(jax.random.uniform(key, mask.shape) + jnp.where(mask, 0.0, 1.0), axis=1)
    return jnp.sort(order[:, :number], axis=1).astype(jnp.int32)


def _caption(record: dict[str, Any], language: str) -> Any:
    try:
        return record[f"text_{language}"]
    except KeyError:
        there = ", ".join(sorted(str(name) for name in record if str(name).startswith("text"))) or "none"
        raise InputError(
            f"records have no caption 'text_{language}'; their captions: {there}. One that is missing in some items "
            "is an empty string there."
        ) from None
