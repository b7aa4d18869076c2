"""ALIGN's rules: each at its threshold, in their order, and as a step of packing that says what fell by which."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mixcon import cli
from mixcon.data import Emoji
from mixcon.data.cleaning import (
    RULES,
    Census,
    Rules,
    align_image_filter,
    align_text_filter,
    difference_hash,
    digest,
    grams,
    parse_rules,
    words,
)
from mixcon.data.pack import Report, pack
from mixcon.data.records import read
from mixcon.data.sources import Packed
from mixcon.errors import InputError

NONE = np.zeros(0, np.uint64)


@pytest.mark.parametrize(
    ("size", "texts", "rule"),
    [
        ((201, 201), 1, ""),
        ((201, 200), 1, "size"),
        ((603, 201), 1, "aspect"),
        ((201, 602), 1, ""),
        ((900, 100), 5000, "size"),  # the first in order
        ((201, 201), 999, ""),
        ((201, 201), 1000, "texts_of_image"),
    ],
)
def test_images(size, texts, rule):
    assert align_image_filter(size, texts=texts, picture=0, held_out=NONE) == rule


def test_images_near_a_held_out_one():
    held_out = np.asarray([0b1111, 0xFF00FF00FF00FF00], np.uint64)
    near, far = 0xFF00FF00FF00FF00 ^ 0b1111, 0xFF00FF00FF00FF00 ^ 0b11111
    assert align_image_filter((300, 300), texts=1, picture=near, held_out=held_out) == "held_out"
    assert align_image_filter((300, 300), texts=1, picture=far, held_out=held_out) == ""


@pytest.mark.parametrize(
    ("text", "images", "rule"),
    [
        ("a red heart", 10, ""),
        ("a red heart", 11, "images_of_text"),
        ("red heart", 1, "length"),
        (" ".join(["heart"] * 20), 1, ""),
        (" ".join(["heart"] * 21), 1, "length"),
        ("a red zebra", 1, "rare_text"),
        ("heart red a", 1, "rare_text"),  # words that are known, pairs that are not
    ],
)
def test_texts(text, images, rule):
    common = frozenset([*grams("a red heart"), *grams("heart heart")])
    assert align_text_filter(text, images=images, common=common) == rule


def test_words_are_folded_and_keep_their_apostrophes():
    assert words("Don't  PANIC -- it's well-known, №42: ÉTÉ!") == ["don't", "panic", "it's", "well-known", "42", "été"]
    assert len(list(grams("one two three"))) == 5


def test_the_census_counts_different_ones():
    census = Census()
    pairs = [(b"a", "x"), (b"a", "x "), (b"a", "y"), (b"b", "x"), (b"b", "x z")]
    for image, text in pairs:
        census.add(image, text)
    stripped = {(image, text.strip()) for image, text in pairs}
    for image in (b"a", b"b", b"c"):
        assert census.texts_of(image) == len({t for i, t in stripped if i == image})
    for text in ("x", "y", "x z", "none"):
        assert census.images_of(text) == len({i for i, t in stripped if t == text})
    assert census.common(100) is None
    assert census.common(1) == {digest(b"x")}


def test_scaled_and_recompressed_copies_are_alike_and_others_are_not():
    pictures = [Image.fromarray(Emoji("concept", "train")[i]["image"]) for i in range(0, 1500, 60)]
    hashes = np.asarray([difference_hash(picture) for picture in pictures], np.uint64)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert np.median(distance[np.triu_indices(len(hashes), 1)]) > 15
    for picture, own in zip(pictures, hashes, strict=True):
        buffer = io.BytesIO()
        picture.resize((150, 150)).save(buffer, "JPEG", quality=60)
        copy = difference_hash(Image.open(buffer))
        assert int(np.bitwise_count(own ^ np.uint64(copy))) <= 12


def save(folder, name, picture, text, rows):
    picture.save(folder / f"{name}.png")
    rows.append(f'{name}.png,"{text}"')


@pytest.fixture
def crawl(tmp_path):
    """A small crawl with something for every rule, and a shard of held-out images."""
    rng = np.random.default_rng(0)

    def noise(width=80, height=80):
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))

    rows, held = ["image,text"], ["image,text"]
    for i in range(12):
        save(tmp_path, f"good{i}", noise(), f"a photo of the number {i % 6}", rows)
    for i in range(3):
        save(tmp_path, f"spam{i}", noise(), "click here to enlarge", rows)
    save(tmp_path, "small", noise(50, 80), "a photo of the number", rows)
    save(tmp_path, "wide", noise(320, 80), "a photo of the number", rows)
    save(tmp_path, "short", noise(), "number 1", rows)
    save(tmp_path, "rare", noise(), "a photo of zyx", rows)
    secret = noise()
    save(tmp_path, "secret", secret, "held out", held)
    save(tmp_path, "leak", secret.resize((90, 90)), "a photo of the number", rows)
    (tmp_path / "crawl.csv").write_text("\n".join(rows))
    (tmp_path / "val.csv").write_text("\n".join(held))
    pack([str(tmp_path / "val.csv")], tmp_path / "val", progress=False)
    return tmp_path


RULES_HERE = Rules(min_side=60, max_images=2, vocabulary=28)


def test_packing_says_what_fell_by_which_rule(crawl):
    arguments = ([str(crawl / "crawl.csv")], crawl / "out")
    options = {"clean": RULES_HERE, "held_out": [str(crawl / "val/*.arrayrecord")], "progress": False}
    report = pack(*arguments, **options)
    fell = dict.fromkeys(RULES, 0) | {
        "size": 1, "aspect": 1, "held_out": 1, "images_of_text": 3, "rare_text": 1, "length": 1,
    }  # fmt: skip
    assert dict(report.cleaned) == fell
    assert (report.records, report.skipped) == (12, 8)
    assert "rare_text" in str(report)
    kept = {record["text"] for record in read(Packed(crawl / "out/*.arrayrecord"))}
    assert kept == {f"a photo of the number {i}" for i in range(6)}
    lines = (crawl / "out/crawl-00000.arrayrecord.skipped.jsonl").read_text().splitlines()
    reasons = {line["key"]: line["reason"] for line in map(json.loads, lines)}
    assert reasons["leak.png"] == "cleaning: held_out"
    said = json.loads((crawl / "out/cleaning.json").read_text())
    assert said["left_out"] == fell
    assert said["rules"]["min_side"] == 60
    assert pack(*arguments, **options) == report._replace(resumed=1)
    other = pack(*arguments, clean=RULES_HERE, progress=False)  # without the held-out images it is another set
    assert other.cleaned["held_out"] == 0
    assert other.resumed == 0
    assert pack(*arguments, progress=False) == Report(1, 20, 0, 0)


def test_every_shard_depends_on_all_that_was_counted(crawl):
    options = {"clean": RULES_HERE, "rows_per_shard": 10, "progress": False}
    pack([str(crawl / "crawl.csv")], crawl / "out", **options)
    more = (crawl / "crawl.csv").read_text().splitlines()
    (crawl / "more.csv").write_text("\n".join([more[0], *more[1:4]]))
    again = pack([str(crawl / "crawl.csv"), str(crawl / "more.csv")], crawl / "out", **options)
    assert again.resumed == 0


def test_the_command_takes_rules(crawl, capsys):
    cli.main(
        ["data", "pack", str(crawl / "crawl.csv"), "--out", str(crawl / "cli"), "--clean", "min_side=60", "max_words=9"]
    )
    assert "size" in capsys.readouterr().out
    assert parse_rules([]) == Rules()
    for wrong, words_of_it in (
        (["min_sid=1"], "min_side"),
        (["min_side=x"], "min_side=200"),
        (["max_aspect=1"], "above"),
        (["max_aspect=nan"], "above"),
    ):
        with pytest.raises(InputError, match=words_of_it):
            parse_rules(wrong)
    with pytest.raises(InputError, match="rules of cleaning"):
        pack([str(crawl / "crawl.csv")], crawl / "no", held_out=["x"], progress=False)
