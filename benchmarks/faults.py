"""Faults done to real runs, and what was lost: `python -m benchmarks.faults [--kills 50] [--only kill files ...]`.

A small run on emoji is the reference. Then runs of the same config are killed at random moments, their checkpoints'
files truncated, emptied, flipped or deleted one by one, the disk filled, the workdir made read-only or shared, records
damaged, the clock set back. After each fault the same command is started again. Survived: it ends with the bits of
the reference, or refuses in words where there is nothing to go on with. Steps lost: from the last complete checkpoint
before the fault to where the next session began. Silently wrong: a run that ended with other bits and did not say so.

Writes `benchmarks/results/faults.json` and `.md`. Some faults need a file system of their own (root, tmpfs); they are
reported as not tried where that cannot be had.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

RESULTS = pathlib.Path(__file__).parent / "results"
STEPS = 60
TINY = (
    f"--config.steps={STEPS}",
    "--config.batch_size=16",
    "--config.log_every=1",
    "--config.eval_every=-1",
    "--config.checkpoint.every=5",
    "--config.checkpoint.keep=3",
    "--config.ema=0.9",
    "--config.schedule.warmup_steps=2",
    "--config.tokenizer.vocab_size=300",
    "--config.model.embed_dim=16",
    "--config.model.image.width=32",
    "--config.model.image.depth=1",
    "--config.model.image.patch=16",
    "--config.model.text.width=32",
    "--config.model.text.depth=1",
    "--config.model.text.context_length=12",
)
Row = dict[str, Any]


class Bench:
    """Starts runs of one config, and compares what they leave with the reference."""

    def __init__(self, folder: pathlib.Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        }
        self.reference = folder / "reference"
        process = self.start(self.reference)
        if process.wait(900):
            raise SystemExit(f"the reference run failed:\n{self.said(process)}")
        self.bits = arrays(self.reference)

    def start(self, workdir: pathlib.Path, *overrides: str, environment: dict[str, str] | None = None) -> Any:
        """A training process."""
        command = [sys.executable, "-m", "mixcon", "train", "--config", "configs/clip.py:small", "--no-progress"]
        return subprocess.Popen(
            [*command, "--workdir", str(workdir), *TINY, *overrides],
            env={**self.environment, **(environment or {})},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def said(self, process: Any) -> str:
        """What a process wrote, once it has ended."""
        return process.communicate(timeout=900)[1]

    def finish(self, workdir: pathlib.Path) -> tuple[int, str, int]:
        """Start again and wait: exit code, what was said, the step it went on from (0: from the beginning)."""
        process = self.start(workdir)
        said = self.said(process)
        resumed = re.search(r"from the checkpoint of step (\d+)", said)
        return process.returncode, said, int(resumed[1]) if resumed else 0

    def same(self, workdir: pathlib.Path) -> bool:
        """Whether a finished run has the bits of the reference."""
        found = arrays(workdir)
        return found.keys() == self.bits.keys() and all(np.array_equal(found[k], self.bits[k]) for k in found)

    def verdict(self, workdir: pathlib.Path, complete: int) -> Row:
        """Start again after a fault that left `complete` as the last complete step, and judge."""
        code, said, begun = self.finish(workdir)
        right = code == 0 and self.same(workdir)
        return {
            "survived": right,
            "steps_lost": max(complete - begun, 0) if code == 0 else None,
            "silently_wrong": code == 0 and not right,
            "said": [line for line in said.splitlines() if line.startswith(("warning", "mixcon: error"))][:3],
        }


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(workdir / "checkpoints" / str(STEPS) / "state")
    return {k: np.asarray(v) for k, v in ocp.tree.to_flat_dict(state, sep="/").items()}


def steps(workdir: pathlib.Path) -> list[int]:
    """Steps on disk whose digests are written: complete ones."""
    done = {int(p.stem) for p in (workdir / "digests").glob("*.json")} if (workdir / "digests").is_dir() else set()
    there = (workdir / "checkpoints").iterdir() if (workdir / "checkpoints").is_dir() else []
    return sorted(int(p.name) for p in there if p.name.isdigit() and int(p.name) in done)


def metric_lines(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


# --- the faults ------------------------------------------------------------------------------------------------------


def kills(bench: Bench, count: int) -> Iterator[Row]:
    """SIGKILL at random moments of run after run, also before the first step and in the middle of a save."""
    workdir = bench.folder / "killed"
    for number in range(count):
        if steps(workdir)[-1:] == [STEPS]:
            shutil.rmtree(workdir)
        process, seen = bench.start(workdir), metric_lines(workdir)
        if bench.rng.random() < 0.1:
            time.sleep(bench.rng.random() * 8)  # anywhere in the start
        else:
            while process.poll() is None and metric_lines(workdir) <= seen + bench.rng.randrange(STEPS // 6):
                time.sleep(0.002)
            time.sleep(bench.rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        bench.said(process)
        if number + 1 < count and bench.rng.random() < 0.7:  # most are followed by another kill
            yield {"survived": True, "steps_lost": 0, "silently_wrong": False, "said": []}
            continue
        complete = max([*steps(workdir), 0])
        yield bench.verdict(workdir, complete)


def terminations(bench: Bench, count: int) -> Iterator[Row]:
    """SIGTERM at random moments: saves, exits with 0, loses nothing."""
    workdir = bench.folder / "terminated"
    for _ in range(count):
        process = bench.start(workdir)
        goal = bench.rng.randrange(1, STEPS // 2)
        while process.poll() is None and metric_lines(workdir) < goal:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        bench.said(process)
        reached = metric_lines(workdir)
        found = bench.verdict(workdir, reached)
        found["survived"] &= process.returncode == 0
        yield found
        shutil.rmtree(workdir)


HURT: dict[str, Callable[[pathlib.Path, random.Random], None]] = {
    "truncated": lambda path, rng: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, rng: os.truncate(path, 0),
    "flipped": lambda path, rng: flip_bit(path, rng),
    "deleted": lambda path, rng: path.unlink(),
}


def flip_bit(path: pathlib.Path, rng: random.Random) -> None:
    """One bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))


