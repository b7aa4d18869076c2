"""Shards of the user's own that disappear, are cut or damaged: refused in words, or counted and left out."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fault_bench import (
    STEPS,
    Bench,
    Row,
    arrays,
    complete,
    lines,
    measured,
    resumed_from,
    same,
    spoken,
)
from benchmarks.fault_kinds import flip_bit
from mixcon.data import Emoji
from mixcon.data.pack import pack
from mixcon.data.pipeline import Batches
from mixcon.data.sampling import one_pass
from mixcon.data.sources import ImageParquet, array_record
from mixcon.errors import InputError

COUNT = 128  # records of the small set


def records(bench: Bench) -> Iterator[Row]:
    """Each kind of shard, hurt in each way."""
    yield from shards_of_a_run(bench)
    yield from parquet_files(bench)
    yield from tars_to_pack(bench)


def pictures() -> list[tuple[bytes, str]]:
    """PNG bytes and names of some emoji."""
    source, found = Emoji("composition", "train"), []
    for index in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(source[index]["image"]).save(file, "PNG")
        found.append((file.getvalue(), source[index]["text"]))
    return found


def shards_of_a_run(bench: Bench) -> Iterator[Row]:
    """ArrayRecord shards that a run trains on."""
    folder = bench.folder / "packed"
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text"])
        for index, (image, text) in enumerate(pictures()):
            (folder / f"{index}.png").write_bytes(image)
            table.writerow([f"{index}.png", text])
    pack([str(folder / "pairs.csv")], folder / "shards", progress=False)
    (shard,) = (folder / "shards").glob("*.arrayrecord")
    whole = shard.read_bytes()
    piece = {"name": "mixcon.data.sources.array_record", "pattern": str(shard), "size": [64, 64]}
    given = (f"--config.data.train={piece}", "--config.data.max_bad_share=0.05", "--config.keyword_share=0.0")
    good = bench.folder / "records-good"
    code, said = bench.start(good, *given).end()
    if code:
        raise SystemExit(f"the run on packed records failed:\n{said}")
    hurts: dict[str, Callable[[], Any]] = {
        "gone": shard.unlink,
        "cut": lambda: shard.write_bytes(whole[: len(whole) // 2]),
        "emptied": lambda: shard.write_bytes(b""),
        "damaged in one record": lambda: hurt_one(shard, len(whole) // 3),
        "damaged in 64 places": lambda: [flip_bit(shard, bench.rng) for _ in range(64)],
    }
    for kind, hurt in hurts.items():
        shard.write_bytes(whole)
        hurt()
        workdir = bench.folder / f"records-{kind.replace(' ', '-')}"
        code, said = bench.start(workdir, *given).end()
        yield outcome(f"shard of ArrayRecord {kind}", code, said, workdir, good)
    shard.write_bytes(whole)
    workdir = bench.folder / "records-later"
    process = bench.start(workdir, *given)
    process.wait_for(lambda: lines(workdir) >= STEPS // 2)
    process.send(signal.SIGKILL)
    process.end()
    newest = complete(workdir)
    redone = max(lines(workdir) - newest, 0)
    shard.unlink()
    code, said = bench.start(workdir, *given).end()
    refused = code == 2 and "mixcon: error" in said
    shard.write_bytes(whole)
    code, again = bench.start(workdir, *given).end()
    right = code == 0 and same(arrays(workdir, STEPS), arrays(good, STEPS)) and measured(workdir) == measured(good)
    yield {
        "fault": "shard of ArrayRecord gone when a killed run goes on, then back",
        "survived": refused and right,
        "steps_lost": max(newest - (resumed_from(again) or 0), 0),
        "steps_redone": redone,
        "silently_wrong": code == 0 and not right,
        "said": spoken(said) + spoken(again),
    }


def hurt_one(path: pathlib.Path, at: int) -> None:
    """Some bytes in a row."""
    content = bytearray(path.read_bytes())
    content[at : at + 16] = bytes(16)
    path.write_bytes(bytes(content))


def outcome(fault: str, code: int, said: str, workdir: pathlib.Path, good: pathlib.Path) -> Row:
    """Refused in words; or ended, having counted what it left out; or ended as if nothing had happened, rightly so."""
    refused = code == 2 and "mixcon: error" in said and "Traceback" not in said
    counted = (
        code == 0 and json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["train/skipped_records"]
    )
    unhurt = code == 0 and same(arrays(workdir, STEPS), arrays(good, STEPS))
    how = f"{counted:.0f} times a record was left out and counted" if counted else "the same bits" if unhurt else ""
    return {
        "fault": fault,
        "survived": bool(refused or counted or unhurt),
        "steps_lost": 0,
        "steps_redone": None,
        "silently_wrong": bool(code == 0 and not counted and not unhurt),
        "said": [how] if how else spoken(said) or [said[-300:]],
    }


def read_all(source: Any, expected: list[np.ndarray]) -> tuple[bool, str]:
    """Whether every record of a source is as expected or was refused or counted; and in what words."""
    batches = Batches(
        source, one_pass(len(source), 16), num_steps=-(-len(source) // 16), with_mask=True, max_bad_share=0.9
    )
    fine, counted = True, 0
    for batch in batches:
        counted += int(np.sum(batch["skipped"]))
        for row in np.flatnonzero(batch["mask"]):
            fine &= bool(np.array_equal(batch["image"][row], expected[batch["index"][row]]))
    return fine and (counted > 0 or len(source) == len(expected)), f"{counted} records left out and counted"


def parquet_files(bench: Bench) -> Iterator[Row]:
    """Parquet files of pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = bench.folder / "pictures.parquet"
    found = pictures()
    cells = [{"bytes": image, "path": ""} for image, _ in found]
    pq.write_table(pa.table({"img": cells, "label": list(range(COUNT))}), path, write_page_checksum=True)
    whole = path.read_bytes()
    expected = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image, _ in found]
    yield from read_hurt(bench, "parquet file", path, whole, lambda: read_all(ImageParquet(path), expected))


