"""Regression sets with the splits that papers report on: tables, shifts between groups, series read through windows.

Every loader gives `Splits`: sources of records `x` float32 [...], `y` float32 [D] and, where there are groups, `group`
int32. Labels are in their own units. The seed changes the split, or the order of the rows where the split is fixed.
"""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np

from mixcon.data.catalog import locate
from mixcon.data.sources import Arrays
from mixcon.errors import InputError


class Splits(NamedTuple):
    """Three sources of one set."""

    train: Arrays
    valid: Arrays
    test: Arrays


def airfoil(*, seed: int = 0) -> Splits:
    """Airfoil Self-Noise: sound level (dB) from 5 measurements; 1003/300/200 rows, split at random.

    Inputs are scaled to [0, 1] by the extremes of all rows, the held-out ones included, as published.

    Example:
        >>> [len(part) for part in airfoil(seed=0)]
        [1003, 300, 200]

    Reference:
        Brooks, Pope, Marcolini, "Airfoil Self-Noise", UCI Machine Learning Repository, 1989 (CC BY 4.0); the protocol
        is that of Yao et al., "C-Mixup", 2022
    """
    table = parse(_embedded("airfoil_self_noise.dat"), delimiter="\t", header=1)
    return split_rows(min_max(table[:, :-1]), table[:, -1], (1003, 300, 200), seed=seed)


def no2(*, seed: int = 0, split: Literal["seed", "order"] = "seed") -> Splits:
    """NO2: log concentration at a road from traffic and weather, 7 inputs; 200/200/100 rows.

    Which rows the paper held out was not published: `split` takes them at random or in the order of the file (then
    the seed changes nothing here). StatLib states no licence, so the file is not in the package.

    Raises:
        InputError: the set `cmixup` is not here; unknown split.

    Example:
        >>> train = no2(seed=0).train  # doctest: +SKIP

    Reference:
        Aldrin, "NO2", StatLib, 2004; sizes as in Yao et al., "C-Mixup", 2022
    """
    if split not in ("seed", "order"):
        raise InputError(f"split={split!r} is not one of seed, order.")
    table = parse((locate("cmixup") / "NO2.csv").read_bytes(), delimiter=",", header=1)
    order = seed if split == "seed" else None
    return split_rows(min_max(table[:, :-1]), table[:, -1], (200, 200, 100), seed=order)


def crime(*, seed: int = 0) -> Splits:
    """Communities and Crime under a shift between states: 1390/231/373 rows, 122 inputs, 9 states in the test.

    Missing values are the column's mean.

    Example:
        >>> [len(part) for part in crime()]
        [1390, 231, 373]

    Reference:
        Redmond, "Communities and Crime", UCI Machine Learning Repository, 2002 (CC BY 4.0); the protocol is that of
        Yao et al., "C-Mixup", 2022
    """
    table = parse(_embedded("communities.data"), delimiter=",", skip=(3,))  # column 3 is the community's name
    return split_groups(min_max(table[:, 4:-1]), table[:, -1], table[:, 0], seed=seed)


def skillcraft(*, seed: int = 0) -> Splits:
    """SkillCraft: a player's action latency (ms) under a shift between leagues: 1878/806/711 rows, 17 inputs.

    Trained on leagues 1-4, validated on 5, tested on 6, 7 and 8.

    Example:
        >>> [len(part) for part in skillcraft()]
        [1878, 806, 711]

    Reference:
        Blair, Thompson, Henrey, Chen, "SkillCraft1 Master Table Dataset", UCI Machine Learning Repository, 2013
        (CC BY 4.0); the protocol is that of Yao et al., "C-Mixup", 2022
    """
    table = parse(_embedded("SkillCraft1_Dataset.csv"), delimiter=",", header=1, skip=(20,))  # lines end in a comma
    inputs = np.r_[2:13, 14:20]
    return split_groups(min_max(table[:, inputs]), table[:, 13], table[:, 1], seed=seed)


def time_series(
    *,
    dataset: str,
    file: str,
    window: int = 168,
    horizon: int = 12,
    train: float = 0.6,
    valid: float = 0.2,
    seed: int = 0,
) -> Splits:
    """A table of series, comma separated and perhaps gzipped: windows of all of them -> their values later on.

    Args:
        dataset: folder, as `locate` finds it.
        file: in that folder, e.g. "exchange_rate.txt.gz".
        window, horizon, train, valid: see `windows`.
        seed: changes nothing: the split is one of time.

    Raises:
        InputError: no such set or file; see `windows`.

    Example:
        >>> sets = time_series(dataset="cmixup", file="exchange_rate.txt.gz")  # doctest: +SKIP

    Reference:
        Lai, Chang, Yang, Liu, "Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks", 2018
    """
    path = locate(dataset) / file
    if not path.is_file():
        raise InputError(f"{path} is not there; it comes from github.com/laiguokun/multivariate-time-series-data.")
    raw = path.read_bytes()
    series = parse(gzip.decompress(raw) if path.suffix == ".gz" else raw, delimiter=",")
    return windows(series, window=window, horizon=horizon, train=train, valid=valid)


