"""Curves of a run's metrics: which belong together, and how one panel is drawn."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from mixcon.report import style
from mixcon.report.run import Run, Series, group_of, percent, pretty

NOT_CURVES = {"epoch"}  # a straight line tells nothing
FIRST = ("train", "eval")
SHARES = re.compile(r"R@|top-?\d|acc|recall|mean.per.class|separability")


class Panel(NamedTuple):
    """One picture: a metric, or a family that shares a scale (R@1, R@5, R@10)."""

    group: str  # first part of the keys: train, eval, ...
    title: str
    context: str  # the rest of the path, for people
    curves: dict[str, Series]  # by label, in order
    chance: list[float]

    @property
    def shares(self) -> bool:
        """Whether the values are shares, to be read as percentages."""
        values = np.concatenate([c.values for c in self.curves.values()])
        values = values[np.isfinite(values)]
        named = SHARES.search(self.title) or all(SHARES.search(label) for label in self.curves)
        return bool(named and values.size and values.min() >= 0 and values.max() <= 1)


def panels(run: Run) -> list[Panel]:
    """The panels of a run: train first, then eval, then the rest; the loss before all, shares before other numbers.

    Metrics of one path share a panel when their names differ in a number only (R@1, R@5) or, in an evaluation, when
    they end in the same word (pair_cosine, centroid_cosine); metrics of one name share one across sibling paths (both
    directions of retrieval). What has one point, or one value throughout, has no curve to show.
    """
    families: dict[tuple[str, str], list[str]] = {}
    for key, series in run.series.items():
        leaf = key.rsplit("/", 1)[-1]
        finite = series.values[np.isfinite(series.values)]
        if leaf == "chance" or leaf in NOT_CURVES or finite.size < 2 or np.ptp(finite) == 0:
            continue
        kin = re.sub(r"\d+", "k", leaf)
        if kin == leaf and key.startswith("eval/"):
            kin = leaf.rpartition("_")[2]
        families.setdefault((key.rpartition("/")[0], kin), []).append(key)
    found = []
    siblings: dict[tuple[str, str], dict[str, Series]] = {}
    for (path, leaf), keys in families.items():
        parent, _, last = path.rpartition("/")
        if len(keys) == 1 and "/" in parent:
            siblings.setdefault((parent, keys[0].rsplit("/", 1)[-1]), {})[last] = run.series[keys[0]]
            continue
        keys = sorted(keys, key=lambda k: [int(n) for n in re.findall(r"\d+", k.rsplit("/", 1)[-1])])
        chance = [run.series[f"{k}/chance"].last for k in keys if f"{k}/chance" in run.series]
        shared = f"_{leaf}" if len(keys) > 1 else ""
        curves = {pretty(k.rsplit("/", 1)[-1].removesuffix(shared)): run.series[k] for k in keys}
        title = pretty(leaf) if len(keys) > 1 else next(iter(curves))
        found.append(Panel(path.split("/")[0], title, group_of(keys[0]), curves, chance))
    for (parent, leaf), members in siblings.items():
        path = parent if len(members) > 1 else f"{parent}/{next(iter(members))}"
        curves = {pretty(name): series for name, series in members.items()}
        found.append(Panel(parent.split("/")[0], pretty(leaf), group_of(f"{path}/{leaf}"), curves, []))

    def order(panel: Panel) -> tuple:
        rank = FIRST.index(panel.group) if panel.group in FIRST else len(FIRST)
        return rank, panel.group, panel.title != "loss", not panel.shares, panel.context, panel.title

    return sorted(found, key=order)


def smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Running mean with a Gaussian window, cut at the ends; gaps are left out of it."""
    reach = int(np.ceil(3 * width))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    there = np.isfinite(values)
    total = np.convolve(np.where(there, values, 0), window)[reach:-reach]
    weight = np.convolve(there, window)[reach:-reach]
    return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), np.nan)


def noisy(values: np.ndarray) -> bool:
    """Whether neighbours differ so much that the eye needs a running mean: schedules do not, losses do."""
    values = values[np.isfinite(values)]
    return len(values) > 40 and bool(np.abs(np.diff(values, 2)).mean() > 0.01 * np.ptp(values))


def number(value: float) -> str:
    """Three significant digits, thousands as k."""
    if abs(value) >= 1e6 or (value and abs(value) < 1e-3):
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value / 1000:.3g}k" if abs(value) >= 1e4 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _spread(wanted: Sequence[float], gap: float) -> np.ndarray:
    """Label heights as near to the wanted ones as a least distance allows."""
    order = np.argsort(wanted)
    placed = np.array(wanted, np.float64)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    overflow = placed[-1] - 1 if placed.size and placed[-1] > 1 else 0
    placed -= overflow
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Those that deserve a label of their own: the lowest, and each one clear of the last."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value - kept[-1] > gap:
            kept.append(value)
    return kept