def tars_to_pack(bench: Bench) -> Iterator[Row]:
    """Tars on their way into shards."""
    path, out = bench.folder / "pairs.tar", bench.folder / "from-tar"
    found = pictures()
    with tarfile.open(path, "w") as tar:
        for index, (image, text) in enumerate(found):
            for suffix, content in (("png", image), ("txt", text.encode())):
                entry = tarfile.TarInfo(f"{index:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    whole = path.read_bytes()
    images = {text: np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image, text in found}

    def read() -> tuple[bool, str]:
        shutil.rmtree(out, ignore_errors=True)
        report = pack([str(path)], out, progress=False)
        source = array_record(str(out / "*.arrayrecord"), size=(64, 64))
        there = [source[i] for i in range(len(source))]
        # A tar has no checksum of what a caption says: a bit flipped in a text goes through, and is another text.
        fine = all(np.array_equal(record["image"], images.get(record["text"], record["image"])) for record in there)
        return fine and (report.skipped > 0 or report.records == COUNT), str(report)

    yield from read_hurt(bench, "tar on its way into shards", path, whole, read)


def read_hurt(
    bench: Bench, what: str, path: pathlib.Path, whole: bytes, read: Callable[[], tuple[bool, str]]
) -> Iterator[Row]:
    """A file hurt in each way, and read."""
    hurts: dict[str, Callable[[], Any]] = {
        "gone": path.unlink,
        "cut": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "emptied": lambda: path.write_bytes(b""),
        **{f"flipped in one bit ({i})": lambda: flip_bit(path, bench.rng) for i in range(1, 9)},
    }
    for kind, hurt in hurts.items():
        path.write_bytes(whole)
        hurt()
        try:
            right, said = read()
            survived = right
        except InputError as error:
            right, survived, said = True, True, str(error)
        except Exception as error:  # neither refused in words nor counted
            right, survived, said = True, False, f"{type(error).__name__}: {error}"
        yield {
            "fault": f"{what} {kind.partition(' (')[0]}",
            "survived": survived,
            "steps_lost": 0,
            "steps_redone": None,
            "silently_wrong": not right,
            "said": [said[:200]],
        }
