"""Several `mixcon train` processes on this machine, that a test starts, watches and kills."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from tiny import OVERRIDES, child_environment

LIMIT = 420  # seconds that no group of processes may take, on a machine that is busy with other things


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def train_command(workdir: pathlib.Path, *overrides: str) -> list[str]:
    """`mixcon train` of the tiny config."""
    return [sys.executable, "-m", "mixcon", "train", "--config", "configs/clip.py:small", "--workdir", str(workdir),
            "--no-progress", *OVERRIDES, *overrides]  # fmt: skip


@contextlib.contextmanager
def started(
    workdir: pathlib.Path, *overrides: str, processes: int, devices: int = 1
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of one run; whatever is left of them at the end is killed."""
    mesh = f"--config.mesh.data={processes * devices}"
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}"] if processes > 1 else []
    group = [
        subprocess.Popen(
            [*train_command(workdir, *overrides, mesh), *flags, *([f"--process={i}"] if flags else [])],
            env=child_environment(devices),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        yield group
    finally:
        for process in group:
            process.kill()


def ended(group: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each, once they have ended."""
    said = [process.communicate(timeout=LIMIT)[1] for process in group]
    return [(process.returncode, text) for process, text in zip(group, said, strict=True)]


def train(workdir: pathlib.Path, *overrides: str, processes: int, devices: int = 1) -> list[tuple[int, str]]:
    """A run of several processes, from start to end."""
    with started(workdir, *overrides, processes=processes, devices=devices) as group:
        return ended(group)


def losses(workdir: pathlib.Path) -> list[float]:
    """The training losses that were logged."""
    return [json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for(workdir: pathlib.Path, step: int, group: list[subprocess.Popen[str]]) -> None:
    """Until the run has logged a step; fails if a process has ended before."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (workdir / "metrics.jsonl").read_text().count("\n") >= step:
                return
        gone = [process.communicate()[1] for process in group if process.poll() is not None]
        assert not gone, gone
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")
