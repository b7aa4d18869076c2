"""Image–text folders as people have them -> ArrayRecord shards, once: `mixcon data pack`.

One webdataset tar becomes one shard of the same name; a table of image paths and captions becomes shards of a fixed
number of rows. So a shard depends on its input alone, and a run that was killed redoes at most the shard it was at.
Beside the shards lie `manifest.json` (what is finished, from what) and, for each shard that lost records,
`<shard>.skipped.jsonl` (which, and why).
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mixcon.data.cleaning import RULES, Census, Cleaner, Rules, digest
from mixcon.data.records import MAX_PIXELS, BadRecord, Record, decode_image, to_bytes
from mixcon.data.sources import Packed
from mixcon.data.tables import TABLES, caption_field, column_names, count_rows, read_pair, read_rows, with_captions
from mixcon.data.tars import Raw, read_tar
from mixcon.errors import InputError

_SUFFIX = ".arrayrecord"


class Report(NamedTuple):
    """What a call of `pack` did: shards and records that are there now, records skipped, shards found finished.

    `cleaned` says how many of the skipped ones broke which rule of cleaning first.
    """

    shards: int
    records: int
    skipped: int
    resumed: int
    cleaned: Mapping[str, int] = MappingProxyType({})

    def __str__(self) -> str:
        lost = f", {self.skipped:,} skipped (see *.skipped.jsonl)" if self.skipped else ""
        kept = f"; {self.resumed} shards were there already" if self.resumed else ""
        by_rule = "".join(f"\n  {rule:<16}{count:>12,}" for rule, count in self.cleaned.items())
        return f"{self.shards} shards, {self.records:,} records{lost}{kept}{by_rule}"


class _Job(NamedTuple):
    """One shard to be: its name, what it is made from, its share of the progress bar, its records."""

    name: str
    made_from: dict[str, Any]
    weight: int
    read: Callable[[], Iterator[Raw]]


def pack(
    inputs: Sequence[str],
    out: str | Path,
    *,
    image_column: str = "image",
    text_column: str = "text",
    languages: Sequence[str] = (),
    rows_per_shard: int = 8192,
    max_pixels: int = MAX_PIXELS,
    clean: Rules | None = None,
    held_out: Sequence[str] = (),
    progress: bool = True,
) -> Report:
    """Converts tars or tables to ArrayRecord shards in `out`; call it again to go on after an interruption.

    In a tar, members that share a name up to the first dot are one record: an image, and `.txt`, or `.json` with "text"
    or "caption" (its other fields are kept as `meta`); `.cls` gives an integer `label`. In a table, image paths are
    relative to the table's folder. Every image is decoded once here, so that training meets no surprise.

    Args:
        inputs: path patterns of `.tar`, `.tar.gz`, `.tgz`, `.parquet`, `.csv`, `.tsv` or `.jsonl` files.
        out: folder of the shards.
        image_column, text_column: names of a table's columns.
        languages: ("en", "de"): every record has `text_en` and `text_de`, too, from columns or JSON fields of these
            names, empty where there is none; `text` may then be left out and is the first of them.
        rows_per_shard: rows of a table in one shard.
        max_pixels: larger images are skipped, whatever their size on disk.
        clean: rules that a pair must keep, see `cleaning`; everything is read once before, to count. None keeps all.
        held_out: path patterns of packed shards that evaluations use: with `clean`, their images are left out.
        progress: show a bar.

    Returns:
        A `Report`.

    Raises:
        InputError: nothing fits the patterns, two inputs of one name, a missing column, or no usable record at all.

    Example:
        >>> pack(["shards/*.tar"], "packed")  # doctest: +SKIP
        Report(shards=12, records=119873, skipped=127, resumed=0)
    """
    from tqdm import tqdm

    out = Path(out)
    jobs = _jobs(inputs, image_column, text_column, tuple(languages), rows_per_shard)
    out.mkdir(parents=True, exist_ok=True)
    manifest_path = out / "manifest.json"
    done = _finished(manifest_path)
    counted = _cleaning(jobs, clean, held_out)
    cleaner: Cleaner | None = None
    resumed = 0
    with tqdm(total=sum(job.weight for job in jobs), desc="pack", unit_scale=True, disable=not progress) as bar:
        for number, job in enumerate(jobs, 1):
            made_from = job.made_from | {"max_pixels": max_pixels} | counted
            entry = done.get(job.name)
            if entry is not None and entry["from"] == made_from and (out / job.name).is_file():
                resumed += 1
                bar.update(job.weight)
                continue
            if clean is not None and cleaner is None:
                cleaner = _cleaner(jobs, clean, held_out, progress)
            records, skipped, broken = _write(job, out, max_pixels, cleaner, bar)
            done[job.name] = {"from": made_from, "records": records, "skipped": skipped}
            if clean is not None:
                done[job.name]["cleaned"] = broken
            _replace(manifest_path, json.dumps(done, indent=1, sort_keys=True))
            bar.set_postfix_str(f"shard {number}/{len(jobs)}, skipped {sum(e['skipped'] for e in done.values())}")
    entries = [done[job.name] for job in jobs]
    report = Report(len(jobs), sum(e["records"] for e in entries), sum(e["skipped"] for e in entries), resumed)
    if clean is not None:
        cleaned = {rule: sum(e["cleaned"].get(rule, 0) for e in entries) for rule in RULES}
        report = report._replace(cleaned=cleaned)
        _replace(out / "cleaning.json", json.dumps({"rules": dataclasses.asdict(clean), "left_out": cleaned}, indent=1))
    if not report.records:
        raise InputError(f"none of the {report.skipped} records could be used; {out}/*.skipped.jsonl says why.")
    return report


def _finished(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or cut short by a power failure: pack again
        return {}


def _cleaning(jobs: Sequence[_Job], clean: Rules | None, held_out: Sequence[str]) -> dict[str, Any]:
    """What a cleaned shard is made from beside its own input: the rules, and all that was counted."""
    if clean is None:
        if held_out:
            raise InputError("pack: held_out asks for rules of cleaning: --clean, or clean=Rules().")
        return {}
    known = [[str(path), path.stat().st_size] for path in _paths(held_out)] if held_out else []
    everything = json.dumps([[job.made_from for job in jobs], known], sort_keys=True)
    return {"cleaning": {**dataclasses.asdict(clean), "of": digest(everything.encode())}}


def _cleaner(jobs: Sequence[_Job], rules: Rules, held_out: Sequence[str], progress: bool) -> Cleaner:
    """Reads everything once, without decoding images."""
    from tqdm import tqdm

    census = Census()
    for job in tqdm(jobs, desc="count", disable=not progress):
        for _, read, _ in job.read():
            try:
                record = read()
                census.add(record["image"], record["text"])
            except BadRecord:
                continue
    pictures: list[bytes] = []
    for path in _paths(held_out) if held_out else []:
        shard = Packed(path)
        pictures += [shard[i]["image"] for i in range(len(shard))]
    return Cleaner(census, rules, pictures)


def _write(job: _Job, out: Path, max_pixels: int, cleaner: Cleaner | None, bar: Any) -> tuple[int, int, dict[str, int]]:
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = out / f".{job.name}.partial"  # neither this nor the report gets its name before it is whole
    records, skipped, position = 0, [], 0
    broken: Counter[str] = Counter()
    writer = ArrayRecordWriter(str(partial), "group_size:1")  # one record a group: random access reads nothing else
    try:
        for key, read, reached in job.read():
            try:
                record = read()
                decoded = decode_image(record["image"], max_pixels=max_pixels)
                if not record["text"].strip():
                    raise BadRecord("empty caption")
                if cleaner is not None and (rule := cleaner.broken(record["image"], decoded, record["text"])):
                    broken[rule] += 1
                    raise BadRecord(f"cleaning: {rule}")
                writer.write(_packed({"key": key} | record))
                records += 1
            except BadRecord as reason:
                skipped.append({"key": key, "reason": str(reason)})
            bar.update(reached - position)
            position = reached
        bar.update(job.weight - position)
    finally:
        writer.close()
    report = out / f"{job.name}.skipped.jsonl"
    report.unlink(missing_ok=True)
    if skipped:
        _replace(report, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped))
    os.replace(partial, out / job.name)
    return records, len(skipped), dict(broken)


def _packed(record: Record) -> bytes:
    """`to_bytes` of what comes from outside: numbers beyond 64 bits, lone surrogates and deep nesting are refused."""
    try:
        return to_bytes(record)
    except (ValueError, OverflowError, RecursionError) as reason:
        raise BadRecord(f"a value that cannot be stored ({reason})") from None


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _paths(patterns: Sequence[str]) -> list[Path]:
    paths = {Path(path) for pattern in patterns for path in glob.glob(os.path.expanduser(pattern), recursive=True)}
    if not paths:
        raise InputError(f"pack: there is no file at {' '.join(patterns) or '(no path given)'}.")
    return sorted(paths)


def _jobs(
    inputs: Sequence[str], image_column: str, text_column: str, languages: tuple[str, ...], rows_per_shard: int
) -> list[_Job]:
    paths = _paths(inputs)
    jobs: list[_Job] = []
    for path in paths:
        if path.suffix in TABLES:
            jobs += _table_jobs(path, image_column, text_column, languages, rows_per_shard)
        elif path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz"):
            jobs.append(_tar_job(path, languages))
        else:
            raise InputError(f"pack: {path} is neither a tar nor a table ({', '.join(TABLES)}).")
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"pack: several inputs would make {', '.join(twice)}; rename them or pack them apart.")
    return jobs


def _made_from(path: Path, **more: Any) -> dict[str, Any]:
    stat = path.stat()
    return {"file": path.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, **more}


def _tar_job(path: Path, languages: tuple[str, ...]) -> _Job:
    more = {"languages": list(languages)} if languages else {}
    name = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    return _Job(name + _SUFFIX, _made_from(path, **more), path.stat().st_size, lambda: read_tar(path, languages))


def _table_jobs(
    path: Path, image_column: str, text_column: str, languages: tuple[str, ...], rows_per_shard: int
) -> list[_Job]:
    present, spoken = column_names(path), tuple(map(caption_field, languages))
    text = (text_column,) if text_column in present or not spoken else ()
    columns = tuple(dict.fromkeys((image_column, *text, *spoken)))
    if missing := [column for column in columns if column not in present]:
        raise InputError(f"pack: {path} has no column {', '.join(missing)}; it has {', '.join(present)}. Name them.")
    total = count_rows(path, columns)

    def read(start: int, stop: int) -> Iterator[Raw]:
        for number, row in enumerate(itertools.islice(read_rows(path, columns), start, stop), 1):
            cells = dict(zip(columns, row, strict=True))
            yield str(row[0]), functools.partial(record, cells), number

    def record(cells: Mapping[str, Any]) -> Record:
        captions = with_captions(cells.get(text_column), {name: cells[name] for name in spoken})
        return read_pair(path.parent, cells[image_column], captions["text"]) | captions

    def job(start: int) -> _Job:
        stop = min(start + rows_per_shard, total)
        name = f"{path.stem}-{start // rows_per_shard:05d}{_SUFFIX}"
        made_from = _made_from(path, columns=list(columns), rows=[start, stop])
        return _Job(name, made_from, stop - start, lambda: read(start, stop))

    return [job(start) for start in range(0, total, rows_per_shard)]
