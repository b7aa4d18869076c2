"""What was measured, as text: a table for the terminal, and `docs/results.md` from the files in `results/`."""

from __future__ import annotations

import pathlib
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence

from mixcon import config as configs
from mixcon.reproduce.run import Record, digest, job_of, load_study, read_records
from mixcon.reproduce.study import Study, Table

HEAD = """# Results

Claims of papers, measured on real data by the configs of this repository. Made by
`mixcon reproduce --document` from the files in `results/`; `mixcon reproduce <name>` runs what they lack, and
every row can be run alone by the command below its table.

Cells are mean ± standard error over seeds; in brackets the paired difference from the baseline over common seeds, with
its own standard error. "last" is the last evaluation of a run, "best" the one that the named metric selects. Rows "in
the paper" are published figures, at the published size. Seconds are those of one run on shared cores.
"""


def document(results: str | pathlib.Path = "results") -> str:
    """The page of all studies that have results.

    Args:
      results: folder of the result files.

    Returns:
      Markdown.

    Example:
      >>> pathlib.Path("docs/results.md").write_text(document())
    """
    sections = [
        study_text(slug, load_study(slug), read_records(path))
        for path in sorted(pathlib.Path(results).glob("*.json"))
        for slug in [path.stem]
    ]
    return "\n".join([HEAD, *sections])


def study_text(slug: str, study: Study, records: Sequence[Record]) -> str:
    """One paper: every table that has records, with its claim and what was found."""
    parts = [f"## {study.title}\n"]
    for name, table in study.tables.items():
        here = [record for record in records if record["table"] == name and record["arm"] in table.arms]
        if not here:
            continue
        parts.append(f"### {table.title}\n")
        if table.claim:
            parts.append(f"Claim: {table.claim}\n")
        parts.append(aligned(rows(slug, table, here)))
        if stale(slug, table, here):
            parts.append("† run with an earlier form of its config.\n")
        if table.select:
            better = "lowest" if table.select.startswith("-") else "highest"
            chosen = ", chosen on the test set" if "/test/" in table.select else ""
            parts.append(f"Best: {better} `{table.select.removeprefix('-')}`{chosen}.\n")
        if table.found:
            parts.append(f"Found: {table.found}\n")
        commands = "\n".join(commands_of(slug, name, table, here))
        parts.append(f"<details><summary>commands</summary>\n\n```\n{commands}\n```\n\n</details>\n")
    return "\n".join(parts)


def rows(slug: str, table: Table, records: Sequence[Record]) -> list[list[str]]:
    """Cells of a table, its head first."""
    kinds = ("last", "best") if table.select else ("last",)
    found = [["", *([""] if table.select else []), "seeds", *table.columns, "s"]]
    late = stale(slug, table, records)
    for arm in table.arms:
        runs = {record["seed"]: record for record in records if record["arm"] == arm}
        base = {record["seed"]: record for record in records if record["arm"] == table.baseline != arm}
        if runs:
            seconds = f"{statistics.median(run['seconds'] for run in runs.values()):.0f}"
            for kind in kinds:
                shown = {s: r for s, r in runs.items() if kind in r}
                cells = [cell(table, column, kind, shown, base) for column in table.columns]
                label = f"{arm} †" if arm in late else arm
                found.append([label, *([kind] if table.select else []), str(len(shown)), *cells, seconds])
        if arm in table.paper:
            said = [figure(table.paper[arm].get(column, "")) for column in table.columns]
            found.append([f"*{arm}, in the paper*", *([""] if table.select else []), "", *said, ""])
    return found


def cell(table: Table, column: str, kind: str, runs: Mapping[int, Record], base: Mapping[int, Record]) -> str:
    """Mean ± standard error, and the paired difference from the baseline."""
    metric, scale = table.columns[column], table.scale.get(column, 1.0)
    values = {seed: scale * run[kind][metric] for seed, run in runs.items()}
    digits = places(list(values.values()))
    text = spread(list(values.values()), digits)
    both = [seed for seed in values if seed in base and kind in base[seed]]
    if len(both) > 1:
        text += f" ({spread([values[seed] - scale * base[seed][kind][metric] for seed in both], digits, sign='+')})"
    return text


def places(values: Sequence[float]) -> int:
    """Digits after the point that a figure deserves: three in all or so."""
    mean = abs(statistics.fmean(values))
    return 1 if mean >= 10 else 3 if mean < 1 else 2


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """`2.857 ± 0.053`, or the one value there is."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:{sign}.{digits}f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def figure(value: float | str) -> str:
    """A published figure as it was given."""
    return value if isinstance(value, str) else f"{value:g}"


def stale(slug: str, table: Table, records: Sequence[Record]) -> set[str]:
    """Arms with a record that the config of today would not repeat."""
    return {r["arm"] for r in records if r["digest"] != digest(table.arms[r["arm"]], job_of(slug, r))}


def commands_of(slug: str, name: str, table: Table, records: Sequence[Record]) -> list[str]:
    """One command for each arm, of its first seed."""
    found = []
    for arm in table.arms:
        first = next((record for record in records if record["arm"] == arm), None)
        if first and (table.arms[arm].measure or "together" in first):
            found.append(f"mixcon reproduce {slug} --table {name} --arm {shlex.quote(arm)}")
        elif first:
            program, verb, *flags = first["command"]
            workdir = "-".join(re.findall(r"\w+", f"{slug} {name} {arm}"))
            found.append(" ".join([program, verb, *map(configs.typed, flags), f"--workdir=runs/{workdir}"]))
    return found


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
