"""Random-access sources: arrays in memory, scikit-learn's sets, TFDS, ArrayRecord shards, images in parquet."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixcon.data.catalog import cache_dir, locate
from mixcon.data.emoji import Emoji
from mixcon.data.records import BadRecord, Record, Source, cover, decode_image, from_bytes, image_text, readable
from mixcon.data.tables import open_parquet
from mixcon.errors import InputError

__all__ = [
    "Arrays",
    "Cached",
    "Emoji",
    "ImageParquet",
    "Mapped",
    "Packed",
    "Subset",
    "Tfds",
    "array_record",
    "locate",
    "sklearn_set",
]

Side = Literal["train", "test", "all"]


class Arrays:
    """Columns of equal length: record `i` is row `i` of each.

    Example:
        >>> Arrays({"features": np.eye(3, dtype=np.float32), "label": np.arange(3)})[1]["label"]
        np.int64(1)
    """

    def __init__(self, columns: Mapping[str, Sequence[Any] | np.ndarray]):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"columns must be of one length, not {lengths}.")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: column[index] for name, column in self.columns.items()}

    def read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        """The given rows of every column: what the pipeline reads a batch by, without a detour over records."""
        return {
            name: column[indices] if isinstance(column, np.ndarray) else [column[i] for i in indices]
            for name, column in self.columns.items()
        }


class Mapped:
    """`function` of every record of another source, when it is read.

    Example:
        >>> Mapped(Arrays({"x": [1, 2]}), lambda record: {"x": -record["x"]})[1]
        {'x': -2}
    """

    def __init__(self, source: Source, function: Callable[[Record], Record]):
        self.source, self.function = source, function

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.function(self.source[index])


class Subset:
    """Chosen records of another source.

    Example:
        >>> Subset(Arrays({"x": [1, 2, 3]}), [2, 0])[0]
        {'x': 3}
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self.source, self.indices = source, np.asarray(indices, np.int64)
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < len(source):
            raise InputError(f"Subset: indices must be in range({len(source)}).")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]


