"""Small labelled pictures for classification: uint8 RGB records `image` and `label`, decoded once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from mixcon.data.catalog import locate
from mixcon.data.labelled import noisy_digits
from mixcon.data.records import Record, Source
from mixcon.data.sources import Cached, ImageParquet, Mapped, Subset
from mixcon.errors import InputError

Side = Literal["train", "held", "test"]


def check_side(side: str) -> None:
    """Refuse what is no part of a set."""
    if side not in ("train", "held", "test"):
        raise InputError(f"side={side!r} is not one of train, held, test.")


def digit_pictures(
    side: Side = "train", *, size: int = 16, train: int = 500, held: int = 300, noise: float = 0.4, seed: int = 0
) -> Source:
    """scikit-learn's digits, enlarged, in three equal channels; a share of the training labels is drawn anew.

    Args:
        side: "train" (wrong labels among them), "held" (for what is fitted after training, such as a temperature) or
            "test"; both of the latter keep their own labels.
        size: side of the pictures in pixels (bicubic from 8).
        train, held: digits in these parts, of 1,797; the rest is for testing.
        noise: share of training labels that are drawn anew from all ten classes.
        seed: of the split and the labels.

    Raises:
        InputError: an unknown side; sizes that leave nothing to test; as `noisy_digits`.

    Example:
        >>> [len(digit_pictures(side)) for side in ("train", "held", "test")]
        [500, 300, 997]
    """
    check_side(side)
    source: Source = noisy_digits("train" if side == "train" else "test", train_size=train, noise=noise, seed=seed)
    if side != "train":
        if not 0 < held < len(source):
            raise InputError(f"held={held} must leave some of the {len(source)} digits that are not trained on.")
        source = Subset(source, np.arange(held) if side == "held" else np.arange(held, len(source)))

    def enlarged(record: Record) -> Record:
        gray = Image.fromarray(np.round(record["image"][..., 0] * 255).astype(np.uint8))
        pixels = np.asarray(gray.resize((size, size), Image.Resampling.BICUBIC))
        return {"image": np.repeat(pixels[..., None], 3, axis=-1), "label": record["label"]}

    return Cached(Mapped(source, enlarged))


def cifar10_pictures(side: Side = "train", *, count: int = 0) -> Source:
    """CIFAR-10 (JPEG), 32 pixels, from `locate("cifar10_jpeg")`; classes alternate, so that every prefix is balanced.

    Args:
        side: "train" is the first 45,000 training images, "held" the other 5,000, "test" the test set.
        count: only the first so many; 0 for all.

    Raises:
        InputError: an unknown side, or the set is not there.

    Example:
        >>> source = cifar10_pictures("train", count=5000)  # doctest: +SKIP
    """
    check_side(side)
    folder = locate("cifar10_jpeg")
    source: Source = ImageParquet(folder / ("test.parquet" if side == "test" else "train.parquet"))
    first, last = {"train": (0, 45_000), "held": (45_000, 50_000), "test": (0, 10_000)}[side]
    return Cached(Subset(source, np.arange(first, min(last, first + count) if count else last)))
