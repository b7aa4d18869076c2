"""A drawing for every kind of artifact, and for headline metrics and goodput: arrays in, figure out."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from scipy import ndimage

from mixcon.report import style
from mixcon.report.run import Headline, duration, group_of, percent, pretty, times_chance

Arrays = Mapping[str, np.ndarray]
ON_STRONG = "#fefefe"  # near-white text that stays so in the dark theme, unlike style.PAPER
MAP = (9.2, 6.0)  # inches
MEASURE = RendererAgg(1, 1, 72)
SPENT = ("step", "compile", "startup", "data_wait", "eval", "checkpoint", "other")


def _cut(text: str, most: int) -> str:
    """Text on one line, shortened."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _wrapped(text: str, size: float, weight: str, width: float, lines: int) -> str:
    """Text broken to a width in inches by its own measure: scripts differ twofold in the width of a letter."""
    text = _cut(text, 400)
    font = FontProperties(weight=weight, size=size)
    inches = MEASURE.get_text_width_height_descent(text, font, ismath=False)[0] / MEASURE.dpi if text else 0.0
    if inches <= width:
        return text
    letters = max(4, int(0.94 * width / inches * len(text)))
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" …"))


def without_ground(image: np.ndarray, threshold: int = 246) -> np.ndarray:
    """uint8 [h, w, 3] to [h, w, 4]: a near-white ground that touches the border becomes transparent.

    Glyphs on white then sit on any background; white inside the picture stays.
    """
    parts, _ = ndimage.label((image >= threshold).all(-1))
    border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    ground = np.isin(parts, border[border > 0])
    return np.dstack([image, np.where(ground, 0, 255).astype(np.uint8)])


def retrieval_grid(arrays: Arrays) -> Figure:
    """One row per query: the query, its first K results with the right ones framed, and the truth."""
    correct = arrays["result_correct"]
    rows, columns = correct.shape
    as_images = "result_images" in arrays
    # Cells of one unit; texts need less height and more width than thumbnails.
    wide, high = (1.0, 1.0) if as_images else (2.1, 0.62)
    first = 2.4 if "query_texts" in arrays else 1.15
    high = max(high, 0.92 if "query_images" in arrays else 0)
    gap = 0.32
    width = first + gap + columns * wide + gap + wide
    scale = min(1.0, 11 / width)
    with style.styled():
        fig = style.figure(width * scale, (rows * high + 0.5) * scale, fitted=False)
        ax = fig.add_axes((0, 0, 1, 1))  # one unit is `scale` inches: texts are wrapped to what they measure
        style.bare(ax)
        ax.set(xlim=(0, width), ylim=(rows * high + 0.05, -0.45))
        left = [first + gap + j * wide for j in range(columns)]
        last = first + gap + columns * wide + gap
        size = 10 * scale
        for x, text in [(0, "query"), *zip(left, map(str, range(1, columns + 1)), strict=True), (last, "truth")]:
            ax.text(x + 0.06, -0.16, text, color=style.MUTED, fontsize=size)
        for i in range(rows):
            y = i * high
            _cell(ax, arrays, "query", (i,), (0, y, first, high), size * 1.05, scale)
            for j in range(columns):
                frame = style.GOOD if correct[i, j] else None
                _cell(ax, arrays, "result", (i, j), (left[j], y, wide, high), size, scale, frame)
            _cell(ax, arrays, "truth", (i,), (last, y, wide, high), size, scale)
    return fig


def _cell(
    ax: Axes, arrays: Arrays, side: str, index: tuple, box: tuple, size: float, scale: float, frame: str | None = None
) -> None:
    x, y, wide, high = box
    if f"{side}_images" in arrays:
        edge = min(wide, high) - 0.16
        x0, y0 = x + 0.08, y + 0.08
        ax.imshow(arrays[f"{side}_images"][index], extent=(x0, x0 + edge, y0 + edge, y0), interpolation="lanczos",
                  zorder=2, aspect="auto")
        outline = (x0 - 0.02, y0 - 0.02, edge + 0.04, edge + 0.04)
    else:
        outline = (x + 0.03, y + 0.05, wide - 0.06, high - 0.1)
        weight = "bold" if side == "query" or frame else "normal"
        color = style.GOOD if frame else style.INK if side != "result" else style.MUTED
        lines = 3 if high > 0.9 else 2
        text = _wrapped(str(arrays[f"{side}_texts"][index]), size, weight, (wide - 0.24) * scale, lines)
        ax.text(x + 0.12, y + high / 2, text, va="center", fontsize=size, color=color, zorder=3, fontweight=weight,
                linespacing=1.15)
    if frame or (side == "result" and f"{side}_images" in arrays):
        patch = FancyBboxPatch(outline[:2], *outline[2:], boxstyle="round,pad=0,rounding_size=0.07", fill=False,
                               edgecolor=frame or style.GRID, linewidth=2.2 if frame else 0.8, zorder=4)
        ax.add_patch(patch)


