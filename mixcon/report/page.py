"""The page: one HTML file with everything inside. Every text of a run is escaped; there is no script.

Small functions from a piece of the run to a piece of HTML; `page` puts them in order.
"""

import base64
import io
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from mixcon.report import figures, style
from mixcon.report.css import CSS
from mixcon.report.curves import Panel, number
from mixcon.report.run import Headline, Picture, Run, duration, group_of, percent, pretty, times_chance

_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?[%×k])?|nan|")
WIDE = ("retrieval_grid", "embedding_map")


def page(run: Run, curves: Sequence[tuple[Panel, str]], drawings: Mapping[str, str]) -> str:
    """The whole document.

    Args:
      run: What the folder held.
      curves: Each panel with its SVG.
      drawings: SVG of artifacts, by name; those that HTML shows better (grids, tables) need none.
    """
    title = escape(run.workdir.resolve().name)
    sections = [
        header(run),
        section("Against chance", cards(run.headlines), "The mark on a bar is what a random ranking or guess reaches."),
        section("What it does", pieces(run.pictures, drawings)),
        section("How it went", curve_groups(curves)),
        section("Where the time went", goodput(run.goodput)),
        section("The run", provenance(run)),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{CSS}</style></head><body><main>{''.join(sections)}"
        f'<footer>Written by mixcon report, {time.strftime("%Y-%m-%d %H:%M")}. '
        "The pictures lie beside this page as PNG files.</footer></main></body></html>\n"
    )


def section(title: str, body: str, lead: str = "") -> str:
    """A titled part of the page, or nothing where there is nothing to show."""
    intro = f'<p class="muted">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{body}</section>" if body else ""


