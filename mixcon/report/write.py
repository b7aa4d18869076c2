"""From a run's folder to its page and pictures."""

import os
from pathlib import Path

from mixcon.report import figures, style
from mixcon.report.curves import panel_figure, panels, panels_figure
from mixcon.report.page import page
from mixcon.report.run import Headline, Run, group_of, load_run, percent, pretty, times_chance

MOST_PANELS = 48  # a run may log hundreds of metrics; the table of last values has them all
ON_PAGE = ("confusion", "embedding_map", "histogram", "reliability")  # kinds that the page shows as a drawing


def write_report(workdir: str | Path) -> Path:
    """Write `<workdir>/report/index.html` and the pictures as PNG files beside it.

    The page is one file without script or outside reference. A run that is unfinished or damaged still gets a page,
    which says what is missing.

    Args:
      workdir: Of a run: any of `config.json`, `run.json`, `metrics.jsonl`, `goodput.json`, `evals/<step>/*.npz`.

    Returns:
      The page's path.

    Raises:
      InputError: `workdir` is not the folder of a run.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 4.2}')
      >>> write_report(folder).name
      'index.html'
    """
    run = load_run(workdir)
    folder = run.workdir / "report"
    folder.mkdir(exist_ok=True)
    drawings = _draw_artifacts(run, folder)
    found = panels(run)[:MOST_PANELS]
    curves = [(panel, style.to_svg(panel_figure(panel), f"curve-{i}")) for i, panel in enumerate(found)]
    for group in dict.fromkeys(panel.group for panel in found):
        style.save_png(panels_figure([p for p in found if p.group == group]), folder / f"curves-{_safe(group)}.png")
    if run.headlines:
        style.save_png(figures.headline(run.headlines), folder / "headline.png")
    if figures.spent(run.goodput):
        style.save_png(figures.goodput(run.goodput), folder / "goodput.png")
    target = folder / "index.html"
    temporary = folder / ".index.html.tmp"
    temporary.write_text(page(run, curves, drawings), encoding="utf-8")
    os.replace(temporary, target)
    return target


def _draw_artifacts(run: Run, folder: Path) -> dict[str, str]:
    """PNG of every artifact of a known kind; SVG for the page, by name. What cannot be drawn becomes a note."""
    drawings = {}
    for item in list(run.pictures):
        if item.kind not in figures.FIGURES:
            run.notes.append(f"{item.name} is of a kind this report has no drawing for ({item.kind}).")
            continue
        try:
            drawn = figures.FIGURES[item.kind](item.arrays)
            style.save_png(drawn, folder / f"{_safe(item.name)}.png")
            if item.kind in ON_PAGE:
                drawings[item.name] = style.to_svg(drawn, item.name)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            run.notes.append(f"{item.name} could not be drawn: {type(error).__name__}: {error}.")
            run.pictures.remove(item)
    return drawings


def _safe(name: str) -> str:
    """A key's part or an artifact's name as a file name."""
    return "".join(c if c.isalnum() or c in "._-@" else "-" for c in name)


def summary_lines(workdir: str | Path) -> list[str]:
    """What to print when a run is over: the metrics beside chance level, and where the page is.

    Args:
      workdir: Of a run.

    Returns:
      Lines of text.

    Raises:
      InputError: `workdir` is not the folder of a run.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> line = '{"step": 9, "eval/test/R@1": 0.5, "eval/test/R@1/chance": 0.01}'
      >>> _ = (folder / "metrics.jsonl").write_text(line)
      >>> summary_lines(folder)[0]
      'test    R@1   50.0 %  =   50x chance (1.0 %)'
    """
    run = load_run(workdir)
    groups: dict[str, list[Headline]] = {}
    for item in run.headlines:
        groups.setdefault(group_of(item.key), []).append(item)
    width = max(map(len, groups), default=0)
    lines = [] if groups else ["No evaluation with a chance level has been logged yet."]
    for name, items in groups.items():
        for i, item in enumerate(items):
            ratio = times_chance(item.ratio).replace("×", "x")
            lines.append(f"{name if i == 0 else '':{width}}  {pretty(item.key.rsplit('/', 1)[-1]):>5}  "
                         f"{percent(item.value):>7}  = {ratio:>5} chance ({percent(item.chance)})")
    target = run.workdir / "report" / "index.html"
    lines.append(f"page: {target}" if target.exists() else f"no page yet: mixcon report {run.workdir}")
    return lines