def confusion(arrays: Arrays) -> Figure:
    """Row-normalised confusion matrix: row = truth, column = prediction; counts where they fit."""
    counts, names = arrays["matrix"].astype(np.float64), [_cut(n, 22) for n in arrays["names"]]
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = float(np.clip(0.42 * classes + 1.6, 3.6, 8.5))
    # Transparent to blue, not white to blue: the page's ground shows through in both themes.
    blue = to_rgb(style.SERIES[0])
    colors = LinearSegmentedColormap.from_list("depth", [(*blue, 0.0), (*blue, 1.0)])
    with style.styled():
        fig = style.figure(size + 0.6, size)
        ax = fig.add_subplot()
        ax.imshow(shares, cmap=colors, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
        ax.grid(False)
        ax.add_patch(Rectangle((-0.5, -0.5), classes, classes, fill=False, edgecolor=style.GRID, linewidth=1))
        ax.spines[:].set_visible(False)
        ax.set_xlabel("predicted", labelpad=8)
        ax.set_ylabel("true", labelpad=8)
        if classes <= 40:
            letters = 8.5 if classes <= 20 else 6
            ax.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=letters)
            ax.set_yticks(range(classes), names, fontsize=letters)
        else:
            ax.set(xticks=[], yticks=[], xlabel=f"predicted ({classes} classes)")
        if classes <= 16:
            for i, j in np.argwhere(counts > 0):
                color = ON_STRONG if shares[i, j] > 0.55 else style.INK
                ax.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    return fig


def embedding_map(arrays: Arrays) -> Figure:
    """Images (dots) and texts (diamonds) in one plane, by class; thumbnails where there is room."""
    image, text = arrays["image_xy"], arrays["text_xy"]
    labels = arrays.get("labels", np.zeros(len(image), np.int64))
    names = [str(n) for n in arrays.get("names", np.array([""]))]
    commonest = np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")[: len(style.SERIES)]
    color_of = {int(c): style.SERIES[i] for i, c in enumerate(commonest)}
    colors = [color_of.get(int(c), style.MUTED) for c in labels]
    points = np.concatenate([image, text])
    span = np.ptp(points, axis=0)
    span = np.where(span > 0, span, 1)
    size = float(np.clip(2600 / len(image), 6, 36))
    with style.styled():
        fig = style.figure(*MAP)
        ax = fig.add_subplot()
        style.bare(ax)
        low, high = points.min(0) - 0.05 * span, points.max(0) + 0.05 * span
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        ax.scatter(image[:, 0], image[:, 1], c=colors, s=size, alpha=0.75, linewidths=0, rasterized=True)
        ax.scatter(text[:, 0], text[:, 1], c="none", edgecolors=colors, s=size * 1.1, alpha=0.75, linewidths=0.8,
                   marker="D", rasterized=True)
        taken = _class_names(ax, (image - low) / (high - low), labels, names, color_of) if "labels" in arrays else []
        if "thumbnails" in arrays:
            _thumbnails(ax, arrays, (image - low) / (high - low), taken)
        handles = [ax.scatter([], [], color=style.MUTED, s=28, label="image"),
                   ax.scatter([], [], facecolors="none", edgecolors=style.MUTED, s=28, marker="D", label="text")]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1.06), ncols=2, frameon=False, fontsize=9,
                  labelcolor=style.MUTED, handletextpad=0.2, columnspacing=1.2, borderaxespad=0)
    return fig


def _thumbnails(ax: Axes, arrays: Arrays, place: np.ndarray, named: list[tuple[float, float, float]]) -> None:
    """Thumbnails over their points, skipping those that would cover an earlier one or a class's name."""
    taken: list[np.ndarray] = []
    for row, picture in zip(arrays["thumbnail_index"], arrays["thumbnails"], strict=True):
        at = place[row] * MAP
        dx, dy = (0.12, 0.24)  # half a thumbnail, and half a line of text besides
        clear = (abs(at[0] - MAP[0] * x) > MAP[0] * h + dx or abs(at[1] - MAP[1] * y) > dy for x, y, h in named)
        if all(clear) and all(np.max(np.abs(at - other)) > 0.36 for other in taken):
            taken.append(at)
            box = OffsetImage(without_ground(picture), zoom=0.3 * 72 / max(picture.shape[:2]), interpolation="lanczos")
            ax.add_artist(AnnotationBbox(box, arrays["image_xy"][row], frameon=False, pad=0, zorder=3))


