"""What a checkpoint costs the step loop: `python -m benchmarks.checkpointing [--steps 200] [--every 10] [--batch 128]`.

The demo's model (`configs/clip.py:small`) trains as `make demo` trains it, unevaluated. Every `--every` steps the
loop wants to save; every second time it is let. So windows of steps after a save and without one alternate within one
run, and whatever else the machine does falls on both.

Blocked: from the call to save until the next step is handed to the device. Whole cost: how much longer the window after
a save takes than the windows beside it; this includes what the writing in the background takes from the steps, which
matters where, as on a CPU, both share the processor. Shares are of the time of 50 steps, for a save every 50 steps.

Writes `benchmarks/results/checkpointing.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax

from mixcon import config as configs
from mixcon.train import loop

RESULTS = pathlib.Path(__file__).parent / "results"
INTERVAL = 50  # steps between saves that the shares are for


class Timed(loop.Run):
    """The loop, with every second save left out and a clock at its seams."""

    starts: list[float]  # when each step was handed over
    saves: list[tuple[int, float, bool]]  # after which step, when, and whether it was done

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.starts, self.saves = [], []
        RUNS.append(self)

    def dispatch(self, step: Any, state: Any, batch: Any, number: int) -> Any:
        self.starts.append(time.perf_counter())
        return super().dispatch(step, state, batch, number)

    def save(self, state: Any) -> None:
        done = len(self.saves) % 2 == 0
        self.saves.append((len(self.starts), time.perf_counter(), done))
        if done:
            super().save(state)


RUNS: list[Timed] = []


def measure(steps: int, every: int, batch: int, folder: pathlib.Path) -> dict[str, Any]:
    """One run, and what its clock says."""
    overrides = [f"--config.steps={steps}", f"--config.batch_size={batch}", f"--config.checkpoint.every={every}"]
    config = configs.load("configs/clip.py:small", [*overrides, "--config.eval_every=-1", "--config.mesh.data=1"])
    loop.Run = Timed  # type: ignore[misc]
    state = loop.train(config, folder)
    run = RUNS[-1]
    windows: dict[bool, list[float]] = {True: [], False: []}
    blocked = []
    for (after, began, done), (end, _, _) in zip(run.saves[1:-1], run.saves[2:], strict=True):  # the first one warms up
        windows[done].append(run.starts[end - 1] - began)
        if done:
            blocked.append(run.starts[after] - began)
    without = statistics.mean(windows[False])
    step_s = without / (every - 1)
    cost = statistics.mean(windows[True]) - without
    spread = sum(statistics.variance(w) / len(w) for w in windows.values()) ** 0.5
    return {
        "config": "configs/clip.py:small",
        "batch_size": batch,
        "steps": steps,
        "state_mb": sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "saves": len(blocked),
        "step_s": step_s,
        "blocked_s": statistics.median(blocked),
        "blocked_s_all": blocked,
        "whole_cost_s": cost,
        "whole_cost_standard_error_s": spread,
        "blocked_share": statistics.median(blocked) / (INTERVAL * step_s),
        "whole_cost_share": cost / (INTERVAL * step_s),
        "whole_cost_share_standard_error": spread / (INTERVAL * step_s),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each batch size."""
    lines = [
        "| batch | cores | state | step | saves | loop blocked by a save | share, one save in 50 steps "
        "| with what the writing takes from later steps |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        whole = f"{row['whole_cost_share']:.1%} ± {row['whole_cost_share_standard_error']:.1%}"
        lines.append(
            f"| {row['batch_size']} | {row['cores']} | {row['state_mb']:.0f} MB | {row['step_s'] * 1e3:.0f} ms "
            f"| {row['saves']} | {row['blocked_s'] * 1e3:.0f} ms | **{row['blocked_share']:.2%}** | {whole} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write what came of it beside other batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128, help="128 is the demo's")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "checkpointing.json")
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    with tempfile.TemporaryDirectory(prefix="mixcon-checkpointing-") as folder:
        found = measure(arguments.steps, arguments.every, arguments.batch, pathlib.Path(folder))
    rows = [row for row in kept if (row["batch_size"], row["cores"]) != (found["batch_size"], found["cores"])]
    rows = sorted([*rows, found], key=lambda row: (row["batch_size"], row["cores"]))
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
