"""Tars and tables become shards: every good record once, every bad one reported, and a kill costs one shard at most."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixcon.data import pack as packing
from mixcon.data.pack import Report, pack
from mixcon.data.pipeline import Batches
from mixcon.data.records import BadRecord, from_bytes, read, to_bytes
from mixcon.data.sampling import uniform
from mixcon.data.sources import Packed, array_record
from mixcon.errors import InputError


def picture(shade, size=(9, 7), kind="PNG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, shade).save(buffer, kind)
    return buffer.getvalue()


def bomb():
    """A small file that claims to be 9,000 x 9,000."""
    data = bytearray(picture((0, 0, 0)))
    data[16:24] = (9_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


GOOD = [
    ("000.png", picture((10, 0, 0))),
    ("000.txt", "ten réd".encode()),
    ("sub/001.jpg", picture((200, 200, 200), kind="JPEG")),
    ("sub/001.json", json.dumps({"caption": "light gray", "width": 9, "tags": ["a"]}).encode()),
    ("002.webp", picture((0, 0, 255), kind="WEBP")),
    ("002.txt", b" blue \n"),
    ("002.cls", b"7"),
]
BAD = [
    ("100.png", b"not an image"),
    ("100.txt", b"broken"),
    ("101.png", picture((1, 1, 1))),
    ("101.txt", b"  \n"),
    ("102.txt", b"alone"),
    ("103.png", bomb()),
    ("103.txt", b"bomb"),
    ("104.png", picture((1, 1, 1))),
    ("104.txt", b"\xff\xfe"),
    ("105.png", picture((1, 1, 1))),
    ("105.json", b"[1"),
    ("106.jpg", picture((1, 1, 1), size=(64, 64), kind="JPEG")[:300]),
    ("106.txt", b"truncated"),
    ("107.png", picture((1, 1, 1))),
]


def test_good_records_come_back_as_they_were(tmp_path):
    write_tar(tmp_path / "a-0.tar", GOOD)
    assert pack([str(tmp_path / "*.tar")], tmp_path / "out", progress=False) == Report(1, 3, 0, 0)
    records = list(read(Packed(tmp_path / "out" / "*.arrayrecord")))
    assert [record["key"] for record in records] == ["000", "sub/001", "002"]
    assert [record["text"] for record in records] == ["ten réd", "light gray", " blue \n"]
    assert records[0]["image"] == GOOD[0][1]
    assert records[1]["meta"] == {"width": 9, "tags": ["a"]}
    assert records[2]["label"] == 7
    assert sorted(os.listdir(tmp_path / "out")) == ["a-0.arrayrecord", "manifest.json"]


def test_bad_records_are_skipped_and_reported(tmp_path):
    write_tar(tmp_path / "mixed.tar", BAD[:5] + GOOD + BAD[5:])
    report = pack([str(tmp_path / "mixed.tar")], tmp_path / "out", progress=False)
    assert report == Report(1, 3, 8, 0)
    assert str(report) == "1 shards, 3 records, 8 skipped (see *.skipped.jsonl)"
    lines = (tmp_path / "out" / "mixed.arrayrecord.skipped.jsonl").read_text().splitlines()
    reasons = {line["key"]: line["reason"] for line in map(json.loads, lines)}
    assert sorted(reasons) == ["100", "101", "102", "103", "104", "105", "106", "107"]
    for key, words in {
        "100": "unreadable image", "101": "empty caption", "102": "no image", "103": "9000 x 9000",
        "104": "unreadable text", "105": "unreadable text", "106": "unreadable image", "107": "no caption",
    }.items():  # fmt: skip
        assert words in reasons[key]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_breaks_off_gives_what_it_has(tmp_path, mode):
    members = []
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        members += [(f"{i:03d}.png", buffer.getvalue()), (f"{i:03d}.txt", b"noise")]
    name = "cut.tar" if mode == "w" else "cut.tar.gz"
    whole = write_tar(tmp_path / name, members, mode).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    report = pack([str(tmp_path / name)], tmp_path / "out", progress=False)
    assert 1 <= report.records < 6
    assert report.skipped == 1
    assert "breaks off" in (tmp_path / "out" / "cut.arrayrecord.skipped.jsonl").read_text()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_of_paths_and_captions(tmp_path, suffix):
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(10):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture((i * 20, 0, 0)))
        rows.append((f"images/{i}.png", f"number {i}, with comma"))
    rows[4] = ("images/none.png", "missing file")
    table = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"file": [r[0] for r in rows], "caption": [r[1] for r in rows]}), table)
    else:
        import csv

        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows([("file", "caption"), *rows])
    arguments = {"image_column": "file", "text_column": "caption", "rows_per_shard": 4, "progress": False}
    assert pack([str(table)], tmp_path / "out", **arguments) == Report(3, 9, 1, 0)
    records = list(read(Packed(tmp_path / "out" / "pairs-*.arrayrecord")))
    assert [record["text"] for record in records] == [text for _, text in rows if text != "missing file"]
    assert [Image.open(io.BytesIO(r["image"])).getpixel((0, 0))[0] for r in records] == [
        i * 20 for i in range(10) if i != 4
    ]
    with pytest.raises(InputError, match=r"no column image, text; it has file, caption"):
        pack([str(table)], tmp_path / "out2", progress=False)


def test_captions_in_several_languages_become_fields_of_a_record(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture((i, i, i)))
    rows = ["image,text_en,text_de,text_fr", "0.png,red,rot,x", "1.png,,gelb,x", "2.png,blue,,x", "3.png,, ,x"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    members = []
    for i in range(2):
        captions = {"text": f"any {i}", "text_de": f"nummer {i}", "text_fr": "kept aside"}
        members += [(f"{i}.png", picture((i, i, i))), (f"{i}.json", json.dumps(captions).encode())]
    write_tar(tmp_path / "u.tar", members)
    both = [str(tmp_path / name) for name in ("t.csv", "u.tar")]
    assert pack(both, tmp_path / "out", languages=["en", "de"], progress=False) == Report(2, 5, 1, 0)
    table, tar = (list(read(array_record(str(tmp_path / "out" / f"{n}*record"), size=(4, 4)))) for n in "tu")
    assert [(r["text"], r["text_en"], r["text_de"]) for r in table] == [
        *(("red", "red", "rot"), ("gelb", "", "gelb"), ("blue", "blue", ""))
    ]
    assert [(r["text"], r["text_en"], r["text_de"]) for r in tar] == [(f"any {i}", "", f"nummer {i}") for i in range(2)]
    assert "text_fr" not in table[0] | tar[0]
    assert pack(both, tmp_path / "out", languages=["en"], progress=False).resumed == 0
    with pytest.raises(InputError, match=r"no column text_cs; it has image, text_en, text_de, text_fr"):
        pack(both[:1], tmp_path / "out2", languages=["cs"], progress=False)


def test_images_inside_a_parquet_table(tmp_path):
    cells = [{"bytes": picture((i, i, i)), "path": None} for i in range(3)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", None]}), tmp_path / "t.parquet")
    assert pack([str(tmp_path / "t.parquet")], tmp_path / "out", progress=False) == Report(1, 2, 1, 0)


def test_finished_shards_are_kept_and_changed_inputs_are_packed_again(tmp_path, monkeypatch):
    for i in range(3):
        write_tar(tmp_path / f"s{i}.tar", GOOD)
    arguments = ([str(tmp_path / "s*.tar")], tmp_path / "out")
    pack(*arguments, progress=False)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.arrayrecord")}
    assert pack(*arguments, progress=False) == Report(3, 9, 0, 3)
    write_tar(tmp_path / "s1.tar", GOOD[:2])
    assert pack(*arguments, progress=False) == Report(3, 7, 0, 2)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.arrayrecord")}
    assert [name for name in before if before[name] != after[name]] == ["s1.arrayrecord"]


def test_a_damaged_manifest_only_means_to_pack_again(tmp_path):
    write_tar(tmp_path / "s.tar", GOOD)
    arguments = ([str(tmp_path / "s.tar")], tmp_path / "out")
    pack(*arguments, progress=False)
    (tmp_path / "out" / "manifest.json").write_text('{"s.arr')
    assert pack(*arguments, progress=False) == Report(1, 3, 0, 0)


def test_a_failure_in_the_middle_leaves_no_half_shard(tmp_path, monkeypatch):
    for i in range(3):
        write_tar(tmp_path / f"s{i}.tar", GOOD)
    calls = []

    def failing(data, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "decode_image", failing)
    with pytest.raises(OSError, match="No space"):
        pack([str(tmp_path / "s*.tar")], tmp_path / "out", progress=False)
    assert [p.name for p in (tmp_path / "out").glob("*.arrayrecord")] == ["s0.arrayrecord"]
    monkeypatch.undo()
    assert pack([str(tmp_path / "s*.tar")], tmp_path / "out", progress=False) == Report(3, 9, 0, 1)


def test_sigkill_then_again_gives_the_same_shards(tmp_path):
    members = [(f"{i:04d}.{e}", d) for i in range(300) for e, d in (("png", picture((i % 250, 0, 0))), ("txt", b"x"))]
    for i in range(6):
        write_tar(tmp_path / f"s{i}.tar", members)
    code = f"""
