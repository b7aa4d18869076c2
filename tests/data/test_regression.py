"""Regression sets: the published splits, checked against plain loops over the files and the original code's windows."""

import gzip
import lzma
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mixcon.data import catalog, regression
from mixcon.errors import InputError


def lines_of(name):
    raw = lzma.decompress(files("mixcon.data").joinpath("embedded", f"{name}.xz").read_bytes())
    return raw.decode().splitlines()


@pytest.mark.parametrize("name", ["airfoil_self_noise.dat", "communities.data", "SkillCraft1_Dataset.csv"])
def test_embedded_files_are_the_published_ones(name, tmp_path):
    raw = lzma.decompress(files("mixcon.data").joinpath("embedded", f"{name}.xz").read_bytes())
    (tmp_path / name).write_bytes(raw)
    found = {check.file: check.state for check in catalog.check("cmixup", folder=tmp_path)}
    assert found[name] == "ok"


def test_airfoil_is_permuted_by_the_seed_and_scaled_by_all_rows():
    sets = regression.airfoil(seed=1)
    assert [len(part) for part in sets] == [1003, 300, 200]
    rows = [tuple(map(float, line.split("\t"))) for line in lines_of("airfoil_self_noise.dat")[1:]]
    low, high = (list(map(f, zip(*rows, strict=True))) for f in (min, max))
    expected = sorted(
        (*(np.float32((v - a) / (b - a)) for v, a, b in zip(row, low, high, strict=True)), np.float32(row[5]))
        for row in rows
    )
    found = sorted(
        (*map(np.float32, x), np.float32(y[0]))
        for part in sets
        for x, y in zip(part.columns["x"], part.columns["y"], strict=True)
    )
    assert_allclose(np.array(found), np.array([(*e[:5], e[6]) for e in expected]), rtol=1e-6)
    other = regression.airfoil(seed=2)
    assert (sets.train.columns["y"] != other.train.columns["y"]).any()
    assert_array_equal(sets.train.columns["y"], regression.airfoil(seed=1).train.columns["y"])


def reference_groups(group):
    """The rule of the specification, by a loop."""
    counts = sorted(Counter(group).items())
    total, ends = 0, []
    for name, count in counts:
        total += count
        ends.append((name, total))
    one = next(i for i, (_, t) in enumerate(ends) if t >= int(0.7 * len(group)))
    two = next(i for i, (_, t) in enumerate(ends) if t >= ends[one][1] + int(0.1 * len(group)))
    names = [name for name, _ in counts]
    return names[:one], names[one:two], names[two:]


@pytest.mark.parametrize(
    ("loader", "file", "column", "skip", "sizes", "inputs"),
    [
        (regression.crime, "communities.data", 0, 0, [1390, 231, 373], 122),
        (regression.skillcraft, "SkillCraft1_Dataset.csv", 1, 1, [1878, 806, 711], 17),
    ],
)
def test_groups_are_split_whole_and_in_order(loader, file, column, skip, sizes, inputs):
    sets = loader(seed=0)
    assert [len(part) for part in sets] == sizes
    group = [int(line.split(",")[column]) for line in lines_of(file)[skip:]]
    for part, names in zip(sets, reference_groups(group), strict=True):
        assert set(part.columns["group"]) == set(names)
        assert part.columns["x"].shape == (len(part), inputs)
    scaled = np.concatenate([part.columns["x"] for part in sets])
    assert_allclose(scaled.max(axis=0), 1)
    assert_allclose(scaled.min(axis=0), 0)
    other = loader(seed=1)
    assert (sets.train.columns["y"] != other.train.columns["y"]).any(), "training rows are permuted"
    assert_array_equal(sets.test.columns["y"], other.test.columns["y"])


def test_skillcraft_test_leagues_and_the_label_in_its_own_units():
    sets = regression.skillcraft()
    league, count = np.unique(sets.test.columns["group"], return_counts=True)
    assert dict(zip(league.tolist(), count.tolist(), strict=True)) == {6: 621, 7: 35, 8: 55}
    lines = [line.split(",") for line in lines_of("SkillCraft1_Dataset.csv")[1:]]
    expected = [float(line[13]) for line in lines if line[1] == "5"]
    assert_allclose(sets.valid.columns["y"][:, 0], expected, rtol=1e-6)


