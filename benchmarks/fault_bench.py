"""Runs of one small config that faults are done to, and the run that they are compared with, step by step."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from mixcon import cli
from mixcon.train.checkpoint import Checkpoints, damage, digest_file_of

STEPS = 60
EVERY = 5
PATIENCE_S = 900.0  # after which a process is taken for hung
TINY = (
    "--config.mesh.data=1",
    f"--config.steps={STEPS}",
    "--config.batch_size=16",
    "--config.log_every=1",
    "--config.eval_every=-1",
    f"--config.checkpoint.every={EVERY}",
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
KEEP_ALL = f"--config.checkpoint.keep={STEPS}"
Row = dict[str, Any]


class Session:
    """A `mixcon train` in a process of its own; what it says goes to a file, so that it never waits for a reader."""

    def __init__(self, process: Any, told: pathlib.Path):
        self.process, self.told = process, told
        process.start()

    def ended(self) -> bool:
        """Whether the process is gone."""
        return not self.process.is_alive()

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Exit code (a signal's number, negative) and words, once it has ended."""
        self.process.join(PATIENCE_S)
        hung = f"hung for {PATIENCE_S:.0f} s\n" if self.process.is_alive() else ""
        if hung:
            self.process.kill()
            self.process.join()
        return self.process.exitcode, hung + self.told.read_text()

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Until the event, or the end of the process."""
        while not self.ended() and not event():
            time.sleep(0.001)


def run(argv: list[str], told: str, years_back: float | None) -> None:
    """What a session's process does: the command, with a clock that jumps back if so asked."""
    file = os.open(told, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if years_back is not None:
        real, calls = time.time, itertools.count()
        time.time = lambda: real() - years_back * 31_557_600 - 3600 * (next(calls) // 50)
        time.time_ns = lambda: int(time.time() * 1e9)
    cli.main(argv)


class Bench:
    """Starts runs of one config, and compares what they leave with a run that nothing happened to.

    Each session is a process, forked from one that has imported everything and done nothing yet.
    """

    def __init__(self, folder: pathlib.Path, rng: random.Random):
        self.folder, self.rng, self.count = folder, rng, 0
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["benchmarks.fault_records", "experiments.clip", "tensorboardX", "tokenizers"]
        )
        self.reference = folder / "reference"
        code, said = self.start(self.reference, KEEP_ALL).end()
        if code:
            raise SystemExit(f"the run without faults failed:\n{said}")

    def start(self, workdir: pathlib.Path, *overrides: str, years_back: float | None = None) -> Session:
        """A training process."""
        argv = ["train", "--config", "configs/clip.py:small", "--no-progress", "--workdir", str(workdir)]
        self.count += 1
        told = self.folder / f"said-{self.count}.txt"
        told.touch()
        process = self.context.Process(target=run, args=([*argv, *TINY, *overrides], str(told), years_back))
        return Session(process, told)

    def right(self, workdir: pathlib.Path, step: int) -> bool:
        """Whether a step has its digests, agrees with them, and has the bits of the same step of the reference."""
        folder = workdir / "checkpoints" / str(step)
        vouched = digest_file_of(folder).exists() and damage(folder, digest_file_of(folder)) is None
        return vouched and same(arrays(workdir, step), arrays(self.reference, step))

    def same_run(self, workdir: pathlib.Path) -> bool:
        """Whether a finished run has the bits and the metrics of the reference."""
        return (
            complete(workdir) == STEPS and self.right(workdir, STEPS) and measured(workdir) == measured(self.reference)
        )

    def verdict(self, fault: str, workdir: pathlib.Path, expected: int, redone: int | None = None) -> Row:
        """Start again after a fault that left step `expected` as the last that must not be lost, and judge the end."""
        code, said = self.start(workdir).end()
        right = code == 0 and self.same_run(workdir)
        return {
            "fault": fault,
            "survived": right,
            "steps_lost": max(expected - (resumed_from(said) or 0), 0),
            "steps_redone": redone,
            "silently_wrong": code == 0 and not right,
            "said": spoken(said),
        }

    def copy(self, name: str) -> pathlib.Path:
        """The finished reference, to be hurt."""
        shutil.copytree(self.reference, self.folder / name)
        return self.folder / name


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, and where the data stand."""
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(workdir / "checkpoints" / str(step) / "state")
    found = {k: np.asarray(v) for k, v in ocp.tree.to_flat_dict(state, sep="/").items()}
    data = (workdir / "checkpoints" / str(step) / "data" / "metadata").read_text()
    return found | {"data": np.asarray(json.dumps(json.loads(data), sort_keys=True))}


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Equal to the bit."""
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def complete(workdir: pathlib.Path) -> int:
    """The newest committed step on disk, 0 when there is none."""
    return max([*Checkpoints(workdir, read_only=True).steps(), 0])


def lines(workdir: pathlib.Path) -> int:
    """Metric lines written so far: with one a step, the step that the run has reached."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def measured(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The metric lines without what the clock says."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("timing/")} for line in found]


def resumed_from(said: str) -> int | None:
    """The step that a session says it went on from; None when it said nothing, or began anew."""
    found = re.search(r"from the checkpoint of step (\d+)", said)
    return int(found[1]) if found else None


def spoken(said: str) -> list[str]:
    """What a session warned of or refused."""
    wanted = [line[:200] for line in said.splitlines() if line.startswith(("warning", "mixcon:", "hung", "Traceback"))]
    return wanted[:3]
