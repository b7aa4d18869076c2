"""Labelled pictures: TFDS and parquet sets at one size, and real digits some of whose labels are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from mixcon.data.catalog import locate
from mixcon.data.records import Record, Source, cover
from mixcon.data.sources import Arrays, ImageParquet, Mapped, Tfds, sklearn_set
from mixcon.errors import InputError


def tfds_images(
    dataset: str, split: str = "train", *, size: Sequence[int] | None = None, data_dir: str | None = None
) -> Source:
    """A TFDS set of labelled pictures: `image` uint8 [*size, 3], scaled to cover and cut in the centre, and `label`.

    Args:
        dataset: name of the set, or the folder that holds its `dataset_info.json`.
        split: e.g. "train", "test".
        size: (height, width); as stored when None.
        data_dir: where TFDS keeps its sets.

    Raises:
        InputError: see `Tfds`.

    Example:
        >>> source = tfds_images("cifar100", "test")  # doctest: +SKIP
    """
    records = Tfds(dataset, split, data_dir=data_dir, rename={"image": "image", "label": "label"})
    if size is None:
        return records
    height, width = size

    def resized(record: Record) -> Record:
        return {"image": cover(Image.fromarray(record["image"]), height, width), "label": record["label"]}

    return Mapped(records, resized)


def parquet_images(
    dataset: str,
    side: str = "train",
    *,
    size: Sequence[int] | None = None,
    image: str = "image",
    label: str = "label",
) -> ImageParquet:
    """`<side>.parquet` of a folder that `locate` finds: `image` uint8 [*size, 3] and `label`.

    Args:
        dataset: name of the folder in `$MIXCON_DATA` or the cache.
        side: name of the file.
        size: (height, width); as stored when None.
        image, label: names of the columns.

    Raises:
        InputError: no such folder, file or column.

    Example:
        >>> source = parquet_images("tiny_imagenet", "valid")  # doctest: +SKIP
    """
    shape = None if size is None else (size[0], size[1])
    return ImageParquet(locate(dataset) / f"{side}.parquet", size=shape, image=image, label=label)


def noisy_digits(
    side: Literal["train", "test"] = "train", *, train_size: int = 500, noise: float = 0.4, seed: int = 0
) -> Arrays:
    """scikit-learn's digits, float32 [8, 8, 1] in [0, 1]; a share of the training labels is drawn anew, uniformly.

    A drawn label may be the right one again: of ten classes, noise=0.4 leaves 64 % of the labels right. The test side
    is all other digits, with their own labels.

    Args:
        side: "train" or "test".
        train_size: digits to train on, of 1,797.
        noise: share of them whose label is drawn anew.
        seed: of the split and of the labels.

    Raises:
        InputError: an unknown side, a size that leaves nothing, a share outside [0, 1].

    Example:
        >>> len(noisy_digits("train")), len(noisy_digits("test"))
        (500, 1297)
    """
    everything = sklearn_set("digits", "all").columns
    images, labels = np.asarray(everything["image"]), np.asarray(everything["label"])
    if side not in ("train", "test") or not 0 < train_size < len(labels) or not 0 <= noise <= 1:
        raise InputError(
            f"noisy_digits: side={side!r} must be 'train' or 'test', train_size={train_size} between 1 and "
            f"{len(labels) - 1}, noise={noise} in [0, 1]."
        )
    rng = np.random.default_rng([seed, 17])
    order = rng.permutation(len(labels))
    rows = order[:train_size] if side == "train" else order[train_size:]
    images, labels = images[rows], labels[rows].copy()
    if side == "train":
        wrong = rng.permutation(train_size)[: round(noise * train_size)]
        labels[wrong] = rng.integers(0, 10, len(wrong))
    return Arrays({"image": images, "label": labels.astype(np.int32)})
