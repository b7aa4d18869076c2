"""What is done to a run, one generator for each kind of fault; each row says what came of one fault."""

from __future__ import annotations

import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.fault_bench import EVERY, KEEP_ALL, STEPS, TINY, Bench, Row, complete, lines, resumed_from, spoken
from mixcon import config as configs
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints

TRAINING, STARTING, SAVING = "SIGKILL while training", "SIGKILL in the start", "SIGKILL in the middle of a save"


def kills(bench: Bench, training: int, starting: int, saving: int) -> Iterator[Row]:
    """SIGKILL of session after session of one run, until it is through; then of the next run.

    After each kill the newest step on disk must be vouched for by its digests and have the reference's bits, and the
    next session that says where it stands must have gone on from it. Each run that comes to its end must have the
    reference's bits and metrics.
    """
    left = {TRAINING: training, STARTING: starting, SAVING: saving}
    workdir, waiting = bench.folder / "killed", list[Row]()  # kills that no later session has told of yet
    while sum(left.values()) or waiting:
        wanted = bench.rng.choices(list(left), list(left.values()))[0] if sum(left.values()) else ""
        stale, old_log = unfinished(workdir), log_of(workdir)
        newest = complete(workdir)
        process = bench.start(workdir)
        moment = {
            STARTING: after(bench.rng.random() * 6),
            SAVING: lambda stale=stale: bool(unfinished(workdir) - stale),
            TRAINING: reached(workdir, newest + 1 + bench.rng.randrange(STEPS // 3), old_log),
        }
        if wanted:
            process.wait_for(moment[wanted])
            time.sleep(bench.rng.random() * (0.02 if wanted == SAVING else 0.1))
            process.send(signal.SIGKILL)
        code, said = process.end()
        begun = resumed_from(said)
        if begun is not None or code == 0 or (newest == 0 and log_of(workdir) != old_log):
            for row in waiting:
                yield row | {"steps_lost": max(newest - (begun or 0), 0)}
            waiting = []
        if code not in (0, -signal.SIGKILL) or "Traceback" in said:
            yield failed(wanted, said, silently=False)
        if code == 0:
            yield from [] if bench.same_run(workdir) else [failed(wanted, said, silently=True)]
            shutil.rmtree(workdir)
            continue
        newest = complete(workdir)
        saving_now = any(step > newest for step in unfinished(workdir) - stale)  # left behind: certainly under way
        fault = SAVING if saving_now else STARTING if log_of(workdir) == old_log else TRAINING
        left[fault] = max(left[fault] - 1, 0)
        right = newest == 0 or bench.right(workdir, newest)
        redone = 0 if fault == STARTING else max(lines(workdir) - newest, 0)
        row = {"fault": fault, "survived": right, "steps_redone": redone, "silently_wrong": not right}
        waiting.append(row | {"said": spoken(said)})


def unfinished(workdir: pathlib.Path) -> set[int]:
    """Steps that are being written, or were when the run was killed."""
    return set(Checkpoints(workdir, read_only=True).unfinished())


def log_of(workdir: pathlib.Path) -> int:
    """Which file of metrics there is: each session begins with a new one. 0: none."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def after(seconds: float) -> Callable[[], bool]:
    """Once so many seconds have passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def reached(workdir: pathlib.Path, step: int, old_log: int) -> Callable[[], bool]:
    """Once this session has logged a step."""
    return lambda: log_of(workdir) != old_log and lines(workdir) >= step


def failed(fault: str, said: str, *, silently: bool) -> Row:
    """A session that came to a bad end, or a run that came to its end with other bits."""
    what = "ended with other bits" if silently else said[-300:]
    return {"fault": fault or TRAINING, "survived": False, "steps_lost": None, "steps_redone": None,
            "silently_wrong": silently, "said": [what, *spoken(said)]}  # fmt: skip


def terminations(bench: Bench, count: int) -> Iterator[Row]:
    """SIGTERM: saves and exits with 0; in the start, where there is nothing to save, it just ends."""
    workdir = bench.folder / "terminated"
    goals = [*(bench.rng.randrange(1, STEPS - EVERY) for _ in range(count)), 0, 0, STEPS, STEPS]
    for goal in goals:
        process = bench.start(workdir)
        process.wait_for(lambda goal=goal: lines(workdir) >= goal)
        time.sleep(bench.rng.random() * (0.02 if goal else 3.0))
        process.send(signal.SIGTERM)
        code, _ = process.end()
        reached = lines(workdir)
        name = "in the start" if not reached else "after the last step" if goal == STEPS else "while training"
        found = bench.verdict(f"SIGTERM {name}", workdir, reached, redone=max(reached - complete(workdir), 0))
        left_well = code in (0, -signal.SIGTERM) if not reached or goal == STEPS else code == 0
        yield found | {"survived": found["survived"] and left_well}
        shutil.rmtree(workdir)


def flip_bit(path: pathlib.Path, rng: random.Random) -> None:
    """One bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


HURT: dict[str, Callable[[pathlib.Path, random.Random], None]] = {
    "truncated": lambda path, rng: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, rng: os.truncate(path, 0),
    "flipped in one bit": flip_bit,
    "deleted": lambda path, rng: path.unlink(),
}


def files(bench: Bench) -> Iterator[Row]:
    """Each file of the newest checkpoint hurt in each way: the one before it serves, and the damage is named."""
    config, mesh = configs.load("configs/clip.py:small", TINY), meshes.make_mesh(data=1)
    newest, before, folder = STEPS, STEPS - EVERY, pathlib.Path("checkpoints") / str(STEPS)
    with jax.set_mesh(mesh):
        like = loop.with_sharding(*loop.state_layout(loop.build(config, bench.reference), config, mesh))
        good = {s: Checkpoints(bench.reference, read_only=True).restore(like, step=s) for s in (before, newest)}
        there = sorted(p.relative_to(bench.reference) for p in (bench.reference / folder).rglob("*") if p.is_file())
        for name, kind in itertools.product([*there, pathlib.Path("digests") / f"{newest}.json"], HURT):
            whole = (bench.reference / name).stat().st_size
            if not whole and kind != "deleted":
                continue
            workdir = bench.copy("hurt")
            HURT[kind](workdir / name, bench.rng)
            found = Checkpoints(workdir).restore(like)
            right = found is not None and equal(found.state, getattr(good.get(found.step), "state", None))
            named = found is not None and any(f"step {newest}" in text for text in found.warnings)
            where = "checksums" if name.parts[0] == "digests" else "a file"
            aside = (found is not None and found.step == newest) or (workdir / "quarantine").is_dir()
            yield {
                "fault": f"{where} of the newest checkpoint {kind}",
                "survived": right and named and aside,
                "steps_lost": max(before - (found.step if found else 0), 0),  # what is hurt is not complete any more
                "steps_redone": newest - (found.step if found else 0),
                "silently_wrong": not right or not named,
                "said": [str(name.relative_to(name.parts[0])), *(found.warnings if found else ["nothing restored"])],
            }
            shutil.rmtree(workdir)
    for kind in HURT:  # and with the whole command, on the largest file, which holds arrays
        workdir = bench.copy("hurt")
        HURT[kind](max((workdir / folder).rglob("*"), key=lambda p: p.stat().st_size), bench.rng)
        found = bench.verdict(f"a file of the newest checkpoint {kind}", workdir, before, redone=EVERY)
        yield found | {"silently_wrong": found["silently_wrong"] or not any("passed over" in s for s in found["said"])}
        shutil.rmtree(workdir)


def equal(ours: Any, theirs: Any) -> bool:
    """Two states, to the bit."""
    return theirs is not None and jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), ours, theirs))


def mounted(bench: Bench, options: str) -> pathlib.Path | None:
    """A small file system of its own, or None where that cannot be had."""
    place = bench.folder / "mounted"
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return place if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


def remount(place: pathlib.Path, options: str) -> None:
    """With other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def unmount(place: pathlib.Path) -> None:
    """Whatever still looks into it."""
    subprocess.run(["umount", "--lazy", str(place)], check=False)


def full_disk(bench: Bench) -> Iterator[Row]:
    """The disk fills while checkpoints are written: refused in words; with room again the run goes on to its end."""
    for size in ("300k", "700k", "1200k", "1700k", "2600k", "4100k"):
        if (place := mounted(bench, f"size={size}")) is None:
            return
        try:
            code, said = bench.start(place / "run", KEEP_ALL).end()
            if code == 0:
                continue  # it all fitted
            refused = code == 2 and "mixcon: error" in said
            newest = complete(place / "run")
            right = not newest or bench.right(place / "run", newest)
            remount(place, "size=512m")
            redone = max(lines(place / "run") - newest, 0)
            found = bench.verdict("disk full", place / "run", newest, redone=redone)
            found |= {"survived": found["survived"] and refused and right, "said": spoken(said) + found["said"]}
            yield found | {"silently_wrong": found["silently_wrong"] or not right}
        finally:
            unmount(place)


def read_only(bench: Bench) -> Iterator[Row]:
    """A workdir that cannot be written: refused in words; writable again, the run goes on."""
    if (place := mounted(bench, "size=512m")) is None:
        return
    try:
        workdir = place / "run"
        process = bench.start(workdir)
        process.wait_for(lambda: complete(workdir) >= 2 * EVERY)
        process.send(signal.SIGKILL)
        process.end()
        newest = complete(workdir)
        redone = max(lines(workdir) - newest, 0)
        remount(place, "ro")
        code, said = bench.start(workdir).end()
        remount(place, "rw")
        found = bench.verdict("workdir read-only", workdir, newest, redone=redone)
        yield found | {
            "survived": found["survived"] and code == 2 and "mixcon: error" in said,
            "said": spoken(said) + found["said"],
        }
    finally:
        unmount(place)


def shared_workdir(bench: Bench) -> Iterator[Row]:
    """Two runs pointed at one workdir: the second is refused, the first is not disturbed."""
    workdir = bench.folder / "shared"
    for second_comes in (0, STEPS // 3):  # at once, and in the middle
        first = bench.start(workdir)
        first.wait_for(lambda least=second_comes: (workdir / ".lock").exists() and lines(workdir) >= least)
        first.send(signal.SIGSTOP)  # so that it cannot be through before the second has come
        code, said = bench.start(workdir).end()
        first.send(signal.SIGCONT)
        first_code, first_said = first.end()
        right, codes = bench.same_run(workdir), sorted((first_code, code))
        yield {
            "fault": "two runs in one workdir",
            "survived": right and codes == [0, 2],  # stopped before it had the lock, the first is the second
            "steps_lost": 0,
            "steps_redone": 0,
            "silently_wrong": not right or codes == [0, 0],
            "said": spoken(said if code else first_said),
        }
        shutil.rmtree(workdir)


def clock(bench: Bench) -> Iterator[Row]:
    """The clock jumps back by an hour again and again; and a run goes on ten years before it began."""
    for years, name in ((0.0, "clock going backwards"), (10.0, "clock ten years back after a kill")):
        workdir, newest, redone = bench.folder / f"clocked-{years:.0f}", 0, 0
        if years:
            process = bench.start(workdir)
            process.wait_for(lambda workdir=workdir: lines(workdir) >= STEPS // 2)
            process.send(signal.SIGKILL)
            process.end()
            newest = complete(workdir)
            redone = lines(workdir) - newest
        code, said = bench.start(workdir, years_back=years).end()
        right = code == 0 and bench.same_run(workdir)
        yield {
            "fault": name,
            "survived": right,
            "steps_lost": max(newest - (resumed_from(said) or 0), 0),
            "steps_redone": redone,
            "silently_wrong": code == 0 and not right,
            "said": spoken(said),
        }
