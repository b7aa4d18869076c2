"""One look for every picture: colours, type, and a figure's way to PNG and to theme-aware SVG.

Pictures are drawn once, in the light theme. For the page they become inline SVG in which each colour of the palette is
a CSS variable and text is text in the page's own font, so that one drawing serves light, dark, desktop and phone.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

INK, MUTED, GRID, PAPER = "#1b1f24", "#667180", "#e4e7eb", "#ffffff"
# Okabe and Ito's colours, told apart under the common colour-vision deficiencies; then three more for many classes.
SERIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f5f3f", "#5f7f1f",
)  # fmt: skip
# Ordered members of one family (R@1, R@5, R@10): one hue, deeper with k.
RAMP = ("#6aa9d4", "#2f7fb8", "#0a4f87")
GOOD, BAD = "#1a8a5a", "#c2453a"

DARK = {
    INK: "#e8eaed", MUTED: "#9aa4b2", GRID: "#2d343d", PAPER: "#14181d",
    SERIES[0]: "#4da9e6", SERIES[1]: "#ff8f4d", SERIES[2]: "#3ccf9f", SERIES[3]: "#e6a3c8", SERIES[4]: "#f3c04d",
    SERIES[5]: "#8fd0f5", SERIES[6]: "#b79be0", SERIES[7]: "#c19a6b", SERIES[8]: "#a4c25a",
    RAMP[0]: "#3f6f92", RAMP[1]: "#5fa5d6", RAMP[2]: "#b5dcf7",
    GOOD: "#4cc38a", BAD: "#f0796c",
}  # fmt: skip
VARIABLES = {color: f"--k{i}" for i, color in enumerate(DARK)}


def _fonts() -> list[str]:
    """The installed ones among the wished for; asking matplotlib for absent fonts fills the log with warnings."""
    wished = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans",
              "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari")
    present = set(font_manager.get_font_names())
    return [name for name in wished if name in present] or ["sans-serif"]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """matplotlib's settings for all pictures, undone on leaving.

    Characters that no installed font has become boxes, in PNG only, and without a warning for each: the page has them.
    """
    settings: Any = {
        "font.family": _fonts(),
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.titlepad": 8,
        "axes.labelsize": 9,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "figure.facecolor": PAPER,
        "figure.dpi": 100,
        "svg.fonttype": "none",
        "text.parse_math": False,  # a caption's dollar signs are dollar signs
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(width: float, height: float, *, fitted: bool = True) -> Figure:
    """An empty figure in inches, free of pyplot: nothing to close, nothing global.

    `fitted` lets matplotlib make room for labels, which takes half the drawing time; without it the caller places axes.
    """
    fig = Figure(figsize=(width, height), layout="constrained" if fitted else None)
    if fitted:
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return fig


def bare(ax: Axes) -> None:
    """No axis, ticks, grid or frame."""
    ax.set_axis_off()
    ax.grid(False)


def save_png(fig: Figure, path: Path) -> None:
    """A picture for slides: white ground, 200 dots per inch."""
    with styled():
        fig.savefig(path, dpi=200, facecolor=PAPER)


def to_svg(fig: Figure, label: str) -> str:
    """The figure as inline SVG: palette colours as CSS variables, ids unique to `label`, no outside reference.

    Outlines of text are dropped, since matplotlib would turn such text into shapes; the style sheet draws them.
    """
    for text in fig.findobj(Text):
        text.set_path_effects([])
    buffer = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": label}):
        fig.savefig(buffer, format="svg", transparent=True, dpi=160, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", svg))
    svg = re.sub(r' id="([\w.:-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    for color, variable in VARIABLES.items():
        svg = re.sub(f"{color}(?![0-9a-f])", f"var({variable})", svg, flags=re.IGNORECASE)
    # The page gives size and font. Namespace declarations are names, not addresses, and inline SVG does not need them.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'^<svg width="[^"]*" height="[^"]*"|^<svg height="[^"]*"', "<svg", svg)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)


def css_variables() -> str:
    """The palette as CSS, light and dark."""
    light = "".join(f"{variable}:{color};" for color, variable in VARIABLES.items())
    dark = "".join(f"{VARIABLES[color]}:{other};" for color, other in DARK.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