def test_missing_values_are_the_mean_of_the_known_ones():
    table = regression.parse(b"a,b\n1,?\n?,2\n3,6\n", delimiter=",", header=1)
    assert table.tolist() == [[1, 4], [2, 2], [3, 6]]


def test_windows_are_those_of_the_original_code():
    with np.load("tests/golden/cmixup.npz") as arrays:
        case = {key[3:]: arrays[key] for key in arrays.files if key.startswith("c3/")}
    sets = regression.windows(
        case["in/series"],
        window=int(case["in/window"]),
        horizon=int(case["in/horizon"]),
        train=float(case["in/train_frac"]),
        valid=float(case["in/valid_frac"]),
    )
    for name in ("train", "valid", "test"):
        part = getattr(sets, name)
        for column in ("x", "y"):
            assert_allclose(part.read_rows(np.arange(len(part)))[column], case[f"out/{column}_{name}"], rtol=1e-6)


def test_series_and_no2_are_read_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="mixcon data fetch cmixup"):
        regression.no2()
    (tmp_path / "cmixup").mkdir()
    rng = np.random.default_rng(0)
    series = rng.normal(size=(60, 3))
    text = "\n".join(",".join(f"{v:.6f}" for v in row) for row in series)
    (tmp_path / "cmixup" / "s.txt.gz").write_bytes(gzip.compress(text.encode()))
    sets = regression.time_series(dataset="cmixup", file="s.txt.gz", window=5, horizon=2)
    assert sets.train[0]["x"].shape == (5, 3)
    assert_allclose(sets.train[0]["y"], series[6] / np.abs(series).max(axis=0), rtol=1e-4)
    with pytest.raises(InputError, match="is not there"):
        regression.time_series(dataset="cmixup", file="t.txt")
    rows = rng.normal(size=(500, 8))
    lines = ["0,1,2,3,4,5,6,label", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "cmixup" / "NO2.csv").write_text("\n".join(lines))
    ordered = regression.no2(split="order")
    assert_allclose(np.concatenate([part.columns["y"][:, 0] for part in ordered]), rows[:, 7], rtol=1e-6)
    assert [len(part) for part in regression.no2(seed=4)] == [200, 200, 100]
    with pytest.raises(InputError, match="seed, order"):
        regression.no2(split="file")


def test_what_is_no_such_table_is_refused():
    with pytest.raises(InputError, match="not the expected one"):
        regression.parse(b"1,2\n3,x\n", delimiter=",")
    with pytest.raises(InputError, match="not the expected one"):
        regression.parse(b"1,2\n3\n", delimiter=",")
    with pytest.raises(InputError, match="not finite, the first in row 1"):
        regression.parse(b"1,2\n3,inf\n", delimiter=",")
    with pytest.raises(InputError, match="too few"):
        regression.windows(np.ones((10, 1)), window=9, horizon=1, train=0.6, valid=0.2)
    with pytest.raises(InputError, match="rows are asked for"):
        regression.split_rows(np.ones((3, 1)), np.ones(3), (2, 1, 1), seed=0)
    with pytest.raises(InputError, match="empty: 0"):
        regression.split_groups(np.zeros((10, 2)), np.zeros(10), np.repeat([3, 1, 2, 4], [1, 7, 1, 1]), seed=0)


def test_a_seed_names_the_split_of_the_published_code():
    """Rows in the order of NumPy's first generator: the first 1003 to train, the last 200 to test."""
    labels = np.array([float(line.split("\t")[5]) for line in lines_of("airfoil_self_noise.dat")[1:]])
    order = np.random.RandomState(0).permutation(1503)
    sets = regression.airfoil(seed=0)
    assert_allclose(sets.train.columns["y"][:, 0], labels[order[:1003]], rtol=1e-6)
    assert_allclose(sets.test.columns["y"][:, 0], labels[order[1303:]], rtol=1e-6)
