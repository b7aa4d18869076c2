"""Damaged and hostile data files: counted bad records or one sentence, in bounded time and memory; nothing is run."""

import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
import time
import tracemalloc

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import anything, mutated
from PIL import Image

from mixcon.data import pack, records, sources
from mixcon.data.pipeline import Batches, collate
from mixcon.data.sampling import uniform
from mixcon.errors import InputError

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(value=7):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def shard(path, *payloads):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    return path


WEBDATASET = tar(
    {f"a/{i}.{ext}": data for i in range(2) for ext, data in
     (("png", png(i)), ("json", json.dumps({"text": "é", "n": {"m": [1]}}).encode()), ("cls", b"3"))}
)  # fmt: skip
INPUTS = {
    "x.tar": WEBDATASET[: 9 * 1024],
    "x.tar.gz": gzip.compress(WEBDATASET),
    "x.csv": b'image,text\ni.png,hello\n"i.png","a ""quoted"" one"\ni.png,\xc3\xa9t\xc3\xa9\n',
    "x.parquet": parquet(image=[png(i) for i in range(3)], text=["a", "b", "c"]),
}


def packed_or_refused(folder, name, data):
    (folder / "i.png").write_bytes(png())
    (folder / name).write_bytes(data)
    start, refusal = time.monotonic(), ""
    try:
        report = pack.pack([str(folder / name)], folder / "out", progress=False)
        assert report.records > 0
    except InputError as error:
        refusal = str(error)
    assert len(refusal) < 2000
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", INPUTS)
@few
@given(data=st.data())
def test_packing_damaged_files(tmp_path, name, data):
    packed_or_refused(tmp_path, name, data.draw(mutated([INPUTS[name]])))


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
@many
@given(data=st.data())
def test_packing_many_damaged_files(tmp_path, name, data):
    packed_or_refused(tmp_path, name, data.draw(mutated([INPUTS[name]], most=20)))


def every_record(open_source):
    """Read what can be read; all that a source may say is that it cannot be opened, and what its file is."""
    source, refusal = [], "x."
    try:
        source = open_source()
    except InputError as error:
        refusal = str(error)
    assert "x." in refusal, "it names the file"
    for index in range(min(len(source), 20)):
        with contextlib.suppress(records.BadRecord):
            assert source[index]["image"].dtype == np.uint8


IMAGES = parquet(img=[{"bytes": png(i), "path": "x"} for i in range(3)], label=[0, 1, 2])


@few
@given(data=mutated([IMAGES]))
def test_reading_damaged_parquet(tmp_path, data):
    (tmp_path / "x.parquet").write_bytes(data)
    every_record(lambda: sources.ImageParquet(tmp_path / "x.parquet"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    payloads = [records.to_bytes({"image": png(i), "text": "hello", "label": i}) for i in range(3)]
    return shard(tmp_path_factory.mktemp("shard") / "x.arrayrecord", *payloads).read_bytes()


def test_reading_damaged_shards(tmp_path, pairs):
    written = [i for i, byte in enumerate(pairs) if byte]  # most of a small shard is padding

    @few
    @given(st.lists(st.tuples(st.sampled_from(written), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
    def check(changes, cut):
        data = bytearray(pairs)
        for place, byte in changes:
            data[place] = byte
        if cut:
            del data[changes[0][0] :]
        (tmp_path / "x.arrayrecord").write_bytes(data)
        every_record(lambda: sources.array_record(str(tmp_path / "x.arrayrecord"), size=(4, 4)))

    check()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), mutated([records.to_bytes({"image": png(), "text": "a", "label": 1})]),
                 st.dictionaries(st.text(max_size=4) | st.just("image"), anything, max_size=3).map(
                     lambda value: msgpack.packb(value, default=str) if fits(value) else b"")))  # fmt: skip
def test_damaged_records(data):
    with contextlib.suppress(records.BadRecord):
        record = records.from_bytes(data)
        assert isinstance(record, dict)
        records.image_text(4, 4)(record)


def fits(value):
    try:
        msgpack.packb(value)
    except (ValueError, OverflowError):
        return False
    return True


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ({"x": 1}, {"y": 1}, "differ in their fields"),
        ({"x": 1}, {"x": "a"}, "texts beside numbers"),
        ({"x": [1]}, {"x": [1, 2]}, "different shapes"),
        ({"x": 1}, {"x": 2**40}, "32 bits cannot hold"),
        ({"x": 2**63}, {"x": 2**64 - 1}, "32 bits cannot hold"),
    ],
)
def test_records_that_do_not_go_together(left, right, words):
    with pytest.raises(InputError, match=words):
        collate([left, right])


