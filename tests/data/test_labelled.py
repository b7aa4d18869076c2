"""Digits with wrong labels, and labelled pictures at one size."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixcon.data import labelled
from mixcon.data.sources import sklearn_set
from mixcon.errors import InputError


def test_noise_is_in_the_training_labels_alone():
    train, test = labelled.noisy_digits("train"), labelled.noisy_digits("test")
    truth = {x.tobytes(): y for x, y in zip(*sklearn_set("digits", "all").columns.values(), strict=True)}
    assert (len(train), len(test)) == (500, 1297)
    right = {name: np.mean([truth[s["image"].tobytes()] == s["label"] for s in (part[i] for i in range(len(part)))])
             for name, part in (("train", train), ("test", test))}  # fmt: skip
    assert right["test"] == 1
    assert abs(right["train"] - 0.64) < 0.03  # 200 drawn anew, a tenth of them right again
    assert not {x.tobytes() for x in train.columns["image"]} & {x.tobytes() for x in test.columns["image"]}


def test_the_seed_makes_the_split():
    first, again, other = (labelled.noisy_digits("train", seed=seed).columns["label"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("wrong", [{"side": "valid"}, {"train_size": 0}, {"train_size": 1797}, {"noise": 1.5}])
def test_impossible_splits_are_refused(wrong):
    with pytest.raises(InputError):
        labelled.noisy_digits(**wrong)


def test_parquet_is_found_by_name_and_resized(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    with pytest.raises(InputError, match="tiny_set"):
        labelled.parquet_images("tiny_set")
    file = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), 80, np.uint8)).save(file, "PNG")
    (tmp_path / "tiny_set").mkdir()
    table = pa.table({"image": [{"bytes": file.getvalue(), "path": "a"}], "label": [7]})
    pq.write_table(table, tmp_path / "tiny_set" / "train.parquet")
    record = labelled.parquet_images("tiny_set", "train", size=(4, 4))[0]
    assert record["image"].shape == (4, 4, 3)
    assert record["image"].mean() == 80
    assert record["label"] == 7