def files(bench: Bench, _: int) -> Iterator[Row]:
    """Each file of the newest checkpoint truncated, emptied, flipped in one bit, deleted: the one before it serves."""
    import jax

    from mixcon import config as configs
    from mixcon.train import loop
    from mixcon.train import mesh as meshes
    from mixcon.train.checkpoint import Checkpoints

    config, mesh = configs.load("configs/clip.py:small", TINY), meshes.make_mesh()
    with jax.set_mesh(mesh):
        experiment = loop.build(config, bench.reference)
        like = loop.with_sharding(*loop.state_layout(experiment, config, mesh))
        before, newest = steps(bench.reference)[-2:]
        good = Checkpoints(bench.reference, read_only=True).restore(like, step=before)
        folder = pathlib.Path("checkpoints") / str(newest)
        names = [p.relative_to(bench.reference) for p in sorted((bench.reference / folder).rglob("*")) if p.is_file()]
        for name in names:
            for kind, hurt in HURT.items():
                if kind in ("truncated", "emptied", "flipped") and not (bench.reference / name).stat().st_size:
                    continue
                workdir = bench.folder / "hurt"
                shutil.copytree(bench.reference, workdir)
                hurt(workdir / name, bench.rng)
                found = Checkpoints(workdir).restore(like)
                right = (
                    found is not None
                    and good is not None
                    and found.step == before
                    and jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found.state, good.state))
                )
                named = found is not None and any(str(newest) in text for text in found.warnings)
                yield {
                    "survived": right and named and (workdir / "quarantine").is_dir(),
                    "steps_lost": newest - (found.step if found else 0) - (newest - before),
                    "silently_wrong": not right and not named,
                    "said": [f"{kind} {name.relative_to(folder)}"],
                }
                shutil.rmtree(workdir)


def mounted(bench: Bench, options: str) -> pathlib.Path | None:
    """A small file system of its own, or None where that cannot be had."""
    place = bench.folder / "mounted"
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)
    return place if done.returncode == 0 else None


def full_disk(bench: Bench, _: int) -> Iterator[Row]:
    """The disk fills while a checkpoint is written: refused in words; with room again the run goes on to its end."""
    place = mounted(bench, "size=6m")
    if place is None:
        return
    try:
        code, said, _step = bench.finish(place / "run")
        refused = code == 2 and "mixcon: error" in said
        complete = max([*steps(place / "run"), 0])
        subprocess.run(["mount", "-o", "remount,size=512m", str(place)], check=True)
        found = bench.verdict(place / "run", complete)
        yield found | {"survived": found["survived"] and refused}
    finally:
        subprocess.run(["umount", str(place)], check=False)


def read_only(bench: Bench, _: int) -> Iterator[Row]:
    """A workdir that cannot be written: refused in words; writable again, the run goes on."""
    place = mounted(bench, "size=512m")
    if place is None:
        return
    try:
        workdir = place / "run"
        process = bench.start(workdir)
        while process.poll() is None and len(steps(workdir)) < 2:
            time.sleep(0.01)
        process.kill()
        bench.said(process)
        complete = max(steps(workdir))
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        code, said, _step = bench.finish(workdir)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        found = bench.verdict(workdir, complete)
        yield found | {"survived": found["survived"] and code == 2 and "mixcon: error" in said}
    finally:
        subprocess.run(["umount", str(place)], check=False)


