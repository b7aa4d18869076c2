"""The embedded set says what it claims, and its splits do not leak."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mixcon.data import build_emoji
from mixcon.data.emoji import LANGUAGES, Emoji, images, names
from mixcon.data.emoji_parts import Parts, parse, without_hair
from mixcon.data.emoji_splits import alike, clusters, split_composition, split_concept
from mixcon.data.records import decode_image, read
from mixcon.errors import InputError


@pytest.fixture(scope="module")
def whole():
    return list(read(Emoji(side="all", languages=LANGUAGES)))


def sides(split):
    return Emoji(split, "train"), Emoji(split, "test")


def parts_of(source):
    return [Parts(record["base"], record["tone"], record["gender"]) for record in read(source)]


def test_3634_pairs_with_a_name_in_each_of_18_languages(whole):
    assert len(Emoji(side="all")) == 3634
    assert len(whole) == 3634 * 18
    assert all(record["text"].strip() for record in whole)
    assert {record["language"] for record in whole[:18]} == set(LANGUAGES)


def test_pictures_are_64_rgb_on_white_and_not_blank():
    pixels = images()
    assert pixels.shape == (3634, 64, 64, 3)
    assert pixels.dtype == np.uint8
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.min((1, 2)) == 255).mean() > 0.95
    assert (pixels.std((1, 2, 3)) > 2).mean() > 0.999
    assert not pixels.flags.writeable


def test_known_emoji_have_their_names():
    by_emoji = {record["emoji"]: record for record in read(Emoji(side="all", languages=("en", "de", "ja")))}
    german = [r["text"] for r in read(Emoji(side="all", languages="de")) if r["emoji"] == "🐙"]
    assert german == ["Oktopus"]
    assert by_emoji["🐙"]["group"] == "Animals & Nature"
    firefighter = next(r for r in read(Emoji(side="all")) if r["emoji"] == "👩🏿‍🚒")
    assert firefighter["text"] == "woman firefighter: dark skin tone"
    assert (firefighter["base"], firefighter["tone"], firefighter["gender"]) == ("🧑‍🚒", "dark", "woman")


def test_red_heart_is_red_and_green_heart_is_green():
    records = {r["text"]: r["image"][28:36, 28:36].reshape(-1, 3).mean(0) for r in read(Emoji(side="all"))}
    assert records["red heart"].argmax() == 0
    assert records["green heart"].argmax() == 1
    assert records["blue heart"].argmax() == 2


def test_integer_labels_agree_with_the_name_tables(whole):
    tables = names()
    for record in whole[:: 18 * 7]:
        for label, table in tables.items():
            assert table[record[f"{label}_id"]] == record[label]
    assert tables["tone"][0] == tables["gender"][0] == "none"


@pytest.mark.parametrize("split", ["concept", "composition"])
def test_sides_partition_the_set(split):
    train, test = sides(split)
    assert sorted([*train.rows, *test.rows]) == list(range(3634))
    assert 300 <= len(test) <= 500


@pytest.mark.parametrize("split", ["concept", "composition"])
def test_no_picture_and_no_name_is_on_both_sides(split):
    train, test = (Emoji(split, side, languages=LANGUAGES) for side in ("train", "test"))
    train_names = {(r["language"], r["text"].casefold()) for r in read(train)}
    assert not train_names & {(r["language"], r["text"].casefold()) for r in read(test)}
    pixels = images().astype(np.float32).reshape(3634, -1) / 255
    a, b = pixels[train.rows], pixels[test.rows]
    squares = ((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T) / a.shape[1]
    assert np.sqrt(squares.clip(0).min()) > (0.04 if split == "concept" else 1 / 255)


def test_concept_split_keeps_all_variants_of_a_base_together():
    train, test = sides("concept")
    train_bases = {without_hair(part.base) for part in parts_of(train)}
    assert not train_bases & {without_hair(part.base) for part in parts_of(test)}
    assert len({record["group"] for record in read(test)}) >= 9


def test_composition_split_holds_out_combinations_of_seen_factors():
    train, test = sides("composition")
    seen, asked = parts_of(train), parts_of(test)
    for field in Parts._fields:
        assert {getattr(part, field) for part in asked} <= {getattr(part, field) for part in seen}
    assert not set(seen) & set(asked)
    assert all(part.tone != "none" for part in asked)
    train_count, test_count = (Counter(part.base for part in parts) for parts in (seen, asked))
    assert all(train_count[base] >= 2 * test_count[base] for base in test_count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("👍🏽", ("👍", "medium", "none")),
        ("🚣‍♀️", ("🚣", "none", "woman")),
        ("🧑🏻‍🔬", ("🧑‍🔬", "light", "none")),
        ("👭🏿", ("🧑‍🤝‍🧑", "dark", "woman+woman")),
        ("👩🏻‍🤝‍👨🏿", ("🧑‍🤝‍🧑", "light+dark", "woman+man")),
        ("🧑🏼‍❤️‍🧑🏾", ("💑", "medium-light+medium-dark", "none")),
        ("👩🏽‍❤️‍💋‍👨🏽", ("💏", "medium", "woman+man")),
        ("🫱🏻‍🫲🏽", ("🤝", "light+medium", "none")),
        ("👨‍👩‍👧", ("👪", "none", "man+woman+girl")),
        ("👧🏾", ("🧒", "medium-dark", "woman")),
        ("🎅", ("🧑‍🎄", "none", "man")),
        ("👩‍🦰", ("🧑‍🦰", "none", "woman")),
        ("🏿", ("🏿", "none", "none")),
        ("5️⃣", ("5", "none", "none")),
        ("🏴‍☠️", ("🏴‍☠", "none", "none")),
    ],
)
def test_parse(text, expected):
    assert parse(text) == expected


def test_clusters_are_connected_components():
    assert clusters([("a",), ("b",), ("b", "c"), ("c", "a"), ("d",)]) == [0, 0, 0, 0, 4]


def test_alike_pictures_cluster_and_others_do_not():
    base = np.full((4, 4, 3), 100, np.uint8)
    assert alike([base, base + 1, base + 50, base], tolerance=1.5 / 255) == [0, 0, 2, 0]


def test_splits_move_shared_pictures_and_names_together():
    parts = [Parts(base, tone, "none") for base in "abcdefgh" for tone in ("none", "light", "dark")]
    strata = ["s"] * len(parts)
    pictures = list(range(len(parts)))
    pictures[3] = pictures[0]  # b drawn as a
    texts = [(f"en:{i}",) for i in range(len(parts))]
    texts[6] = texts[9]  # c called as d
    for seed in range(8):
        side, report = split_concept(parts, pictures, texts, strata, seed=seed, share=0.5)
        assert len(set(side[0:6])) == 1
        assert len(set(side[6:12])) == 1
        assert report["concepts merged because a picture or name is shared"] == 2
        assert {"train", "test"} == set(side)
        composed, _ = split_composition(parts, pictures, texts, seed=seed, size=4)
        assert composed.count("test") == 4
        assert composed[0] == composed[3] == composed[6] == composed[9] == "train"


@pytest.mark.parametrize("wrong", [{"split": "concepts"}, {"side": "val"}, {"languages": ("xx",)}, {"languages": ()}])
def test_wrong_arguments_are_refused_in_words(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Emoji(**wrong)


def test_reading_needs_no_font_tools():
    code = "import sys; sys.modules['fontTools'] = None; from mixcon.data.emoji import Emoji; print(Emoji()[0]['text'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "grinning face"


@pytest.mark.slow
def test_the_builder_makes_the_committed_file_again(tmp_path):
    pytest.importorskip("fontTools")
    if not all(Path(path).exists() for path in (build_emoji.FONT, build_emoji.CLDR, build_emoji.EMOJI_TEST)):
        pytest.skip("the Debian packages are not installed")
    build_emoji.build(tmp_path)
    committed = Path(build_emoji.__file__).parent / "embedded" / "emoji.parquet"
    fresh, stored = pq.read_table(tmp_path / "emoji.parquet"), pq.read_table(committed)
    assert fresh.drop_columns("image").equals(stored.drop_columns("image"))
    for row in range(0, 3634, 50):  # encoders may differ by version; pixels may not
        a, b = (np.asarray(decode_image(table["image"][row].as_py())) for table in (fresh, stored))
        np.testing.assert_array_equal(a, b)
