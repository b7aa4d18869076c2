"""What `make demo` reaches over several seeds: `python -m benchmarks.demo [--seeds 3]`.

Trains `configs/clip.py:small` (or another config) once a seed, each run resumable, and writes the final metrics with
mean and standard deviation to `benchmarks/results/demo.json` and, as a table, to `benchmarks/results/demo.md`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

RESULTS = pathlib.Path(__file__).parent / "results"
SHOWN = {
    "composition/image_to_text/R@10": "composition, image → text, R@10",
    "composition/text_to_image/R@10": "composition, text → image, R@10",
    "concept/image_to_text/R@10": "concept, image → text, R@10",
    "concept/text_to_image/R@10": "concept, text → image, R@10",
    "composition/zero_shot_tone/top1": "zero-shot skin tone, top-1",
    "concept/zero_shot_group/top1": "zero-shot group of unseen concepts, top-1",
}


def final_metrics(workdir: pathlib.Path) -> dict[str, float]:
    """Last value of every evaluation metric of a run."""
    found: dict[str, float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        found |= {k.removeprefix("eval/"): v for k, v in json.loads(line).items() if k.startswith("eval/")}
    return found


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/clip.py:small")
    parser.add_argument("--name", default="demo", help="of the result files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs/demo_seeds", help="folder of the runs")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        workdir = pathlib.Path(arguments.runs) / f"{arguments.name}-{seed}"
        command = [sys.executable, "-m", "mixcon", "train", "--config", arguments.config, "--workdir", str(workdir)]
        subprocess.run([*command, f"--config.seed={seed}", "--config.eval_every=0"], check=True)
        goodput = json.loads((workdir / "goodput.json").read_text())
        runs.append({"seed": seed, "metrics": final_metrics(workdir), "goodput": goodput})
    rows = ["| metric | mean ± sd | chance | × chance |", "|---|---|---|---|"]
    for key, label in SHOWN.items():
        values = [run["metrics"][key] for run in runs]
        mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        chance = runs[0]["metrics"][f"{key}/chance"]
        rows.append(f"| {label} | {mean:.1%} ± {spread:.1%} | {chance:.1%} | {mean / chance:.0f} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps({"config": arguments.config, "runs": runs}, indent=1))
    table = "\n".join([*rows, "", f"{arguments.seeds} seeds of `{arguments.config}`."]) + "\n"
    (RESULTS / f"{arguments.name}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
