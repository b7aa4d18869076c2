"""Labelled sets of several modalities: omics tables (ROSMAP, BRCA), news and food with images and texts.

Every record holds one entry for each modality and `label`, a class number.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixcon.data.catalog import locate
from mixcon.data.emoji import Emoji
from mixcon.data.records import BadRecord, Record, Source, cover, decode_image
from mixcon.data.sources import Arrays, Mapped, Subset, sklearn_set
from mixcon.errors import InputError

Side = Literal["train", "test"]
OMICS = {"mrna": 1, "methylation": 2, "mirna": 3}  # modality -> number of its files
TEXTS = {"headline": ("headline",), "caption": ("caption",), "abstract": ("abstract",), "body": ("body", "article")}
Split = Literal["train", "valid", "test"]


def mogonet(folder: str, side: Side = "train", *, modalities: Sequence[str] = tuple(OMICS)) -> Arrays:
    """ROSMAP or BRCA as MOGONET publishes them: `{1,2,3}_{tr,te}.csv` and `labels_{tr,te}.csv`, without headers.

    Every feature is scaled by the training side, `(x - min) / (max - min + 1e-10)`; test values may leave [0, 1].

    Args:
        folder: that `locate` finds, "rosmap" or "brca".
        side: "train" or "test"; the split is the published one.
        modalities: of mrna (1), methylation (2), mirna (3).

    Returns:
        Records with float32 [features] for each modality, and `label`.

    Raises:
        InputError: the set or the file of a modality is missing, tables of different lengths, values not finite.

    Example:
        >>> source = mogonet("rosmap", "test")  # doctest: +SKIP
    """
    if side not in ("train", "test"):
        raise InputError(f"side={side!r} must be 'train' or 'test'.")
    if unknown := [each for each in modalities if each not in OMICS]:
        raise InputError(f"there is no modality {unknown[0]!r}; {folder} has {', '.join(OMICS)}.")
    root, ending = locate(folder), {"train": "tr", "test": "te"}

    def scaled(number: int) -> np.ndarray:
        known = _numbers(root / f"{number}_tr.csv")
        shown = known if side == "train" else _numbers(root / f"{number}_te.csv")
        return scale_by(known, shown)

    columns = {each: scaled(OMICS[each]) for each in modalities}
    label = _numbers(root / f"labels_{ending[side]}.csv").ravel()
    lengths = {each: len(column) for each, column in columns.items()} | {"label": len(label)}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{root}: the {side} tables are of different lengths, {lengths}.")
    return Arrays({**columns, "label": label.astype(np.int32)})


def scale_by(known: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """`(shown - min) / (max - min + 1e-10)` by the columns of `known`, float32."""
    low = known.min(axis=0)
    return ((shown - low) / ((known - low).max(axis=0) + 1e-10)).astype(np.float32)


def _numbers(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(
            f"{path} is missing: every modality needs its table. The whole set is github.com/txWang/MOGONET, folder "
            f"{path.parent.name.upper()}."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty file is a warning to numpy
            values = np.loadtxt(path, delimiter=",", ndmin=2)
    except (ValueError, UserWarning) as reason:
        raise InputError(f"{path} is not a table of numbers separated by commas ({reason}).") from None
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds values that are not finite.")
    return values


def feature_groups(of: str = "breast_cancer", side: Side = "train", *, groups: Sequence[str] = tuple(OMICS)) -> Arrays:
    """A scikit-learn set whose features are dealt out, in order, to as many modalities: real data for trying things.

    Raises:
        InputError: unknown set, or fewer features than groups.

    Example:
        >>> {name: column.shape for name, column in feature_groups("wine", "test").columns.items()}
        {'mrna': (36, 5), 'methylation': (36, 4), 'mirna': (36, 4), 'label': (36,)}
    """
    known, shown = (np.asarray(sklearn_set(of, each).columns["features"]) for each in ("train", side))
    if known.shape[1] < len(groups):
        raise InputError(f"{of} has {known.shape[1]} features, too few for {len(groups)} groups.")
    parts = np.array_split(np.arange(known.shape[1]), len(groups))
    columns = {group: scale_by(known[:, part], shown[:, part]) for group, part in zip(groups, parts, strict=True)}
    return Arrays({**columns, "label": sklearn_set(of, side).columns["label"]})


def n24news(split: Split = "train", *, text: str = "headline", size: tuple[int, int] = (224, 224)) -> Mapped:
    """N24News: an image and a text of a news item, 24 sections; the official split.

    `news/nytimes_{train,dev,test}.json` are lists of items with `image_id`, `section` and the texts; images are
    `imgs/<image_id>.jpg`. An item without its image or text is a bad record, which the pipeline skips and counts.

    Args:
        split: "train", "valid" or "test".
        text: "headline", "caption", "abstract" or "body".
        size: images are scaled to cover it, then cut.

    Returns:
        Records with `image` uint8 [*size, 3], `text` and `label`, the place of the section in alphabetical order.

    Raises:
        InputError: the set is missing, an unknown split or text.

    Example:
        >>> source = n24news("train", text="caption")  # doctest: +SKIP
    """
    files = {"train": "train", "valid": "dev", "test": "test"}
    if split not in files or text not in TEXTS:
        raise InputError(
            f"n24news has the splits {', '.join(files)} and the texts {', '.join(TEXTS)}; got {split!r}, {text!r}."
        )
    root = locate("n24news")
    items, known = (_items(root / "news" / f"nytimes_{files[each]}.json") for each in (split, "train"))
    sections = {name: code for code, name in enumerate(sorted({item["section"] for item in known}))}

    def record(row: Record) -> Record:
        item = items[row["row"]]
        if item["section"] not in sections:
            raise BadRecord(f"section {item['section']!r} is not one of the training items")
        words = next((item[key] for key in TEXTS[text] if item.get(key)), "")
        return _image_text(root / "imgs" / f"{item['image_id']}.jpg", words, sections[item["section"]], size)

    return Mapped(Arrays({"row": np.arange(len(items))}), record)


def _items(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(
            f"{path} is missing. N24News comes from the link in the README of github.com/billywzh717/N24News; unpack "
            "its folders news/ and imgs/ there."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def food101(split: Split = "train", *, valid: int = 5_000, seed: int = 0, size: tuple[int, int] = (224, 224)) -> Source:
    """UPMC Food-101: an image of a dish and the title of the page it was found on, 101 classes.

    `texts/{train,test}_titles.csv` hold `file name, title, class` without a header; images are
    `images/{train,test}/<class>/<file name>`. The validation set is drawn at random from the training items.

    Args:
        split: "train", "valid" or "test".
        valid: items of the validation set.
        seed: of that draw.
        size: images are scaled to cover it, then cut.

    Returns:
        Records as of `n24news`; labels are the places of the classes in alphabetical order.

    Raises:
        InputError: the set is missing, an unknown split, fewer items than the validation set needs.

    Example:
        >>> source = food101("valid")  # doctest: +SKIP
    """
    if split not in ("train", "valid", "test"):
        raise InputError(f"split={split!r} must be 'train', 'valid' or 'test'.")
    root, side = locate("food101"), "test" if split == "test" else "train"
    rows, known = (_titles(root / "texts" / f"{each}_titles.csv") for each in (side, "train"))
    codes = {name: code for code, name in enumerate(sorted({row[2] for row in known}))}

    def record(row: Record) -> Record:
        file, title, dish = rows[row["row"]]
        if dish not in codes:
            raise BadRecord(f"class {dish!r} is not one of the training items")
        return _image_text(root / "images" / side / dish / file, title, codes[dish], size)

    source = Mapped(Arrays({"row": np.arange(len(rows))}), record)
    if split == "test":
        return source
    if not 0 <= valid < len(rows):
        raise InputError(f"valid={valid} must leave some of the {len(rows)} training items.")
    order = np.random.default_rng([seed, 101]).permutation(len(rows))
    return Subset(source, np.sort(order[:valid] if split == "valid" else order[valid:]))


def _titles(path: Path) -> list[tuple[str, str, str]]:
    if not path.is_file():
        raise InputError(
            f"{path} is missing. UPMC Food-101 comes from visiir.isir.upmc.fr, or from the link in the README of "
            "github.com/RaghavSinghal10/M3CoL; unpack its folders images/ and texts/ there."
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if wrong := next((row for row in rows if len(row) != 3), None):
        raise InputError(f"{path}: a line should be `file name, title, class`, not {','.join(wrong)[:80]!r}.")
    return [(name.strip(), title, dish.strip()) for name, title, dish in rows]


def _image_text(path: Path, text: str, label: int, size: tuple[int, int]) -> Record:
    words = text.strip()
    if not words:
        raise BadRecord(f"no text beside {path.name}")
    if not path.is_file():
        raise BadRecord(f"no image {path.name}")
    return {"image": cover(decode_image(path.read_bytes()), *size), "text": words, "label": np.int32(label)}


def emoji_groups(
    side: Side = "train", *, split: Literal["concept", "composition", "both"] = "concept", label: str = "group"
) -> Mapped:
    """The embedded emoji as images and texts with a class: image–text classification without a download.

    Example:
        >>> sorted(emoji_groups("test")[0])
        ['image', 'label', 'text']
    """
    return Mapped(Emoji(split, side), _labelled(label))


def _labelled(label: str) -> Callable[[Mapping[str, Any]], Record]:
    return lambda record: {"image": record["image"], "text": record["text"], "label": record[f"{label}_id"]}
