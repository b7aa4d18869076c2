"""Augmentation of captions on the host: stop words left out, words replaced, swapped or deleted.

Every draw is a pure function of the seed, the step, the record and the view, so that a resumed run repeats it and it
does not matter which process or thread reads the record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcon.data.catalog import locate
from mixcon.data.pipeline import Transform
from mixcon.data.tokenizer import Tokenizer
from mixcon.errors import InputError

Thesaurus = Mapping[str, Sequence[str]]
_STREAM = 0x7E37  # of the random numbers
_PARTS = ("noun", "verb", "adj", "adv")

_LITTLE = """
a about above after again against all am an and any are as at be because been before being below between both but by
can could did do does doing down during each few for from further had has have having he her here hers him his how i if
in into is it its itself just me more most my no nor not now of off on once only or other our ours out over own same
she should so some such than that the their theirs them then there these they this those through to too under until up
very was we were what when where which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_LITTLE.split())  # words that say little of a picture


def load_thesaurus(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Synonyms of each word, from a file with one group of synonyms a line, or from a folder of WordNet's data files.

    A line is `car, auto, automobile`: each word of it stands for the others. WordNet's folder holds `data.noun`,
    `data.verb`, `data.adj` and `data.adv`.

    Args:
        path: a file or a folder; a bare name such as "wordnet" is a folder that `locate` finds.

    Returns:
        word -> its synonyms, all in lower case, without the word itself.

    Raises:
        InputError: no such file or folder, or none that holds a group of two.

    Example:
        >>> load_thesaurus("synonyms.txt")["car"]  # doctest: +SKIP
        ('auto', 'automobile')
    """
    place = Path(path)
    if not place.exists():
        if str(path) != place.name or place.suffix:
            raise InputError(f"thesaurus: there is no {place}.")
        place = locate(str(path))
    if place.is_dir():
        files = [file for part in _PARTS if (file := place / f"data.{part}").is_file()]
        lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
        groups = [_wordnet_group(line) for line in lines if line[:1].isdigit()]
    else:
        groups = [line.split(",") for line in place.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, None]] = {}  # dictionaries as ordered sets
    for group in groups:
        words = [word.strip().lower() for word in group if word.strip()]
        for word in words:
            found.setdefault(word, {}).update(dict.fromkeys(other for other in words if other != word))
    thesaurus = {word: tuple(others) for word, others in found.items() if others}
    if not thesaurus:
        raise InputError(f"thesaurus: {place} holds no line with two synonyms (`car, auto, automobile`).")
    return thesaurus


def _wordnet_group(line: str) -> list[str]:
    """The words of a synset: `offset file type count word id word id ...`, the count in hexadecimal."""
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words]


def drop_stop_words(words: Sequence[str]) -> list[str]:
    """Without the words of `STOP_WORDS`, unless nothing would be left.

    Example:
        >>> drop_stop_words("a man on the beach".split())
        ['man', 'beach']
    """
    return [word for word in words if word.lower() not in STOP_WORDS] or list(words)


def replace_synonym(words: Sequence[str], thesaurus: Thesaurus, rng: np.random.Generator) -> list[str]:
    """One word that is no stop word, wherever it occurs, by one of its synonyms; unchanged where none has any."""
    known = sorted({word for word in words if word.lower() in thesaurus and word.lower() not in STOP_WORDS})
    if not known:
        return list(words)
    chosen = known[int(rng.integers(len(known)))]
    others = thesaurus[chosen.lower()]
    other = others[int(rng.integers(len(others)))]
    return [other if word == chosen else word for word in words]


def swap_words(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Two random places exchanged."""
    out = list(words)
    if len(out) > 1:
        i, j = rng.choice(len(out), 2, replace=False)
        out[i], out[j] = out[j], out[i]
    return out


def delete_words(words: Sequence[str], rng: np.random.Generator, *, rate: float = 0.1) -> list[str]:
    """Each word left out with probability `rate`; one random word stays where all would go."""
    if not words:
        return []
    kept = [word for word, keep in zip(words, rng.random(len(words)) >= rate, strict=True) if keep]
    return kept or [words[int(rng.integers(len(words)))]]


class CaptionAugmentation:
    """Weak and strong versions of a caption.

    Weak: with probability `drop_stop_words` without stop words. Strong: the same draw, then exactly one of synonym
    replacement, a swap, deletions and nothing, with the given weights; without a thesaurus no synonym is drawn.

    Args:
        drop_stop_words: probability. synonym, swap, delete, identity: weights of the strong kinds, not negative.
        delete_rate: probability for each word. clean: lower-case and without punctuation first.
        thesaurus: file or folder for `load_thesaurus`, "" for none. seed: of the draws.

    Raises:
        InputError: a probability outside [0, 1], negative weights or none, a thesaurus that is not there.

    Example:
        >>> augmentation = CaptionAugmentation(drop_stop_words=1.0)
        >>> augmentation("a man on the beach", step=0, index=3, view=0)
        'man beach'

    Reference: Wei, Zou, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks",
        2019, section 2; Fini et al., "Improved baselines for vision-language pre-training", 2023, section 4.
    """

    def __init__(
        self,
        *,
        drop_stop_words: float = 0.8,
        synonym: float = 0.4,
        swap: float = 0.4,
        delete: float = 0.2,
        identity: float = 0.0,
        delete_rate: float = 0.1,
        clean: bool = False,
        thesaurus: str = "",
        seed: int = 0,
    ):
        for name, value in (("drop_stop_words", drop_stop_words), ("delete_rate", delete_rate)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value} must be a probability.")
        weights = np.asarray([synonym if thesaurus else 0.0, swap, delete, identity], float)
        if min(synonym, swap, delete, identity) < 0 or not weights.sum() > 0:
            raise InputError(
                f"synonym={synonym}, swap={swap}, delete={delete}, identity={identity} must be weights, not negative "
                "and not all zero (synonym counts only with a thesaurus)."
            )
        self.thesaurus = load_thesaurus(thesaurus) if thesaurus else {}
        self.bounds, self.stop_share = np.cumsum(weights / weights.sum()), drop_stop_words
        self.delete_rate, self.clean, self.seed = delete_rate, clean, seed

    def __call__(self, caption: str, *, step: int, index: int, view: int) -> str:
        """The caption of a record at a step: the weak one for view 0, strong ones for the others."""
        rng = np.random.default_rng([self.seed & 0xFFFFFFFFFFFFFFFF, _STREAM, step, index, view])
        if self.clean:
            caption = re.sub(r"[^\w\s]", " ", caption.lower())
        words = caption.split()
        if rng.random() < self.stop_share:
            words = drop_stop_words(words)
        if view:
            kind = int(np.searchsorted(self.bounds, rng.random(), side="right"))
            if kind == 0:
                words = replace_synonym(words, self.thesaurus, rng)
            elif kind == 1:
                words = swap_words(words, rng)
            elif kind == 2:
                words = delete_words(words, rng, rate=self.delete_rate)
        return " ".join(words)


def caption_views(
    augmentation: CaptionAugmentation, tokenizer: Tokenizer, length: int, *, views: int, field: str = "text"
) -> Transform:
    """A pipeline transform: `batch[field]` becomes the tokens of weak captions, `batch[field + "_views"]` of strong.

    Args:
        augmentation: of each caption. tokenizer, length: as for `tokenizer.tokenize`.
        views: how many strong ones. field: that holds one caption a record.

    Returns:
        A transform that adds int32 [B, T] and, where there are strong views, [B, V, T].

    Example:
        >>> transform = caption_views(CaptionAugmentation(seed=0), tokenizer, 77, views=2)  # doctest: +SKIP
    """

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        if field not in batch:
            raise InputError(f"records have no {field!r} to augment; they have {', '.join(sorted(batch))}.")
        where = list(zip(batch[field], batch["index"].tolist(), strict=True))
        drawn = [
            [augmentation(text, step=batch["at_step"], index=index, view=view) for view in range(1 + views)]
            for text, index in where
        ]
        tokens = tokenizer.encode([text for record in drawn for text in record], length)
        tokens = tokens.reshape(len(drawn), 1 + views, -1)
        return batch | {field: tokens[:, 0]} | ({f"{field}_views": tokens[:, 1:]} if views else {})

    return transform