def shared_workdir(bench: Bench, _: int) -> Iterator[Row]:
    """Two runs pointed at one workdir: the second is refused, the first is not disturbed."""
    workdir = bench.folder / "shared"
    first = bench.start(workdir)
    while first.poll() is None and metric_lines(workdir) < 2:
        time.sleep(0.01)
    second = bench.start(workdir)
    said = bench.said(second)
    bench.said(first)
    right = first.returncode == 0 and bench.same(workdir)
    yield {
        "survived": right and second.returncode == 2,
        "steps_lost": 0,
        "silently_wrong": not right or second.returncode == 0,
        "said": said.splitlines()[-1:],
    }


def clock(bench: Bench, _: int) -> Iterator[Row]:
    """The clock jumps back by an hour, again and again."""
    patch = bench.folder / "clock"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import time, itertools\n"
        "real, calls = time.time, itertools.count()\n"
        "time.time = lambda: real() - 3600 * (next(calls) // 50)\n"
    )
    workdir = bench.folder / "clocked"
    process = bench.start(workdir, environment={"PYTHONPATH": f"{patch}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    said = bench.said(process)
    right = process.returncode == 0 and bench.same(workdir)
    yield {
        "survived": right,
        "steps_lost": 0,
        "silently_wrong": process.returncode == 0 and not right,
        "said": said.splitlines()[-1:] if not right else [],
    }


def records(bench: Bench, _: int) -> Iterator[Row]:
    """Shards of the user's own: one disappears, one is cut, some records are damaged. Refused or counted, in words."""
    from PIL import Image

    from mixcon.data import Emoji
    from mixcon.data.pack import pack

    source, folder = Emoji("composition", "train"), bench.folder / "packed"
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text"])
        for index in range(128):
            Image.fromarray(source[index]["image"]).save(folder / f"{index}.png")
            table.writerow([f"{index}.png", source[index]["text"]])
    pack([str(folder / "pairs.csv")], folder / "shards", progress=False)
    (shard,) = (folder / "shards").glob("*.arrayrecord")
    whole = shard.read_bytes()
    piece = {"name": "mixcon.data.sources.array_record", "pattern": str(folder / "shards" / "*.arrayrecord"), "size": [64, 64]}  # fmt: skip  # noqa: E501
    given = (f"--config.data.train={piece}", "--config.data.max_bad_share=0.01", f"--config.steps={STEPS // 4}")
    damaged = {
        "gone": lambda: shard.unlink(),
        "cut": lambda: shard.write_bytes(whole[: len(whole) // 2]),
        "flipped": lambda: [flip_bit(shard, bench.rng) for _ in range(64)],
    }
    for kind, hurt in damaged.items():
        shard.write_bytes(whole)
        hurt()
        process = bench.start(bench.folder / f"records-{kind}", *given)
        said = bench.said(process)
        counted = process.returncode == 0 and "Traceback" not in said
        refused = process.returncode == 2 and "mixcon: error" in said
        yield {
            "survived": counted or refused,
            "steps_lost": 0,
            "silently_wrong": kind != "flipped" and counted,
            "said": [f"{kind}: {(said.splitlines() or ['ran'])[-1][:200]}"],
        }


FAULTS: dict[str, tuple[str, Callable[[Bench, int], Iterator[Row]]]] = {
    "kill": ("SIGKILL at a random moment", kills),
    "term": ("SIGTERM at a random moment", terminations),
    "files": ("a file of the newest checkpoint damaged", files),
    "full": ("disk full", full_disk),
    "read_only": ("workdir read-only", read_only),
    "shared": ("two runs in one workdir", shared_workdir),
    "clock": ("clock going backwards", clock),
    "records": ("data shard gone, cut, or damaged", records),
}


def table(found: dict[str, list[Row]]) -> str:
    """One line for each kind of fault."""
    lines = ["| fault | tried | survived | steps lost | silently wrong |", "|---|---|---|---|---|"]
    for key, rows in found.items():
        lost = [row["steps_lost"] for row in rows if row["steps_lost"] is not None]
        counts = (len(rows) or "not tried", sum(row["survived"] for row in rows), max(lost, default=0))
        wrong = sum(row["silently_wrong"] for row in rows)
        lines.append(f"| {FAULTS[key][0]} | {counts[0]} | {counts[1]} | {counts[2]} | {wrong} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do every fault, write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    found: dict[str, list[Row]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="mixcon-faults-") as folder:
        bench = Bench(pathlib.Path(folder), random.Random(arguments.seed))
        for key in arguments.only:
            rows: list[Row] = []
            count = {"kill": arguments.kills, "term": arguments.terms}.get(key, 0)
            for row in tqdm(FAULTS[key][1](bench, count), desc=key, unit="fault"):
                rows.append(row)
                if not row["survived"]:
                    print(f"{key}: {row}", file=sys.stderr)
            found[key] = rows
            found = {each: found[each] for each in FAULTS if each in found}
            arguments.out.parent.mkdir(exist_ok=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(table(found))
    print(table(found))
    if any(row["silently_wrong"] or not row["survived"] for rows in found.values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
