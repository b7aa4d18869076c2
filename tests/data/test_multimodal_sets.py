"""Sets of several modalities, read from tiny files laid out as the published ones are."""

import json

import numpy as np
import pytest
from PIL import Image

from mixcon.data import eval_batches
from mixcon.data.multimodal import emoji_groups, feature_groups, food101, mogonet, n24news
from mixcon.data.records import BadRecord
from mixcon.errors import InputError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), colour).save(path)


# --- omics -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def omics(root):
    """Six training and three test rows, in the notation of the published tables."""
    folder, rng, tables = root / "brca", np.random.default_rng(0), {}
    folder.mkdir()
    for number, features in ((1, 4), (2, 3), (3, 2)):
        for side, rows in (("tr", 6), ("te", 3)):
            tables[number, side] = rng.normal(2.0, 3.0, (rows, features))
            np.savetxt(folder / f"{number}_{side}.csv", tables[number, side], delimiter=",", fmt="%.18e")
    np.savetxt(folder / "labels_tr.csv", [0, 1, 2, 3, 4, 0], fmt="%.18e")
    np.savetxt(folder / "labels_te.csv", [4, 0, 2], fmt="%.18e")
    return folder, tables


def test_tables_are_scaled_by_the_training_side(omics):
    _, tables = omics
    test = mogonet("brca", "test")
    assert list(test[0]) == ["mrna", "methylation", "mirna", "label"]
    assert [test[i]["label"] for i in range(3)] == [4, 0, 2]
    for number, name in enumerate(("mrna", "methylation", "mirna"), 1):
        known, shown = tables[number, "tr"], tables[number, "te"]
        for j in range(known.shape[1]):
            low = min(known[:, j])
            high = max(known[:, j] - low) + 1e-10
            np.testing.assert_allclose(test.columns[name][:, j], (shown[:, j] - low) / high, rtol=1e-5, atol=1e-6)
    train = mogonet("brca", "train", modalities=("mirna",))
    assert list(train.columns) == ["mirna", "label"]
    np.testing.assert_allclose(train.columns["mirna"].min(0), 0)
    np.testing.assert_allclose(train.columns["mirna"].max(0), 1, rtol=1e-6)