def draw_panel(ax: Axes, panel: Panel) -> None:
    """A panel's curves, labelled at their ends; noisy ones as a pale line with its running mean."""
    write = percent if panel.shares else number
    several = len(panel.curves) > 1
    ordered = several and len(panel.curves) <= len(style.RAMP) and all(re.search(r"\d", k) for k in panel.curves)
    colors = style.RAMP[-len(panel.curves) :] if ordered else style.SERIES
    ends: list[tuple[float, str, str]] = []
    for (label, series), color in zip(panel.curves.items(), (colors * len(panel.curves))[: len(panel.curves)],
                                      strict=True):
        steps, values = _thinned(series)
        shown = values
        if not several and noisy(values):
            shown = smoothed(values, len(values) / 45)
            ax.plot(steps, values, color=color, alpha=0.28, linewidth=0.9)
        marker = "o" if len(values) <= 12 else ""
        ax.plot(steps, shown, color=color, marker=marker, markersize=3.5)
        last = shown[np.isfinite(shown)][-1]
        ends.append((last, f"{label}  {write(last)}" if several else write(last), color))
    for chance in panel.chance:
        ax.axhline(chance, color=style.MUTED, linewidth=1, linestyle=(0, (1, 2)))
    if panel.chance:
        ax.set_ylim(bottom=0)
        ends += [(c, "chance", style.MUTED) for c in _apart(panel.chance, 0.15 * ax.get_ylim()[1])]
    if panel.shares:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    else:
        ticks = ScalarFormatter(useOffset=False)
        ticks.set_powerlimits((-4, 5))
        ax.yaxis.set_major_formatter(ticks)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 1000 else f"{v:g}"))
    ax.set_xlabel("step", loc="right", labelpad=2)
    low, high = ax.get_ylim()
    heights = _spread([max((end[0] - low) / (high - low), 0.04) for end in ends], 0.115)
    for (_, text, color), height in zip(ends, heights, strict=True):
        ax.annotate(text, (1.015, height), xycoords="axes fraction", color=color, va="center", fontsize=9,
                    fontweight="normal" if text == "chance" else "bold", annotation_clip=False)


def _thinned(series: Series, most: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points, each the mean of its neighbours, so that a long run does not make a heavy page."""
    size = -(-len(series.steps) // most)
    if size == 1:
        return series.steps, series.values
    whole = len(series.steps) // size * size
    return (np.append(series.steps[:whole].reshape(-1, size)[:, -1], series.steps[whole:][-1:]),
            np.append(series.values[:whole].reshape(-1, size).mean(1), series.values[whole:][-1:]))


def panel_figure(panel: Panel) -> Figure:
    """One panel by itself, without its title, which the page writes."""
    with style.styled():
        fig = style.figure(3.3, 2.1, fitted=False)
        draw_panel(fig.add_axes(_box(panel, 0, 0, 3.3, 2.1, fig.get_size_inches())), panel)
    return fig


def _box(
    panel: Panel, x: float, y: float, width: float, height: float, sheet: np.ndarray
) -> tuple[float, float, float, float]:
    """Where a panel's axes lie on the sheet: the cell at (x, y) in inches less room for its labels.

    The end labels are the same text in every panel of a size, near enough: a fixed rule aligns the panels.
    """
    several = len(panel.curves) > 1
    right = 0.12 + 0.077 * (max(map(len, panel.curves)) + 8 if several else 6)
    left, bottom, top = 0.48, 0.36, 0.1
    return ((x + left) / sheet[0], (y + bottom) / sheet[1], (width - left - right) / sheet[0],
            (height - bottom - top) / sheet[1])


def panels_figure(chosen: Sequence[Panel]) -> Figure:
    """Several panels on one sheet, for slides."""
    with style.styled():
        columns = min(3, len(chosen))
        rows = -(-len(chosen) // columns)
        width, height, head = 4.0, 2.35, 0.5
        fig = style.figure(width * columns, (height + head) * rows, fitted=False)
        for i, panel in enumerate(chosen):
            x, y = width * (i % columns), (height + head) * (rows - 1 - i // columns)
            draw_panel(fig.add_axes(_box(panel, x, y, width, height, fig.get_size_inches())), panel)
            left, top = (x + 0.12) / fig.get_figwidth(), y + height
            fig.text(left, (top + 0.24) / fig.get_figheight(), panel.title, fontsize=10.5, fontweight="bold")
            fig.text(left, (top + 0.06) / fig.get_figheight(), panel.context, fontsize=8.5, color=style.MUTED)
    return fig
