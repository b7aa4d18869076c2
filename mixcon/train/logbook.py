"""What a run writes down: JSON lines, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from mixcon.train.checkpoint import write_atomically
from mixcon.train.events import Events


class Logbook:
    """Metrics of one run; every process may hold one, only process 0 writes.

    Args:
      workdir: folder of the run.
      resume_step: lines beyond this step are dropped: the run repeats them.
      total: last step, for the progress bar.
      progress: draw the bar.
    """

    def __init__(self, workdir: pathlib.Path, *, resume_step: int, total: int, progress: bool = True):
        self.active = jax.process_index() == 0
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        if not self.active:
            return
        keep_lines_until(self.path, resume_step)
        self.file = self.path.open("a")
        self.events = Events(pathlib.Path(workdir) / "events", first_step=resume_step + 1)
        self.bar = tqdm(total=total, initial=resume_step, unit="step", disable=not progress, dynamic_ncols=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        if not self.active:
            return
        self.file.write(json_line(step, values))
        self.file.flush()
        self.events.write(step, values)

    def evaluated(self, step: int) -> bool:
        """Whether the results of evaluation after this step are written; every process gets the same answer."""
        found = self.active and any(
            line["step"] == step and any(key.startswith("eval/") for key in line)
            for line in map(json.loads, self.path.read_text().splitlines())
        )
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(found)))

    def advance(self, **shown: str) -> None:
        """Move the bar by one step; show the given texts beside it."""
        if self.active:
            if shown:
                self.bar.set_postfix(shown, refresh=False)
            self.bar.update(1)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.active:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush everything."""
        if self.active:
            self.bar.close()
            self.file.close()
            self.events.close()


def json_line(step: int, values: Mapping[str, float]) -> str:
    """One line of `metrics.jsonl`; JSON has no nan, so it is written as text."""
    line = {"step": step, "time": time.time(), **{k: float(v) for k, v in values.items()}}
    return json.dumps({k: v if math.isfinite(v) else repr(v) for k, v in line.items()}) + "\n"


def keep_lines_until(path: pathlib.Path, step: int) -> None:
    """Drop lines of later steps and a last line cut short by a kill."""
    if not path.exists():
        return
    lines = path.read_bytes().decode(errors="replace").splitlines()
    kept = [line for line in lines if (found := step_of(line)) is not None and found <= step]
    write_atomically(path, "".join(line + "\n" for line in kept))


def step_of(line: str) -> int | None:
    """The step of a line of metrics; None for what is no such line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) else None
