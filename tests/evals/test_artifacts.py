"""Artifacts: round trip, whole or not at all, no pickle, bad shapes refused."""

import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import artifacts


def grid(**change):
    fields = dict(
        query_images=np.zeros((2, 4, 4, 3), np.uint8),
        result_texts=[["a", "b"], ["日本", "العربية"]],
        truth_texts=["a", "c"],
        result_correct=np.array([[True, False], [False, False]]),
        ranks=[1, 7],
    )
    return artifacts.retrieval_grid(**(fields | change))


def all_kinds():
    xy = np.zeros((3, 2))
    return {
        "grid": grid(),
        "confusion": artifacts.confusion(np.eye(2), ["x", "y"]),
        "map": artifacts.embedding_map(xy, xy, labels=[0, 1, 0], names=["p", "q"]),
        "histogram": artifacts.histogram([0.5], [0.1, 0.2]),
        "table": artifacts.table(["a", "b"], [[1, "<x>"]]),
    }


@pytest.mark.parametrize("name", list(all_kinds()))
def test_round_trip(tmp_path, name):
    saved = all_kinds()[name]
    path = artifacts.save_artifact(tmp_path, 20, f"split/{name}", saved)
    assert path == tmp_path / "evals" / "20" / "split" / f"{name}.npz"
    loaded = artifacts.load_artifact(path)
    assert loaded.keys() == saved.keys()
    for key, value in saved.items():
        assert loaded[key].dtype == value.dtype
        np.testing.assert_array_equal(loaded[key], value)
    assert not any(v.dtype.hasobject for v in loaded.values())


def test_list_orders_steps_as_numbers_and_ignores_strangers(tmp_path):
    for step in (100, 20):
        artifacts.save_artifact(tmp_path, step, "a/b", grid())
    (tmp_path / "evals" / "notes").mkdir()
    assert {k: list(v) for k, v in artifacts.list_artifacts(tmp_path).items()} == {"a/b": [20, 100]}
    assert artifacts.list_artifacts(tmp_path / "nowhere") == {}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = artifacts.save_artifact(tmp_path, 1, "x", artifacts.histogram([1.0], [0.0]))
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="space"):
        artifacts.save_artifact(tmp_path, 1, "x", grid())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("name", ["", "../up", "/abs", "a//b", "a b", ".hidden", "a/../b"])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="name"):
        artifacts.save_artifact(tmp_path, 1, name, grid())


def test_bad_artifacts_are_refused(tmp_path):
    with pytest.raises(InputError, match="kind"):
        artifacts.save_artifact(tmp_path, 1, "x", {"a": np.zeros(2)})
    with pytest.raises(InputError, match="object"):
        artifacts.save_artifact(tmp_path, 1, "x", {"kind": np.array("k"), "a": np.array([{}, None])})
    damaged = artifacts.save_artifact(tmp_path, 1, "x", grid())
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match="readable"):
        artifacts.load_artifact(damaged)
    for change, message in (
        (dict(query_texts=["a", "b"]), "exactly one"),
        (dict(result_texts=[["a"], ["b"]]), "strings"),
        (dict(query_images=np.zeros((2, 4, 4, 3))), "uint8"),
        (dict(result_correct=np.zeros((2, 2))), "bool"),
        (dict(truth_texts=None, truth_images=np.zeros((2, 4, 4, 3), np.uint8)), "results' kind"),
    ):
        with pytest.raises(InputError, match=message):
            grid(**change)
    with pytest.raises(InputError, match="indices"):
        artifacts.embedding_map(np.zeros((2, 2)), np.zeros((2, 2)), labels=[0, 5], names=["a"])
    with pytest.raises(InputError, match="thumbnail_index"):
        artifacts.embedding_map(np.zeros((2, 2)), np.zeros((2, 2)), thumbnails=np.zeros((3, 2, 2, 3), np.uint8))
