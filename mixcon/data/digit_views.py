"""Handwritten digits in two views of different kinds, balanced or long-tailed: UCI Multiple Features."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from mixcon.data.catalog import locate
from mixcon.data.sources import Arrays
from mixcon.errors import InputError

CLASSES, OF_EACH, TRAIN_OF_EACH = 10, 200, 150
VIEWS = ("pix", "fou", "fac", "kar", "mor", "zer")
EMBEDDED = ("pix", "fou")


def digit_views(
    side: Literal["train", "test"] = "train",
    *,
    views: tuple[str, str] = ("pix", "fou"),
    factor: float = 1.0,
    keep: int | None = None,
    mismatched: float = 0.0,
    seed: int = 0,
) -> Arrays:
    """Two of the six descriptions of 2,000 scanned digits; the same 150 of each class train, the same 50 test.

    Six of the 2,000 are there twice, as published; up to that many of the test side are also in the training side.

    Args:
        side: "train" or "test".
        views: names of two tables: pix (240 pixel averages) and fou (76 Fourier coefficients) come with the package,
            fac, kar, mor and zer are read from the folder that `locate("mfeat")` finds.
        factor: of the training side; the rarest class over the commonest, see `long_tail`.
        keep: so many of the training side, the same number of each class; None keeps all.
        mismatched: share of the training side whose second view is that of another one of this share.
        seed: of the split, of what is kept, and of what is mismatched.

    Returns:
        Records with float32 rows under the names of the views, standardised by all 1,500 of the training side, and
        `label`.

    Raises:
        InputError: an unknown view or side, a factor outside (0, 1], a share outside [0, 1], more to keep than there
            are, a table that is not there.

    Example:
        >>> len(digit_views("train", factor=0.02)), len(digit_views("test"))
        (417, 500)
    """
    unknown = [view for view in views if view not in VIEWS]
    if unknown or len(set(views)) != 2:
        raise InputError(f"views={tuple(views)} must name two of {', '.join(VIEWS)}.")
    if side not in ("train", "test"):
        raise InputError(f"side={side!r} must be 'train' or 'test'.")
    label = np.repeat(np.arange(CLASSES, dtype=np.int32), OF_EACH)
    rng = np.random.default_rng([seed, 1])
    order = np.concatenate([start + rng.permutation(OF_EACH) for start in range(0, CLASSES * OF_EACH, OF_EACH)])
    trains = np.tile(np.arange(OF_EACH) < TRAIN_OF_EACH, CLASSES)
    train, chosen = order[trains], order[trains] if side == "train" else order[~trains]
    if keep is not None and not 1 <= keep // CLASSES <= TRAIN_OF_EACH:
        raise InputError(f"keep={keep} must be {CLASSES} to {CLASSES * TRAIN_OF_EACH}.")
    if not 0 <= mismatched <= 1:
        raise InputError(f"mismatched={mismatched}, a share of the training side, must be in [0, 1].")
    if side == "train":
        chosen = chosen[long_tail(label[chosen], factor, seed=seed)]
        if keep is not None:
            chosen = np.concatenate([chosen[label[chosen] == c][: keep // CLASSES] for c in range(CLASSES)])

    def standardized(view: str) -> np.ndarray:
        table = view_table(view)
        deviation = table[train].std(0)
        return (table[chosen] - table[train].mean(0)) / np.where(deviation > 0, deviation, 1)

    tables = {view: standardized(view).astype(np.float32) for view in views}
    if side == "train" and (wrong := round(mismatched * len(chosen))) > 1:
        rows = np.random.default_rng([seed, 3]).permutation(len(chosen))[:wrong]
        tables[views[1]][rows] = tables[views[1]][np.roll(rows, 1)]  # a cycle: none keeps its own
    return Arrays(tables | {"label": label[chosen]})


@cache
def view_table(view: str) -> np.ndarray:
    if view in EMBEDDED:
        with files("mixcon.data").joinpath("embedded", "mfeat_pix_fou.npz").open("rb") as file, np.load(file) as tables:
            return tables[view].astype(np.float64)
    path = locate("mfeat") / f"mfeat-{view}.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}; `mixcon data fetch mfeat` gets it.")
    return np.loadtxt(path, delimiter=",", skiprows=1)[:, :-1]  # the last column is the label


def long_tail(labels: np.ndarray, factor: float, *, seed: int = 0) -> np.ndarray:
    """Which examples to keep so that class sizes fall exponentially: `n_c = n_max · factor^(c / (C-1))`, at least 1.

    Classes fall in the order of their numbers; within a class the kept ones are drawn at random.

    Args:
        labels: [N] class numbers, 0..C-1.
        factor: size of the last class over that of the first, in (0, 1].
        seed: of the draw.

    Returns:
        int64 indices in increasing order.

    Raises:
        InputError: a factor outside (0, 1]; a class with too few examples for its share.

    Example:
        >>> np.bincount(np.repeat([0, 1, 2], 100)[long_tail(np.repeat([0, 1, 2], 100), 0.01)]).tolist()
        [100, 10, 1]

    Reference: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", 2019, sec. 5.
    """
    if not 0 < factor <= 1:
        raise InputError(f"factor={factor}, the rarest class over the commonest, must lie in (0, 1].")
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    shares = factor ** (np.arange(len(counts)) / max(len(counts) - 1, 1))
    wanted = np.maximum((counts.max() * shares + 1e-9).astype(int), 1)
    if (counts < wanted).any():
        c = int(np.argmax(counts < wanted))
        raise InputError(f"class {c} has {counts[c]} examples; a long tail of factor {factor} needs {wanted[c]} of it.")
    rng = np.random.default_rng([seed, 2])
    kept = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(wanted)]
    return np.sort(np.concatenate(kept)) if factor < 1 else np.arange(len(labels))
