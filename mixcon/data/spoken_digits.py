"""Spoken digits beside handwritten ones: real speech and real images that mean the same."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from mixcon.data import audio
from mixcon.data.catalog import locate
from mixcon.data.digit_views import CLASSES, VIEWS, view_table
from mixcon.data.sources import Arrays
from mixcon.errors import InputError

FRAMES, BANDS = 32, 20
WINDOW = 0.032  # seconds
FILE = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


class Recordings(NamedTuple):
    """All recordings in the order of their names."""

    speech: np.ndarray  # float32 [N, 32, 20], log-mel
    label: np.ndarray  # int32 [N]
    speaker: np.ndarray  # str [N]


def spoken_digits(
    side: Literal["train", "test", "images"] = "train",
    *,
    view: str = "fac",
    keep: int | None = 300,
    held_out: int = 0,
    seed: int = 0,
) -> Arrays:
    """The Free Spoken Digit Dataset, each utterance with a random image of the same digit.

    An utterance is its log-mel spectrogram, 32 frames spread over its length in 20 bands, standardised by the training
    side. The images are half of the 2,000 of UCI's Multiple Features; the other half is "images", for whoever wants to
    train an image encoder first.

    Args:
        side: "train", "test", or "images".
        view: which description of the images, see `digit_views`.
        keep: so many utterances train, the same number of each digit, and all others test; None keeps all but a fifth.
        held_out: so many speakers test, and none of their utterances trains; `keep` is then of the others.
        seed: of the split, the speakers and the pairs.

    Returns:
        Records with `speech` float32 [32, 20], `image` float32 [features], standardised by "images", and `label`;
        without `speech` of "images".

    Raises:
        InputError: unknown side or view, more to keep than there are, all speakers held out; the set is not here.

    Example:
        >>> source = spoken_digits("train", keep=300)  # doctest: +SKIP
    """
    if side not in ("train", "test", "images") or view not in VIEWS:
        raise InputError(f"want side 'train', 'test' or 'images' and a view of {', '.join(VIEWS)}; got {side}, {view}.")
    rng = np.random.default_rng([seed, 7])
    digit = np.repeat(np.arange(CLASSES, dtype=np.int32), len(view_table(view)) // CLASSES)
    shuffled = rng.permutation(len(digit))
    others, shown = np.sort(shuffled[: len(digit) // 2]), np.sort(shuffled[len(digit) // 2 :])
    images = standardised(view_table(view), by=view_table(view)[others])
    if side == "images":
        return Arrays({"image": images[others], "label": digit[others]})
    found = recordings()
    train, test = split(found, keep=keep, held_out=held_out, rng=rng)
    partner = np.empty(len(found.label), np.int64)
    for c in range(CLASSES):
        mine = found.label == c
        partner[mine] = rng.choice(shown[digit[shown] == c], mine.sum())
    chosen = train if side == "train" else test
    speech = standardised(found.speech, by=found.speech[train])
    return Arrays({"speech": speech[chosen], "image": images[partner[chosen]], "label": found.label[chosen]})


def split(
    found: Recordings, *, keep: int | None, held_out: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which recordings are trained on and which test, bool [N] each."""
    speakers = rng.permutation(np.unique(found.speaker))
    if not 0 <= held_out < len(speakers):
        raise InputError(f"held_out={held_out} must leave one of the {len(speakers)} speakers.")
    known = np.isin(found.speaker, speakers[held_out:])
    chosen = np.zeros(len(found.label), bool)
    for c in range(CLASSES):
        mine = rng.permutation(np.flatnonzero(known & (found.label == c)))
        count = keep // CLASSES if keep is not None else len(mine) if held_out else len(mine) * 4 // 5
        if not 1 <= count <= len(mine):
            raise InputError(f"keep={keep} must be {CLASSES} to {CLASSES * len(mine)}.")
        chosen[mine[:count]] = True
    return chosen, ~known if held_out else ~chosen


def standardised(x: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """Every feature in units of its spread in `by`, float32."""
    deviation = by.std(0)
    return ((x - by.mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


@cache
def recordings() -> Recordings:
    """Every recording that `locate("fsdd")` finds, read once."""
    folder = locate("fsdd")
    folder = folder / "recordings" if (folder / "recordings").is_dir() else folder
    named = [(path, match) for path in sorted(folder.glob("*.wav")) if (match := FILE.fullmatch(path.name))]
    if not named:
        raise InputError(f"{folder} holds no recordings like 7_theo_0.wav: put those of the Free Spoken Digit Dataset.")
    speech = [
        audio.log_mel(*audio.read_wav(path), bands=BANDS, window=WINDOW, frames=FRAMES, floor=1e-6) for path, _ in named
    ]
    label = np.asarray([int(match[1]) for _, match in named], np.int32)
    return Recordings(np.stack(speech), label, np.asarray([match[2] for _, match in named]))
