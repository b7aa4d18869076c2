"""CLIP and ALIGN compiled for pods that are not here: memory, FLOPs, collectives and predicted times.

    .venv-tpu/bin/python -m benchmarks.pods          # 37 programs, one to five minutes each; needs the extra tpu-plan

Every row is one `mixcon plan` in a process of its own. Rows that are on record are kept (`--again` compiles them, too).
Writes JSON, the table of docs/pods.md and a plot under benchmarks/results.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from mixcon.plan import show
from mixcon.plan.compile import Plan

RESULTS = pathlib.Path(__file__).parent / "results"
CONFIGS = ("clip:b32", "clip:b16", "clip:l14", "align:b3_medium")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
BATCHES = (16_384, 65_536, 262_144)
BESIDES = (("clip:l14", "v5e:16x16", 32_768),)

Case = tuple[str, str, int]


def cases() -> list[Case]:
    """What is compiled, in the order of the table."""
    grid = [(c, t, b) for c in CONFIGS for t in TOPOLOGIES for b in BATCHES]
    return sorted([*grid, *BESIDES], key=lambda case: (CONFIGS.index(case[0]), TOPOLOGIES.index(case[1]), case[2]))


def compiled(case: Case) -> Plan:
    """The plan of one case, by the command that users have."""
    config, topology, batch = case
    name, variant = config.split(":")
    with tempfile.TemporaryDirectory() as folder:
        command = ["plan", "--config", f"configs/{name}.py:{variant}", "--topology", topology, "--batch", str(batch)]
        subprocess.run([sys.executable, "-m", "mixcon", *command, "--sweep", "--out", folder], check=True)
        return read(pathlib.Path(folder) / "plan.json")[case]


def read(path: pathlib.Path) -> dict[Case, Plan]:
    """Plans on record."""
    rows = json.loads(path.read_text()) if path.exists() else []
    plans = [Plan(**{key: row[key] for key in Plan._fields}) for row in rows]
    return {(plan.config, plan.topology, plan.batch_size): plan for plan in plans}


def write(plans: dict[Case, Plan]) -> None:
    """JSON, table and plot of what there is."""
    rows = [plans[case] for case in cases() if case in plans]
    (RESULTS / "pods.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    (RESULTS / "pods.md").write_text(show.table(rows))
    show.plot(rows, RESULTS / "pods.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="compile what is on record, too")
    parser.add_argument("--only", default="", help="cases whose config, topology or batch contains this")
    arguments = parser.parse_args()
    plans = read(RESULTS / "pods.json")
    for case in cases():
        if arguments.only in " ".join(map(str, case)) and (arguments.again or case not in plans):
            plans[case] = compiled(case)
            write(plans)
    write(plans)
    print((RESULTS / "pods.md").read_text())


if __name__ == "__main__":
    main()
