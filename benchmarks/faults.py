"""Faults done to real runs, and what was lost: `python -m benchmarks.faults [--only kill files ...]`.

A small run on emoji is the reference. Then runs of the same config are killed at random moments, their checkpoints'
files truncated, emptied, flipped or deleted one by one, the disk filled, the workdir made read-only or shared, records
damaged, the clock set back. After each fault the run is started again.

Survived: what is on disk agrees with its checksums and has the bits that the reference had at that step, and the run
goes on from there; where it was started to the end, it ends with the bits and metrics of the reference; what cannot go
on is refused in words. Steps lost: from the last complete checkpoint before the fault to where the next session began.
Steps redone: what the killed session had done since that checkpoint. Silently wrong: other bits, and nothing said.

Writes `benchmarks/results/faults.json` and `.md`. Full and read-only disks need a file system of their own (root,
tmpfs); they are reported as not tried where that cannot be had.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

from tqdm import tqdm

from benchmarks import fault_kinds, fault_records
from benchmarks.fault_bench import EVERY, STEPS, Bench, Row

RESULTS = pathlib.Path(__file__).parent / "results"


def faults(arguments: argparse.Namespace) -> dict[str, Callable[[Bench], Iterator[Row]]]:
    """Every kind of fault by its name."""
    return {
        "kill": lambda bench: fault_kinds.kills(bench, arguments.kills, arguments.kills // 4, arguments.saves),
        "term": lambda bench: fault_kinds.terminations(bench, arguments.terms),
        "files": fault_kinds.files,
        "full": fault_kinds.full_disk,
        "read_only": fault_kinds.read_only,
        "shared": fault_kinds.shared_workdir,
        "clock": fault_kinds.clock,
        "records": fault_records.records,
    }


def table(found: dict[str, list[Row]]) -> str:
    """One line for each kind of fault, and one for all."""
    lines = [
        "| fault | tried | survived | steps lost | steps redone, median (most) | silently wrong |",
        "|---" * 6 + "|",
    ]
    rows = [row for each in found.values() for row in each]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        lines.append(line(fault, [row for row in rows if row["fault"] == fault]))
    lines += [f"| {key} | not tried | | | | |" for key, each in found.items() if not each]
    return "\n".join([*lines, line("**all**", rows)]) + "\n"


def line(name: str, rows: list[Row]) -> str:
    """Counts of some faults."""
    lost = max((row["steps_lost"] or 0 for row in rows), default=0)
    redone = sorted(row["steps_redone"] for row in rows if row["steps_redone"] is not None)
    again = f"{redone[len(redone) // 2]} ({redone[-1]})" if redone else ""
    survived, wrong = sum(row["survived"] for row in rows), sum(row["silently_wrong"] for row in rows)
    return f"| {name} | {len(rows)} | {survived} | {lost} | {again} | {wrong} |"


def write(found: dict[str, list[Row]], out: pathlib.Path) -> None:
    """What has come of the faults so far."""
    out.parent.mkdir(exist_ok=True)
    what = {"config": "configs/clip.py:small, cut down", "steps": STEPS, "checkpoint_every": EVERY}
    text = json.dumps({**what, "faults": found}, indent=1).replace(str(pathlib.Path.home()), "~")
    out.write_text(re.sub(r"/[^\s\"]*mixcon-faults-\w+/", "", text) + "\n")  # where the runs were is nobody's business
    out.with_suffix(".md").write_text(table(found))


def main() -> None:
    """Do every fault, write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40, help="while training; a quarter as many in the start")
    parser.add_argument("--saves", type=int, default=20, help="kills in the middle of a save")
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="KIND", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    kinds = faults(arguments)
    if unknown := set(arguments.only) - kinds.keys():
        parser.error(f"unknown kind {', '.join(unknown)}; there are: {', '.join(kinds)}")
    kept = json.loads(arguments.out.read_text())["faults"] if arguments.out.exists() and arguments.only else {}
    found: dict[str, list[Row]] = kept
    with tempfile.TemporaryDirectory(prefix="mixcon-faults-") as folder:
        bench = Bench(pathlib.Path(folder), random.Random(arguments.seed))
        for key in arguments.only or kinds:
            found = {each: found.get(each, []) if each != key else [] for each in kinds if each in found or each == key}
            for row in tqdm(kinds[key](bench), desc=key, unit="fault", mininterval=5):
                found[key].append(row)
                write(found, arguments.out)
                if not row["survived"] or row["silently_wrong"] or row["steps_lost"]:
                    print(f"{key}: {row}", file=sys.stderr, flush=True)
            write(found, arguments.out)
    print(table(found))
    if any(
        row["silently_wrong"] or row["steps_lost"] or not row["survived"] for rows in found.values() for row in rows
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