import time
from mixcon.data import pack as p
decode = p.decode_image
p.decode_image = lambda data, **k: (time.sleep(0.0005), decode(data, **k))
p.pack([{str(tmp_path / "s*.tar")!r}], {str(tmp_path / "killed")!r}, progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "s1.arrayrecord").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    report = pack([str(tmp_path / "s*.tar")], tmp_path / "killed", progress=False)
    assert report.records == 1800
    assert 1 <= report.resumed < 6
    pack([str(tmp_path / "s*.tar")], tmp_path / "whole", progress=False)
    for shard in sorted((tmp_path / "whole").glob("*.arrayrecord")):
        killed = list(read(Packed(tmp_path / "killed" / shard.name)))
        assert killed == list(read(Packed(shard)))
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_packed_pairs_feed_the_pipeline(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    pack([str(tmp_path / "a.tar")], tmp_path / "out", progress=False)
    source = array_record(str(tmp_path / "out" / "*.arrayrecord"), size=(16, 16))
    batch = Batches(source, uniform(3, 3, shuffle=False))[0]
    assert batch["image"].shape == (3, 16, 16, 3)
    assert batch["image"][0, 8, 8].tolist() == [10, 0, 0]
    assert source[2]["text"] == "blue"
    assert source[2]["label"] == 7


def test_a_relative_pattern_is_looked_for_where_data_lives(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", GOOD)
    pack([str(tmp_path / "a.tar")], tmp_path / "data" / "mine", progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path / "data"))
    assert len(Packed("mine/*.arrayrecord")) == 3
    with pytest.raises(InputError, match=r"no ArrayRecord shards at other/\*.*MIXCON_DATA"):
        Packed("other/*.arrayrecord")


def test_records_on_disk_hold_no_code():
    record = {"key": "a", "image": b"\x00\xff", "text": "ü", "meta": {"n": [1, 2.5, None]}}
    assert from_bytes(to_bytes(record)) == record
    for rubbish in (b"", b"\xc1", b"\x93\x01\x02\x03", b"cos\nsystem\n"):
        with pytest.raises(BadRecord):
            from_bytes(rubbish)


def test_mistakes_are_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        pack([str(tmp_path / "*.tar")], tmp_path / "out")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match="neither a tar nor a table"):
        pack([str(tmp_path / "a.zip")], tmp_path / "out")
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "s.tar", tmp_path / "x" / "s.tar"):
        write_tar(path, GOOD)
    with pytest.raises(InputError, match=r"several inputs would make s\.arrayrecord"):
        pack([str(tmp_path / "**/*.tar")], tmp_path / "out")
    write_tar(tmp_path / "bad.tar", BAD)
    with pytest.raises(InputError, match="none of the 8 records"):
        pack([str(tmp_path / "bad.tar")], tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="mixcon data pack"):
        Packed(tmp_path / "nothing-*.arrayrecord")
