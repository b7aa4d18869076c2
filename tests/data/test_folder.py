"""A folder of pictures and captions as people have one."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixcon.data.folder import image_folder
from mixcon.data.pack import Report, pack
from mixcon.data.records import BadRecord
from mixcon.errors import InputError

CAPTIONS = {f"{i:02d}.png": f"caption {i}" for i in range(40)}


@pytest.fixture
def pictures(tmp_path):
    for i, name in enumerate(CAPTIONS):
        Image.new("RGB", (24 + i, 24), (6 * i, 0, 0)).save(tmp_path / name)
    return tmp_path


def write_table(path, columns):
    rows = [dict(zip(columns, pair, strict=True)) for pair in CAPTIONS.items()]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("captions.csv", ("image", "text")),
        ("captions.tsv", ("filename", "caption")),
        ("metadata.jsonl", ("file_name", "text")),
        ("t.parquet", ("path", "title")),
    ],
)
def test_a_table_beside_the_pictures(pictures, name, columns):
    write_table(pictures / name, columns)
    source = image_folder(pictures, size=(16, 16))
    assert [source[i]["text"] for i in range(len(source))] == list(CAPTIONS.values())
    record = source[7]
    assert record["image"].shape == (16, 16, 3)
    assert record["image"][8, 8].tolist() == [42, 0, 0]
    assert record["file"] == "07.png"


def test_a_text_file_beside_each_picture_also_in_folders_below(pictures):
    for name, text in CAPTIONS.items():
        (pictures / name).with_suffix(".txt").write_text(f"  {text}\n second line ")
    (pictures / "39.txt").unlink()
    below = pictures / "more"
    below.mkdir()
    Image.new("RGB", (9, 9), "white").save(below / "a.JPG", "JPEG")
    (below / "a.txt").write_text("white")
    source = image_folder(pictures, size=(8, 8))
    assert len(source) == 40
    texts = {source[i]["file"]: source[i]["text"] for i in range(40)}
    assert texts["00.png"] == "caption 0 second line"
    assert texts["more/a.JPG"] == "white"


def test_sides_share_nothing_and_adding_pictures_moves_none(pictures):
    write_table(pictures / "captions.csv", ("image", "text"))

    def names(side):
        source = image_folder(pictures, side=side, held_out=0.3, size=(8, 8))
        return {source[i]["file"] for i in range(len(source))}

    train, test = names("train"), names("test")
    assert train | test == set(CAPTIONS)
    assert not train & test
    assert 5 <= len(test) <= 20
    Image.new("RGB", (9, 9)).save(pictures / "new.png")
    with (pictures / "captions.csv").open("a") as file:
        file.write("new.png,added\nnew.png,a second caption of it\n")
    now = names("train"), names("test")
    assert {"new.png"} | train | test == now[0] | now[1]
    assert train <= now[0] and test <= now[1]  # noqa: PT018
    assert not now[0] & now[1]


def test_what_cannot_be_used_is_a_bad_record_and_kept_pictures_are_decoded_once(pictures):
    (pictures / "captions.csv").write_text("image,text\n00.png,red\ngone.png,gone\n01.png,\n02.png\nt.png,cut\n")
    (pictures / "t.png").write_bytes((pictures / "00.png").read_bytes()[:40])
    source = image_folder(pictures, size=(8, 8), keep=True)
    for bad in (1, 2, 3, 4):
        with pytest.raises(BadRecord):
            source[bad]
    first = source[0]
    (pictures / "00.png").unlink()
    np.testing.assert_array_equal(source[0]["image"], first["image"])


def test_mistakes_are_told_in_words(pictures):
    with pytest.raises(InputError, match="no captions: put a table there"):
        image_folder(pictures)
    with pytest.raises(InputError, match="no folder nowhere"):
        image_folder("nowhere")
    (pictures / "captions.csv").write_text("id,words\n1,a\n")
    with pytest.raises(InputError, match=r"no column image, .*; it has id, words"):
        image_folder(pictures)
    with pytest.raises(InputError, match="no column 'tekst'"):
        image_folder(pictures, image_column="id", text_column="tekst")
    (pictures / "captions.csv").write_text("image,text\n00.png,a\n")
    with pytest.raises(InputError, match="side='val' is not one of"):
        image_folder(pictures, side="val")
    with pytest.raises(InputError, match="held_out=3"):
        image_folder(pictures, held_out=3)
    with pytest.raises(InputError, match="on the test side"):
        image_folder(pictures, side="test", held_out=0.0)
    (pictures / "more.jsonl").write_text('{"image": "00.png", "text": "a"}\n')
    with pytest.raises(InputError, match=r"several tables \(captions.csv, more.jsonl\)"):
        image_folder(pictures)
    (pictures / "captions.csv").unlink()
    (pictures / "more.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"more\.jsonl cannot be read"):
        image_folder(pictures)


def test_json_lines_are_packed_as_other_tables(pictures, tmp_path):
    write_table(pictures / "metadata.jsonl", ("file_name", "text"))
    report = pack([str(pictures / "metadata.jsonl")], tmp_path / "out", image_column="file_name", progress=False)
    assert report == Report(1, 40, 0, 0)
