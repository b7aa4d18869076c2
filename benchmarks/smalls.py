"""How long the small form of each vision-language paper takes, start to end: `python -m benchmarks.smalls`.

Trains every small config once in a new folder, evaluations and all, and writes seconds to
`benchmarks/results/smalls.json` and, as a table, to `benchmarks/results/smalls.md`. Forms that were timed before are
kept unless they are named.

Wall time depends on who else uses the cores: beside it are the processor seconds, and how many processes wanted a
core meanwhile. Compiled programs are not reused: `JAX_COMPILATION_CACHE_DIR` is taken out of the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results"
LIMIT = 300.0  # seconds by the clock that each form may take
FORMS = (
    "clip:small", "siglip:small", "align:small", "vlp_baselines:small", "contrastive_gap:small",
    "contrastive_behaviour:small", "cwcl:small", "geodesic_mixup:small", "one_to_k:small", "isogclr:small",
    "m3col:finetune_small",
)  # fmt: skip


def timed(form: str, folder: pathlib.Path) -> dict[str, float]:
    """Seconds of one run: wall, processor, and what the loop says they went to."""
    config = f"configs/{form.replace(':', '.py:')}"
    command = [sys.executable, "-m", "mixcon", "train", f"--config={config}", f"--workdir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run, loads = subprocess.Popen([*command, "--no-progress"], env=environment), []
    while run.poll() is None:
        loads.append(os.getloadavg()[0])
        time.sleep(0.2)
    if run.returncode:
        raise SystemExit(f"{form}: stopped with {run.returncode}")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    goodput = json.loads((folder / "goodput.json").read_text())
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    seconds = {"wall": wall, "processor": processor, **{name: goodput[name] for name in ("compile", "step", "eval")}}
    return {"steps": last, "cores": len(os.sched_getaffinity(0)), "load": statistics.median(loads), **seconds}


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown, slow ones marked."""
    lines = ["| form | steps | wall, s | processor, s | load | compiling, s | steps, s | evaluations, s |"]
    lines.append("|" + "---|" * 8)
    for form, row in found.items():
        late = f" (above {LIMIT:.0f})" if row["wall"] > LIMIT else ""
        seconds = " | ".join(f"{row[name]:.0f}" for name in ("compile", "step", "eval"))
        taken = f"{row['wall']:.0f}{late} | {row['processor']:.0f} | {row['load']:.1f}"
        lines.append(f"| `{form}` | {row['steps']} | {taken} | {seconds} |")
    cores = " or ".join(str(n) for n in sorted({row["cores"] for row in found.values()}))
    total = sum(row["wall"] for row in found.values())
    how = f"On {cores} cores shared with other work (load: how many wanted a core); {total / 60:.0f} minutes in all."
    return "\n".join([*lines, "", how]) + "\n"


def main() -> None:
    """Run, collect, write after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("forms", nargs="*", help=f"to be timed (again), of {', '.join(FORMS)}; those that are missing")
    forms = parser.parse_args().forms
    if unknown := set(forms) - set(FORMS):
        parser.error(f"no small form {', '.join(sorted(unknown))}; there are {', '.join(FORMS)}")
    kept = RESULTS / "smalls.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for form in forms or [form for form in FORMS if form not in found]:
        with tempfile.TemporaryDirectory() as folder:
            found[form] = timed(form, pathlib.Path(folder) / "run")
        found = {name: found[name] for name in FORMS if name in found}
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "smalls.md").write_text(table(found))
        print(f"{form}: {found[form]['wall']:.0f} s", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