def windows(series: np.ndarray, *, window: int, horizon: int, train: float, valid: float) -> Splits:
    """Sliding windows `series[t-h+1-P : t-h+1] -> series[t]`, each series divided by its largest absolute value.

    Targets t are split in order of time: [P+h-1, ⌊train·n⌋), then up to ⌊(train+valid)·n⌋, then the rest.

    Args:
        series: [n, m].
        window: P ≥ 1.
        horizon: h ≥ 1.
        train, valid: shares of the n time steps.

    Returns:
        Splits with x [P, m] (views, not copies) and y [m].

    Raises:
        InputError: too few time steps for one window in each part.

    Example:
        >>> [len(part) for part in windows(np.ones((50, 2)), window=6, horizon=3, train=0.6, valid=0.2)]
        [22, 10, 10]
    """
    length = len(series)
    cuts = (window + horizon - 1, int(train * length), int((train + valid) * length), length)
    if window < 1 or horizon < 1 or any(a >= b for a, b in itertools.pairwise(cuts)):
        raise InputError(
            f"{length} time steps are too few for window={window}, horizon={horizon}, train={train}, valid={valid}."
        )
    check_finite(series, "series")
    largest = np.abs(series).max(axis=0)
    scaled = (series / np.where(largest > 0, largest, 1)).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(scaled, window, axis=0).swapaxes(1, 2)  # [n-P+1, P, m]
    first = window + horizon - 1  # the target of views[0]
    return Splits(*(Arrays({"x": views[a - first : b - first], "y": scaled[a:b]}) for a, b in itertools.pairwise(cuts)))


def split_rows(x: np.ndarray, y: np.ndarray, sizes: tuple[int, int, int], *, seed: int | None) -> Splits:
    """Parts of the given sizes, after a permutation by the seed (none without one).

    The permutation is that of NumPy's first generator, so that a seed names the split that it named in the published
    code: on small sets the split weighs more than most methods do.
    """
    if sum(sizes) > len(x):
        raise InputError(f"{sum(sizes)} rows are asked for and {len(x)} are there; the file is not the expected one.")
    order = np.arange(len(x)) if seed is None else np.random.RandomState(seed & 0xFFFFFFFF).permutation(len(x))
    ends = np.cumsum((0, *sizes))
    return Splits(*(columns(x, y, order[a:b]) for a, b in itertools.pairwise(ends)))


def split_groups(
    x: np.ndarray, y: np.ndarray, group: np.ndarray, *, seed: int, train: float = 0.7, valid: float = 0.1
) -> Splits:
    """Whole groups in the order of their numbers: about `train` of the rows, then `valid`, then the rest.

    The boundary is the first group at which the sum of rows reaches the share; that group opens the next part. The
    training rows are permuted once, by the seed.

    Example:
        >>> group = np.repeat([1, 2, 3, 4], [3, 3, 2, 2])
        >>> [len(part) for part in split_groups(np.zeros((10, 2)), np.zeros(10), group, seed=0)]
        [6, 2, 2]
    """
    names, counts = np.unique(group, return_counts=True)
    total = np.cumsum(counts)
    one = int(np.searchsorted(total, int(train * len(group))))
    two = int(np.searchsorted(total, total[one] + int(valid * len(group))))
    parts = [np.flatnonzero(np.isin(group, names[a:b])) for a, b in ((0, one), (one, two), (two, len(names)))]
    if not all(len(part) for part in parts):
        raise InputError(
            f"the groups leave a part of the split empty: {', '.join(str(len(part)) for part in parts)} rows."
        )
    parts[0] = _generator(seed).permutation(parts[0])
    return Splits(*(columns(x, y, rows, group) for rows in parts))


def columns(x: np.ndarray, y: np.ndarray, rows: np.ndarray, group: np.ndarray | None = None) -> Arrays:
    """Some rows as a source."""
    found = {"x": x[rows].astype(np.float32), "y": y[rows, None].astype(np.float32)}
    return Arrays(found if group is None else found | {"group": group[rows].astype(np.int32)})


def min_max(x: np.ndarray) -> np.ndarray:
    """Each column to [0, 1]; a constant one becomes 0.

    Example:
        >>> min_max(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """
    low, high = x.min(axis=0), x.max(axis=0)
    return (x - low) / np.where(high > low, high - low, 1)


def parse(raw: bytes, *, delimiter: str, header: int = 0, skip: tuple[int, ...] = ()) -> np.ndarray:
    """Numbers of a text table, float64; "?" is the mean of its column's known values.

    Raises:
        InputError: anything else that is no number.
    """
    lines = io.StringIO(raw.decode()).readlines()[header:]
    rows = [line.strip("\r\n").split(delimiter) for line in lines if line.strip()]
    try:
        table = np.array(
            [[np.nan if c == "?" else float(c) for i, c in enumerate(row) if i not in skip] for row in rows]
        )
    except ValueError as error:
        raise InputError(f"the table is not the expected one: {error}.") from None
    known = np.nanmean(table, axis=0)
    return check_finite(np.where(np.isnan(table), known, table), "table")


def check_finite(table: np.ndarray, name: str) -> np.ndarray:
    """Refuse a table with numbers that are not finite."""
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=-1))[0])
        raise InputError(f"the {name} holds numbers that are not finite, the first in row {row}.")
    return table


def _embedded(name: str) -> bytes:
    return lzma.decompress(files("mixcon.data").joinpath("embedded", f"{name}.xz").read_bytes())


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, 0x5B117])