class Exploit:
    """What a pickle can do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """A pickle, and what says whether anybody opened it."""
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(Exploit(sprung))
    yield pickled
    assert not sprung.exists(), "a pickle was opened"


def test_a_shard_of_pickles_is_refused(tmp_path, trap):
    path = shard(tmp_path / "x.arrayrecord", trap, trap)
    source = sources.array_record(str(path), size=(4, 4))
    with pytest.raises(records.BadRecord, match="not a packed record"):
        source[0]
    with pytest.raises(InputError, match="none of the 2 records can be used"):
        Batches(source, uniform(2, 2))[0]


def test_pickles_in_a_tar_are_not_even_read(tmp_path, trap):
    (tmp_path / "x.tar").write_bytes(tar({"a.png": png(), "a.pyd": trap, "a.pkl": trap, "a.txt": b"a"}))
    assert pack.pack([str(tmp_path / "x.tar")], tmp_path / "out", progress=False).records == 1
    (record,) = sources.Packed(str(tmp_path / "out" / "*.arrayrecord"))
    assert set(record) == {"key", "image", "text"}
    (tmp_path / "y.tar").write_bytes(trap)
    with pytest.raises(InputError, match="none of the 1 records"):
        pack.pack([str(tmp_path / "y.tar")], tmp_path / "out2", progress=False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"text": "a", "n": ' + b"9" * 30 + b"}", "cannot be stored"),
        (b'{"text": "\\ud800"}', "cannot be stored"),
        (b'{"text": "a", "n": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "unreadable text or metadata"),
        (b"[1, 2]", "unreadable text or metadata"),
        (b'{"text": 3}', "no caption"),
    ],
    ids=["huge number", "lone surrogate", "nested deeply", "list", "no text"],
)
def test_metadata_that_cannot_be_stored_is_skipped_and_counted(tmp_path, value, reason):
    members = {"a.png": png(), "a.json": value, "b.png": png(), "b.txt": b"good"}
    (tmp_path / "x.tar").write_bytes(tar(members))
    report = pack.pack([str(tmp_path / "x.tar")], tmp_path / "out", progress=False)
    assert (report.records, report.skipped) == (1, 1)
    assert reason in (tmp_path / "out" / "x.arrayrecord.skipped.jsonl").read_text()


def header_bomb():
    """A compressed tar whose extended header is 256 MB of zeros: 300 kB on disk."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 256 << 20
    file = io.BytesIO()
    with gzip.open(file, "wb", compresslevel=1) as out:
        out.write(info.tobuf())
        for _ in range(16):
            out.write(bytes(16 << 20))
    return file.getvalue()


def record_bomb():
    """One record of many files, each of them below the limit."""
    return gzip.compress(tar({f"a.{kind}": bytes(40 << 20) for kind in ("png", "jpg", "webp", "txt")}), 1)


@pytest.mark.parametrize("bomb", [header_bomb, record_bomb])
def test_small_tars_do_not_fill_the_memory(tmp_path, bomb):
    (tmp_path / "x.tar.gz").write_bytes(bomb())
    assert (tmp_path / "x.tar.gz").stat().st_size < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="none of the 1 records"):
            pack.pack([str(tmp_path / "x.tar.gz")], tmp_path / "out", progress=False)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dictionary", [False, True])
def test_small_tables_do_not_fill_the_memory(tmp_path, dictionary):
    file, zeros = tmp_path / "x.parquet", bytes(65 << 20)
    bomb = pa.table({"image": [zeros] * 2, "label": [0, 1], "text": ["a", "b"]})
    pq.write_table(bomb, file, compression="zstd", use_dictionary=dictionary)
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="stand for"):
        pack.pack([str(file)], tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="stand for"):
        sources.ImageParquet(file, image="image")


def test_a_table_cannot_name_what_is_no_file(tmp_path):
    names = ["/dev/zero", "i.png", "\0", "x" * 5000, ".", "/proc/self/mem"]
    (tmp_path / "i.png").write_bytes(png())
    (tmp_path / "x.parquet").write_bytes(parquet(image=names, text=["a"] * len(names)))
    report = pack.pack([str(tmp_path / "x.parquet")], tmp_path / "out", progress=False)
    assert (report.records, report.skipped) == (1, 5)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"img": [png()], "label": [None]}, "empty cells"),
        ({"img": [png()], "label": [2**40]}, "cannot be read"),
        ({"img": [png()], "label": [0.5]}, "cannot be read"),
        ({"img": [png()], "label": ["cat"]}, "cannot be read"),
        ({"img": [png()]}, "has no column label"),
    ],
)
def test_labels_that_are_none(tmp_path, columns, words):
    if columns.get("label") == [None]:
        columns["label"] = pa.array([None], pa.int64())
    (tmp_path / "x.parquet").write_bytes(parquet(**columns))
    with pytest.raises(InputError, match=words):
        sources.ImageParquet(tmp_path / "x.parquet")