class Cached:
    """Keeps every record that was read, bad ones too: decode once, for sets that fit in memory.

    Example:
        >>> Cached(Arrays({"x": [1, 2]}))[0]
        {'x': 1}
    """

    def __init__(self, source: Source):
        self.source = source
        self._kept: list[Record | BadRecord | None] = [None] * len(source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        kept = self._kept[index]
        if kept is None:  # two threads may both read it; they read the same
            try:
                kept = self.source[index]
            except BadRecord as reason:
                kept = reason
            self._kept[index] = kept
        if isinstance(kept, BadRecord):
            raise BadRecord(*kept.args)
        return kept


def sklearn_set(name: str, side: Side = "train", *, test_share: float = 0.2, seed: int = 0) -> Arrays:
    """One of the sets that come with scikit-learn, with a seeded split.

    digits (image float32 [8, 8, 1] in [0, 1], label), breast_cancer and wine (features, label), diabetes and linnerud
    (features, target), sample_images (image uint8 [427, 640, 3]; two photographs, never split). Features are raw.

    Raises:
        InputError: unknown name or side.

    Example:
        >>> len(sklearn_set("digits", "train")), len(sklearn_set("digits", "test"))
        (1438, 359)
    """
    from sklearn import datasets

    loaders = {
        "digits": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "diabetes": datasets.load_diabetes,
        "linnerud": datasets.load_linnerud,
        "sample_images": datasets.load_sample_images,
    }
    if name not in loaders:
        raise InputError(f"scikit-learn set {name!r} is not one of {', '.join(loaders)}.")
    if side not in ("train", "test", "all"):
        raise InputError(f"side={side!r} is not one of train, test, all.")
    bunch = loaders[name]()
    if name == "sample_images":
        return Arrays({"image": np.stack(bunch.images)})
    if name == "digits":
        columns = {"image": (bunch.images[..., None] / 16).astype(np.float32), "label": bunch.target.astype(np.int32)}
    elif name in ("diabetes", "linnerud"):
        columns = {"features": bunch.data.astype(np.float32), "target": bunch.target.astype(np.float32)}
    else:
        columns = {"features": bunch.data.astype(np.float32), "label": bunch.target.astype(np.int32)}
    order = np.random.default_rng([seed, 3]).permutation(len(bunch.target))
    cut = round(len(order) * test_share)
    rows = {"train": order[cut:], "test": order[:cut], "all": np.arange(len(order))}[side]
    return Arrays({key: column[rows] for key, column in columns.items()})


class Packed:
    """Records of ArrayRecord shards, as `mixcon data pack` writes them.

    Args:
        pattern: path pattern of the shards, e.g. `shards/*.arrayrecord`; several may be given. A relative pattern is
            looked for in the current folder, then in `$MIXCON_DATA`, then in the cache folder. Shards are read in the
            order of their names.

    Raises:
        InputError: no file fits the pattern.

    Example:
        >>> source = Packed("shards/*.arrayrecord")  # doctest: +SKIP
    """

    def __init__(self, pattern: str | os.PathLike[str] | Sequence[str]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        patterns = [os.fspath(pattern)] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
        self.paths = sorted({path for each in patterns for path in _glob(each)})
        if not self.paths:
            raise InputError(
                f"no ArrayRecord shards at {' '.join(patterns)}, neither from here nor in MIXCON_DATA nor in "
                f"{cache_dir()}. `mixcon data pack` makes them from tars or from a table of image paths and captions."
            )
        with readable(self.paths[0] if len(self.paths) == 1 else " or ".join(patterns)):
            self._records = ArrayRecordDataSource(self.paths)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            packed = self._records[int(index)]
        except (RuntimeError, ValueError) as reason:  # its block fails its checksum
            raise BadRecord(f"damaged in its shard ({str(reason)[:200]})") from None
        return from_bytes(packed)


def _glob(pattern: str) -> list[str]:
    for root in (Path(), Path(os.environ.get("MIXCON_DATA", "")).expanduser(), cache_dir()):
        if found := glob.glob(str(root / os.path.expanduser(pattern)), recursive=True):
            return found
    return []


def array_record(pattern: str | Sequence[str], *, size: tuple[int, int] = (224, 224)) -> Mapped:
    """Packed image–text pairs, decoded to `image` uint8 [*size, 3] (scaled to cover, centre cut) and `text`.

    Example:
        >>> source = array_record("shards/train-*.arrayrecord", size=(224, 224))  # doctest: +SKIP
    """
    return Mapped(Packed(pattern), image_text(*size))


class ImageParquet:
    """Images and labels of parquet files with columns `img: {bytes, path}` (or bytes) and `label`; encoded in memory.

    Args:
        path: the file, e.g. `locate("cifar10_jpeg") / "train.parquet"`.
        size: resize to (height, width); as stored by default.
        image, label: names of the columns.

    Example:
        >>> source = Cached(ImageParquet(locate("cifar10_jpeg") / "train.parquet"))  # doctest: +SKIP
    """

    def __init__(
        self, path: str | Path, *, size: tuple[int, int] | None = None, image: str = "img", label: str = "label"
    ):
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise InputError(f"there is no parquet file {path}.")
        with readable(path):
            present = pq.read_schema(path).names
            if missing := {image, label} - set(present):
                raise InputError(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(present)}.")
            table = open_parquet(path, [image, label]).read([image, label])
            if table.column(label).null_count:
                raise InputError(f"{path} has empty cells in its column {label!r}.")
            labels = table.column(label).cast(pa.int32())  # checked: nothing is wrapped or cut off
        self._images, self._labels, self._size = table.column(image), np.asarray(labels, np.int32), size

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        cell = self._images[int(index)].as_py()
        image = decode_image(cell["bytes"] if isinstance(cell, dict) else cell)
        pixels = np.asarray(image) if self._size is None else cover(image, *self._size)
        return {"image": pixels, "label": self._labels[index]}


class Tfds:
    """A prepared TensorFlow Datasets set in ArrayRecord format; TensorFlow itself is never imported.

    Args:
        name: name of the set (`cifar10`, `coco_captions`, ...), or the folder that holds its `dataset_info.json`.
        split: e.g. "train", "train[:10%]".
        data_dir: where TFDS keeps its sets; its own default otherwise.
        rename: fields to take -> what to call them, e.g. {"image": "image", "caption": "text"}; all by default.

    Raises:
        InputError: TFDS is not installed, or the set is not there in this format.

    Example:
        >>> source = Tfds("mnist", "train", data_dir="data")  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        split: str = "train",
        *,
        data_dir: str | None = None,
        rename: Mapping[str, str] | None = None,
    ):
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise InputError("TFDS is not installed: pip install 'mixcon[tfds]'.")
        import tensorflow_datasets as tfds

        try:
            if Path(name).joinpath("dataset_info.json").is_file():
                builder = tfds.builder_from_directory(os.fspath(name))
            else:
                builder = tfds.builder(os.fspath(name), data_dir=data_dir, file_format="array_record")
            self._records = builder.as_data_source(split=split)
        except Exception as reason:  # TFDS raises a dozen kinds
            raise InputError(
                f"TFDS set {os.fspath(name)!r}, split {split!r}, cannot be read ({type(reason).__name__}: {reason}). "
                f"Prepare it once where TensorFlow is installed: tfds build {os.fspath(name)} "
                "--file_format=array_record; then give its data_dir, or the folder with dataset_info.json."
            ) from None
        self._rename = dict(rename or {})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[int(index)]
        if self._rename:
            record = {new: record[old] for old, new in self._rename.items()}
        return {key: value.decode("utf-8") if isinstance(value, bytes) else value for key, value in record.items()}