def _class_names(
    ax: Axes, place: np.ndarray, labels: np.ndarray, names: Sequence[str], color_of: Mapping[int, str]
) -> list[tuple[float, float, float]]:
    """Each class's name at the median of its images, moved apart where names would collide: (x, y, half width)."""
    centres = {c: np.median(place[labels == c], axis=0) for c in color_of if (labels == c).any()}
    placed: list[tuple[float, float, float]] = []
    for c in sorted(centres, key=lambda k: centres[k][1]):
        text = _cut(names[c], 28)
        half = 0.0052 * len(text) + 0.01
        x, y = np.clip(centres[c], (half, 0.04), (1 - half, 0.96))
        while any(abs(x - px) < half + ph and abs(y - py) < 0.045 for px, py, ph in placed):
            y += 0.012
        placed.append((float(x), float(y), half))
        ax.text(x, y, text, transform=ax.transAxes, color=color_of[c], fontsize=10, fontweight="bold", ha="center",
                va="center", zorder=5, path_effects=[withStroke(linewidth=3.5, foreground=style.PAPER)])
    return placed


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a matching pair scores above a non-matching one; ties count half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(negative))


def histogram(arrays: Arrays) -> Figure:
    """Similarities of matching and of other pairs, each as shares per bin, labelled where they peak."""
    positive, negative = arrays["positive"], arrays["negative"]
    values = np.concatenate([positive, negative])
    edges = np.linspace(values.min(), values.max() + 1e-9, 48)
    with style.styled():
        fig = style.figure(5.4, 3.9)
        ax = fig.add_subplot()
        sides = (("other pairs", negative, style.SERIES[1]), ("matching pairs", positive, style.SERIES[0]))
        peaks = []
        for label, sample, color in sides:
            share = np.histogram(sample, edges)[0] / len(sample)
            ax.stairs(share, edges, fill=True, color=color, alpha=0.28)
            ax.stairs(share, edges, color=color, linewidth=1.6)
            peaks.append((edges[share.argmax()] + (edges[1] - edges[0]) / 2, share.max(), label, color))
        ax.set_ylim(0, 1.16 * max(p[1] for p in peaks))
        for x, y, label, color in peaks:
            toward = "left" if x < edges.mean() else "right"
            ax.annotate(label, (x, y), (0, 5), textcoords="offset points", color=color, fontweight="bold",
                        ha=toward, va="bottom", path_effects=[withStroke(linewidth=3, foreground=style.PAPER)])
        ax.set_xlabel(_cut(str(arrays.get("label", "similarity")), 60), loc="right")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    return fig


def reliability(arrays: Arrays) -> Figure:
    """Accuracy of each bin of confidence against the diagonal; the fainter a bar, the fewer examples it stands for."""
    count, accuracy, bins = arrays["count"], arrays["accuracy"], len(arrays["count"])
    with style.styled():
        fig = style.figure(4.4, 3.9)
        ax = fig.add_subplot()
        for i in np.flatnonzero(count):
            weight = 0.2 + 0.7 * (count[i] / count.max()) ** 0.5
            ax.bar((i + 0.5) / bins, accuracy[i], 0.92 / bins, color=style.SERIES[0], alpha=weight)
        ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1.2)
        seen = count > 0
        ax.plot(arrays["confidence"][seen], accuracy[seen], "o", markersize=4, color=style.SERIES[1])
        ax.set(xlim=(0, 1), ylim=(0, 1.02))
        ax.text(0.03, 0.97, f"ECE {percent(float(arrays['ece']))}", va="top", fontweight="bold")
        ax.set_xlabel("confidence", loc="right")
        ax.set_ylabel("right", loc="top")
    return fig