def test_what_is_wrong_with_tables_is_said(omics):
    folder, _ = omics
    with pytest.raises(InputError, match="'train' or 'test'"):
        mogonet("brca", "valid")
    with pytest.raises(InputError, match="no modality 'protein'; brca has mrna"):
        mogonet("brca", modalities=("protein",))
    (folder / "labels_tr.csv").write_text("0\n1\n")
    with pytest.raises(InputError, match="different lengths"):
        mogonet("brca")
    (folder / "2_tr.csv").write_text("1.0,nan,2.0\n")
    with pytest.raises(InputError, match="not finite"):
        mogonet("brca")
    (folder / "2_tr.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="not a table of numbers"):
        mogonet("brca")
    (folder / "2_tr.csv").unlink()
    with pytest.raises(
        InputError, match=r"2_tr.csv is missing: every modality .* github.com/txWang/MOGONET, folder BRCA"
    ):
        mogonet("brca")


def test_a_set_that_is_not_here_says_where_it_belongs(root):
    for read, origin in ((lambda: mogonet("brca"), "MOGONET"), (n24news, "N24News"), (food101, "M3CoL")):
        with pytest.raises(InputError, match=rf"{root}.*from github\.com/.*{origin}"):
            read()


# --- images and texts ------------------------------------------------------------------------------------------------


@pytest.fixture
def news(root):
    sections = ("Sports", "Art & Design", "Sports", "Books")
    items = [
        {"image_id": f"id{i}", "section": s, "headline": f"headline {i}", "caption": "", "article": f"body {i}"}
        for i, s in enumerate(sections)
    ]
    items[1]["caption"] = " a painting "
    (root / "n24news" / "news").mkdir(parents=True)
    for split, part in (("train", items), ("dev", items[2:]), ("test", [items[0] | {"section": "Opinion"}])):
        (root / "n24news" / "news" / f"nytimes_{split}.json").write_text(json.dumps(part))
    for i in range(3):  # the last item has lost its image
        picture(root / "n24news" / "imgs" / f"id{i}.jpg", (60 * i, 0, 0))


def test_news_items_are_images_texts_and_sections(news):
    source = n24news("train", size=(8, 12))
    assert len(source) == 4
    record = source[2]
    assert (record["image"].shape, record["image"].dtype) == ((8, 12, 3), np.uint8)
    assert abs(int(record["image"][0, 0, 0]) - 120) < 8
    assert (record["text"], record["label"]) == ("headline 2", 2)  # Art & Design, Books, Sports
    assert source[1]["label"] == 0
    assert n24news("valid", text="body")[0]["text"] == "body 2"
    assert n24news("train", text="caption")[1]["text"] == "a painting"


def test_items_that_lack_a_modality_are_skipped_and_counted(news):
    with pytest.raises(BadRecord, match=r"no image id3\.jpg"):
        n24news("train")[3]
    with pytest.raises(BadRecord, match="no text"):
        n24news("train", text="caption")[0]
    with pytest.raises(BadRecord, match="'Opinion' is not one of the training items"):
        n24news("test")[0]
    batch = eval_batches(n24news("train", size=(8, 8)), batch_size=4, max_bad_share=1.0)[0]
    assert batch["mask"].tolist() == [True, True, True, False]
    with pytest.raises(InputError, match="splits train, valid, test and the texts headline"):
        n24news("dev")
    with pytest.raises(InputError, match="got 'train', 'title'"):
        n24news("train", text="title")


@pytest.fixture
def food(root):
    for side, count in (("train", 5), ("test", 2)):
        rows = []
        for i in range(count):
            dish = ("waffles", "apple_pie")[i % 2]
            rows.append(f'{dish}_{i}.jpg,"Recipe {i}, with ""cream""",{dish}')
            picture(root / "food101" / "images" / side / dish / f"{dish}_{i}.jpg", (0, 50 * i, 0))
        (root / "food101" / "texts").mkdir(parents=True, exist_ok=True)
        (root / "food101" / "texts" / f"{side}_titles.csv").write_text("\n".join(rows) + "\n")
    return root / "food101"


def test_dishes_are_images_titles_and_classes(food):
    test = food101("test", size=(8, 8))
    assert (test[1]["text"], test[1]["label"]) == ('Recipe 1, with "cream"', 0)
    assert test[0]["label"] == 1
    assert test[0]["image"].shape == (8, 8, 3)


def test_the_validation_set_is_drawn_from_the_training_items(food):
    known, held_out = food101("train", valid=2), food101("valid", valid=2)
    texts = [[source[i]["text"] for i in range(len(source))] for source in (known, held_out)]
    assert (len(texts[0]), len(texts[1])) == (3, 2)
    assert len({*texts[0], *texts[1]}) == 5
    others = [food101("valid", valid=2, seed=seed) for seed in range(1, 9)]
    assert any([other[i]["text"] for i in range(2)] != texts[1] for other in others)


def test_what_is_wrong_with_dishes_is_said(food):
    with pytest.raises(InputError, match="'train', 'valid' or 'test'"):
        food101("dev")
    with pytest.raises(InputError, match="valid=5 must leave some of the 5"):
        food101("train", valid=5)
    (food / "texts" / "train_titles.csv").write_text("apple_pie_1.jpg,a title\n")
    with pytest.raises(InputError, match="a line should be `file name, title, class`"):
        food101("test")
    (food / "texts" / "train_titles.csv").unlink()
    with pytest.raises(InputError, match=r"visiir\.isir\.upmc\.fr"):
        food101("test")


# --- sets without files ----------------------------------------------------------------------------------------------


def test_features_of_a_real_set_are_dealt_out():
    train, test = feature_groups("breast_cancer", "train"), feature_groups("breast_cancer", "test")
    assert {name: column.shape[1:] for name, column in train.columns.items() if name != "label"} == dict.fromkeys(
        ("mrna", "methylation", "mirna"), (10,)
    )
    np.testing.assert_allclose(train.columns["mrna"].max(0), 1, rtol=1e-6)
    assert len(train) + len(test) == 569
    assert test.columns["mrna"].min() < 0.05
    with pytest.raises(InputError, match="too few for 14 groups"):
        feature_groups("wine", groups=[str(i) for i in range(14)])


def test_emoji_are_labelled_by_their_group():
    record = emoji_groups("test")[0]
    assert (record["image"].shape, record["text"], int(record["label"])) == ((64, 64, 3), "face with tears of joy", 0)