def header(run: Run) -> str:
    """Name, state, the facts one asks for first, and what is missing."""
    if run.finished:
        state = '<span class="state done">complete</span>'
    else:
        state = f'<span class="state open">{"incomplete" if run.series else "no metrics yet"}</span>'
    facts: dict[str, Any] = {}
    if run.series:
        facts["step"] = f"{run.step:,}" + (f" of {run.total:,}" if run.total else "")
    if isinstance(run.config.get("experiment"), str):
        facts["experiment"] = run.config["experiment"]
    if isinstance(run.config.get("batch_size"), int):
        facts["batch"] = f"{run.config['batch_size']:,}"
    if "seed" in run.config:
        facts["seed"] = run.config["seed"]
    device = run.info.get("device", run.info.get("device_kind"))
    if isinstance(device, dict):
        facts["device"] = f"{device.get('count', 1)} × {device.get('kind', 'unknown')}"
    elif device:
        facts["device"] = device
    started = run.info.get("started", run.times[0] if run.times else None)
    if isinstance(started, int | float):
        facts["started"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
    elif started:
        facts["started"] = started
    if run.goodput.get("total"):
        facts["wall time"] = duration(run.goodput["total"])
    elif run.times and run.times[1] > run.times[0]:
        facts["logged for"] = duration(run.times[1] - run.times[0])
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return (
        f"<header><h1>{escape(run.workdir.resolve().name)}{state}</h1>"
        + (f'<dl class="facts">{listed}</dl>' if facts else "")
        + (f'<div class="notes" role="note"><b>To know</b><ul>{notes}</ul></div>' if notes else "")
        + "</header>"
    )


def cards(found: Sequence[Headline]) -> str:
    """A card per evaluation, a bar per metric with its chance level marked."""
    groups: dict[str, list[Headline]] = {}
    for item in found:
        groups.setdefault(group_of(item.key), []).append(item)
    result = []
    for name, items in groups.items():
        bars = "".join(
            f'<div class="score"><span>{escape(pretty(i.key.rsplit("/", 1)[-1]))}</span>'
            f'<span class="track"><i style="width:{100 * min(max(i.value, 0), 1):.2f}%"></i>'
            f'<u style="left:{100 * min(max(i.chance, 0), 1):.2f}%"></u></span><b>{percent(i.value)}</b>'
            f"<small>{times_chance(i.ratio)} chance ({percent(i.chance)})</small></div>"
            for i in items
        )
        result.append(f'<div class="card"><h3>{escape(name)}<small>step {items[0].step:,}</small></h3>{bars}</div>')
    # Rows as even as they come: 4 beside each other, 5 as 3 + 2, 7 as 4 + 3.
    columns = len(result) if len(result) < 5 else min((3, 4), key=lambda c: -len(result) % c)
    return f'<div class="cards" style="--columns:{max(columns, 2)}">{"".join(result)}</div>' if result else ""


def picture(svg: str, label: str) -> str:
    """Inline SVG with a name for those who do not see it."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)


def curve_groups(curves: Sequence[tuple[Panel, str]]) -> str:
    """All panels, one small figure each."""
    shown = []
    for panel, svg in curves:
        ends = ", ".join(f"{k} {number(c.last)}" for k, c in panel.curves.items())
        shown.append(f"<figure><h3>{escape(panel.title)}<small>{escape(panel.context)}</small></h3>"
                     f"{picture(svg, f'{panel.context} {panel.title}: last {ends}')}</figure>")
    return f'<div class="curves">{"".join(shown)}</div>' if shown else ""


def pieces(pictures: Sequence[Picture], drawings: Mapping[str, str]) -> str:
    """All artifacts: the wide ones first, then two beside each other where the screen allows."""
    kinds = [*WIDE, *(k for k in figures.FIGURES if k not in WIDE)]
    order = sorted(pictures, key=lambda p: (kinds.index(p.kind) if p.kind in kinds else len(kinds), p.name))
    halves = sum(p.kind not in WIDE for p in order)
    made = [shown(p, drawings, wide=p.kind in WIDE or (halves % 2 == 1 and p is order[-1])) for p in order]
    return f'<div class="pieces">{"".join(made)}</div>' if made else ""


def shown(item: Picture, drawings: Mapping[str, str], *, wide: bool) -> str:
    """An artifact: as HTML where text must be text, as a drawing otherwise; an unknown kind is described."""
    title = str(item.arrays.get("title", "")) or pretty(item.name.replace("/", " · "))
    caption = str(item.arrays.get("caption", ""))
    extra = ""
    if item.kind == "retrieval_grid":
        body, extra = grid(item.arrays), "Right answers are framed or green; the last column is the truth."
    elif item.kind == "table":
        body = table(item.arrays["columns"], item.arrays["rows"])
    elif item.name in drawings:
        body = f'<div class="scroll">{picture(drawings[item.name], title)}</div>'
        if item.kind == "histogram":
            share = figures.auc(item.arrays["positive"], item.arrays["negative"])
            extra = f"A matching pair scores above a random other pair in {percent(share)} of cases."
        elif item.kind == "confusion":
            counts = item.arrays["matrix"]
            right = np.trace(counts) / max(counts.sum(), 1)
            extra = f"{percent(right)} of {int(counts.sum()):,} on the diagonal; rows are true classes."
    else:
        rows = [[k, f"{v.dtype} {list(v.shape)}"] for k, v in item.arrays.items()]
        body, extra = table(["array", "type and shape"], rows), f"No drawing for this kind of artifact: {item.kind}."
    words = escape(" ".join(t for t in (caption, extra) if t))
    kind = item.kind if item.kind in figures.FIGURES else "other"
    return (f'<figure class="{"wide" if wide else "half"} {kind}">'
            f"<h3>{escape(title)}<small>step {item.step:,}</small></h3>"
            f"<figcaption><p>{words}</p></figcaption>{body}</figure>")


def thumbnail(pixels: np.ndarray, alt: str, css: str = "") -> str:
    """A small image, inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = f' class="{css}"' if css else ""
    return f'<img{kind} alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def grid(arrays: Mapping[str, np.ndarray]) -> str:
    """Queries, results, truth, with texts as text: every script, right to left where it is."""
    correct = arrays["result_correct"]
    rows, columns = correct.shape

    def cell(side: str, index: tuple[int, ...], hit: bool = False) -> str:
        if f"{side}_images" in arrays:
            return thumbnail(arrays[f"{side}_images"][index], side + (", right" if hit else ""), "hit" if hit else "")
        mark = " hit" if hit else ""
        return f'<div class="text{mark}" dir="auto">{escape(str(arrays[f"{side}_texts"][index]))}</div>'

    words = "" if "result_images" in arrays else " words"
    head = "".join(f"<span>{j + 1}</span>" for j in range(columns))
    lines = [f'<div class="row head"><span>query</span><div class="results" style="--n:{columns}">{head}</div>'
             "<span>truth</span></div>"]
    for i in range(rows):
        results = "".join(cell("result", (i, j), bool(correct[i, j])) for j in range(columns))
        rank = f'<div class="rank">truth at rank {int(arrays["ranks"][i]):,}</div>' if "ranks" in arrays else ""
        lines.append(f'<div class="row"><div class="query">{cell("query", (i,))}{rank}</div>'
                     f'<div class="results{words}" style="--n:{columns}">{results}</div>'
                     f'<div class="truth">{cell("truth", (i,))}</div></div>')
    return f'<div class="grid">{"".join(lines)}</div>'


def table(columns: Iterable[Any], rows: Iterable[Iterable[Any]], *, keys: bool = False) -> str:
    """An HTML table; `keys` sets the first column in a fixed-width face."""
    names, cells = [str(c) for c in columns], [[str(v) for v in row] for row in rows]
    numeric = [all(_NUMBER.fullmatch(row[j]) for row in cells) for j in range(len(names))]
    marks = [' class="num"' if n else ' class="key"' if keys and j == 0 else "" for j, n in enumerate(numeric)]
    head = "".join(f"<th{m}>{escape(c)}</th>" for c, m in zip(names, marks, strict=True))
    body = ""
    for row in cells:
        line = "".join(f'<td dir="auto"{m}>{escape(v)}</td>' for v, m in zip(row, marks, strict=True))
        body += f"<tr>{line}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def goodput(seconds: Mapping[str, float]) -> str:
    """The wall time as one bar with its key."""
    parts = figures.spent(seconds)
    if not parts:
        return ""
    colors = [f"var({style.VARIABLES[style.SERIES[i % len(style.SERIES)]]})" for i in range(len(parts))]
    bar = "".join(f'<i style="width:{100 * share:.2f}%;background:{c}"></i>'
                  for (_, _, share), c in zip(parts, colors, strict=True))
    key = "".join(f'<li><i style="background:{c}"></i>{escape(name)} <b>{percent(share)}</b> '
                  f'<span class="muted">{duration(length)}</span></li>'
                  for (name, length, share), c in zip(parts, colors, strict=True))
    overhead = ""
    if "loop_overhead" in seconds:
        idle = percent(seconds["loop_overhead"])
        overhead = f'<p class="muted">While stepping, the device was idle for {idle} of the time.</p>'
    return f'<div class="bar" aria-hidden="true">{bar}</div><ul class="legend">{key}</ul>{overhead}'


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c: value`."""
    if isinstance(value, Mapping) and value:
        parts = (flat(part, f"{prefix}.{name}" if prefix else str(name)) for name, part in value.items())
        return {k: v for part in parts for k, v in part.items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def natural(key: str) -> list[tuple[int, str]]:
    """Order for people: R@5 before R@10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def provenance(run: Run) -> str:
    """Last values, config, versions: folded, for those who ask."""
    series = sorted(run.series.items(), key=lambda item: natural(item[0]))
    last = [[k, number(s.last), f"{int(s.steps[-1]):,}"] for k, s in series]
    info = {k: v for k, v in run.info.items() if k not in ("config", "started", "finished")}
    parts = [
        ("All metrics, last value", table(["metric", "value", "step"], last, keys=True) if last else ""),
        ("Config", table(["key", "value"], list(flat(run.config).items()), keys=True) if run.config else ""),
        ("Versions and machine", table(["what", "value"], list(flat(info).items()), keys=True) if info else ""),
    ]
    return "".join(f"<details><summary>{name}</summary>{body}</details>" for name, body in parts if body)