def table(arrays: Arrays) -> Figure:
    """A table, columns as wide as their longest cell."""
    head, rows = arrays["columns"], arrays["rows"]
    cells = [[_cut(v, 48) for v in row] for row in [head, *rows[:40]]]
    widths = [max(len(row[j]) for row in cells) + 3 for j in range(len(head))]
    starts = np.concatenate([[0], np.cumsum(widths)])
    with style.styled():
        fig = style.figure(max(2.5, 0.085 * starts[-1]), 0.27 * len(cells) + 0.2)
        ax = fig.add_subplot()
        style.bare(ax)
        ax.set(xlim=(0, starts[-1]), ylim=(len(cells), 0))
        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                ax.text(starts[j], i + 0.5, value, va="center", color=style.INK if i else style.MUTED,
                        fontsize=9 if i else 8.5)
            ax.axhline(i + 1, color=style.GRID, linewidth=1.2 if i == 0 else 0.6)
    return fig


def headline(found: Sequence[Headline]) -> Figure:
    """Each metric against chance on a logarithmic scale: the distance is what was learned."""
    groups: dict[str, list[Headline]] = {}
    for item in found:
        groups.setdefault(group_of(item.key), []).append(item)
    rows: list[Headline | str] = []
    for name, items in groups.items():
        rows += [name, *items]
    low = min([i.chance for i in found if i.chance > 0] + [i.value for i in found if i.value > 0], default=1e-3)
    with style.styled():
        fig = style.figure(6.8, 0.3 * len(rows) + 0.55)
        ax = fig.add_subplot()
        ax.set(xscale="log", xlim=(low / 1.6, 1.02), ylim=(len(rows) - 0.4, -0.7))
        for y, row in enumerate(rows):
            if isinstance(row, str):
                ax.text(-0.13, y, row, transform=ax.get_yaxis_transform(), fontweight="bold", va="center")
                continue
            value, chance = max(row.value, low / 1.6), max(row.chance, low / 1.6)
            ax.plot([chance, value], [y, y], color=style.SERIES[0], linewidth=2.4)
            ax.plot(chance, y, "o", color=style.PAPER, markeredgecolor=style.MUTED, markersize=6, markeredgewidth=1.4)
            ax.plot(value, y, "o", color=style.SERIES[0], markersize=7, clip_on=False)
            ax.text(-0.02, y, pretty(row.key.rsplit("/", 1)[-1]), transform=ax.get_yaxis_transform(), ha="right",
                    va="center", color=style.MUTED)
            ax.text(1.03, y, percent(row.value), transform=ax.get_yaxis_transform(), va="center", fontweight="bold")
            ax.text(1.16, y, f"{times_chance(row.ratio)} chance", transform=ax.get_yaxis_transform(), va="center",
                    color=style.MUTED)
        ax.set_yticks([])
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
        ax.xaxis.minorticks_off()
        ax.set_xlabel("open: chance     filled: measured", loc="right")
    return fig


def spent(goodput: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Where the wall time went: (what, seconds, share), in a fixed order, nothing of zero length."""
    seconds = {k: goodput[k] for k in SPENT if goodput.get(k, 0) > 0}
    seconds |= {k: v for k, v in goodput.items() if k not in (*SPENT, "total", "loop_overhead") and v > 0}
    total = max(goodput.get("total", 0.0), sum(seconds.values()), 1e-9)
    return [(pretty(k), v, v / total) for k, v in seconds.items()]


def goodput(seconds: Mapping[str, float]) -> Figure:
    """One bar of the wall time with its key below."""
    parts = spent(seconds)
    with style.styled():
        fig = style.figure(9.2, 1.2, fitted=False)
        ax = fig.add_axes((0.015, 0.02, 0.97, 0.96))
        style.bare(ax)
        ax.set(xlim=(0, 1), ylim=(0, 1))
        start = 0.0
        for i, (name, length, share) in enumerate(parts):
            color, at = style.SERIES[i % len(style.SERIES)], i / len(parts)
            ax.barh(0.78, share, left=start, height=0.34, color=color, edgecolor=style.PAPER, linewidth=1.5)
            ax.add_patch(Rectangle((at, 0.38), 0.012, 0.1, color=color))
            ax.text(at + 0.018, 0.43, name, fontsize=9, va="center", fontweight="bold")
            ax.text(at + 0.018, 0.23, f"{percent(share)} · {duration(length)}", fontsize=8.5, va="center",
                    color=style.MUTED)
            start += share
    return fig


FIGURES: dict[str, Callable[[Arrays], Figure]] = {
    "retrieval_grid": retrieval_grid,
    "confusion": confusion,
    "embedding_map": embedding_map,
    "histogram": histogram,
    "reliability": reliability,
    "table": table,
}
