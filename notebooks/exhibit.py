"""What the notebooks share: one look for plotly figures, a sphere, pictures, and controls that redraw a figure.

Colours are the report's (`mixcon.report.style`). A notebook says `exhibit.Exhibit(figure, draw, **controls)`.
"""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from mixcon.report.style import GOOD, GRID, INK, MUTED, PAPER, RAMP, SERIES

__all__ = [
    "GOOD", "GRID", "INK", "MUTED", "PAPER", "RAMP", "SERIES",
    "Exhibit", "choice", "colored", "globe", "label", "log_slider", "panels", "picture", "slider", "spread_on_sphere", "words",
]  # fmt: skip

FONT = "Inter, 'Source Sans 3', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
GLOBE = "#f3f5f8"


def panels(
    *titles: str,
    widths: Sequence[float] | None = None,
    scenes: Sequence[int] = (),
    height: int = 440,
    gap: float = 0.07,
) -> go.Figure:
    """An empty figure of panels in a row, titles on the left, no legend; panels numbered in `scenes` (from 1) are 3-D."""
    kinds = [{"type": "scene" if i in scenes else "xy"} for i in range(1, len(titles) + 1)]
    figure = make_subplots(1, len(titles), specs=[kinds], column_widths=widths, horizontal_spacing=gap)
    figure.update_layout(
        height=height, width=1080, margin=dict(l=56, r=24, t=92, b=58), showlegend=False, hovermode="closest",
        paper_bgcolor=PAPER, plot_bgcolor=PAPER, font=dict(family=FONT, size=14, color=INK), colorway=list(SERIES),
        title=dict(text=" ", x=0, xref="paper", xanchor="left", y=0.965, yanchor="top", font=dict(size=18)),
    )  # fmt: skip
    axis = dict(
        gridcolor=GRID, zeroline=False, linecolor=GRID, tickfont=dict(size=13, color=MUTED), title_standoff=8,
        title_font=dict(size=14, color=MUTED), fixedrange=True,
    )  # fmt: skip
    figure.update_xaxes(**axis, showgrid=False, showline=True)
    figure.update_yaxes(**axis)
    span = np.asarray(widths if widths is not None else np.ones(len(titles)), float)
    span = span / span.sum() * (1 - gap * (len(titles) - 1))
    lefts = np.concatenate([[0], np.cumsum(span + gap)])[:-1]
    for title, left in zip(titles, lefts, strict=True):
        label(figure, title, left, 1.0, xref="paper", yref="paper", yshift=22, color=MUTED, size=14)
    return figure


def label(
    figure: go.Figure, text: str, x: Any, y: Any, *, color: str = INK, size: int = 14, at: int = 0, **options: Any
) -> None:
    """Words beside what they name; `at` is the number of the panel's axes (0: `xref` and `yref` say it)."""
    number = "" if at == 1 else at
    where = dict(xref=f"x{number}", yref=f"y{number}") if at else {}
    left = dict(xanchor="left", yanchor="middle", align="left")
    figure.add_annotation(
        text=text, x=x, y=y, showarrow=False, font=dict(size=size, color=color), **(where | left | options)
    )


def colored(word: Any, color: str) -> str:
    """A word in the colour of what it names, for headings that spare a legend."""
    return f'<span style="color:{color}"><b>{word}</b></span>'


def globe(figure: go.Figure, at: int, *, opacity: float = 1.0, eye: Sequence[float] = (0.86, 0.72, 0.5)) -> None:
    """A sphere to turn, with meridians and parallels, in panel `at`; below opacity 1 its far side shows, too."""
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 49), np.linspace(0, np.pi, 25))
    ball = 0.985 * np.stack([np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)])
    figure.add_trace(
        go.Surface(
            x=ball[0], y=ball[1], z=ball[2], showscale=False, opacity=opacity, hoverinfo="skip",
            colorscale=[[0, GLOBE], [1, GLOBE]], contours=dict.fromkeys("xyz", dict(highlight=False)),
            lighting=dict(ambient=0.92, diffuse=0.12, specular=0.02, roughness=1, fresnel=0),
        ),
        1, at,
    )  # fmt: skip
    turn, gone = np.linspace(0, 2 * np.pi, 73), [np.nan]
    lines = [
        np.stack([np.cos(turn) * np.sin(a), np.sin(turn) * np.sin(a), np.full_like(turn, np.cos(a))])
        for a in np.pi * np.arange(1, 6) / 6
    ] + [np.stack([np.cos(a) * np.sin(turn), np.sin(a) * np.sin(turn), np.cos(turn)]) for a in np.pi * np.arange(6) / 6]
    x, y, z = (np.concatenate([np.concatenate([line[i], gone]) for line in lines]) for i in range(3))
    figure.add_trace(
        go.Scatter3d(x=x, y=y, z=z, mode="lines", line=dict(color="#d5dae1", width=1.5), hoverinfo="skip"), 1, at
    )
    bare = dict(visible=False, range=[-1.08, 1.08])
    scene = "scene" if at == 1 else f"scene{sum(t.type == 'surface' for t in figure.data)}"
    figure.update_scenes(
        selector=None, xaxis=bare, yaxis=bare, zaxis=bare, aspectmode="manual", aspectratio=dict.fromkeys("xyz", 1.62), dragmode="orbit", bgcolor=PAPER,
        camera=dict(eye=dict(zip("xyz", eye, strict=True)), projection=dict(type="orthographic")), uirevision=scene,
    )  # fmt: skip


def spread_on_sphere(points: Any) -> dict[str, np.ndarray]:
    """Rows [N, 3] as x=, y=, z= of a trace."""
    rows = np.asarray(points, np.float32)
    return dict(x=rows[:, 0], y=rows[:, 1], z=rows[:, 2])


def picture(pixels: Any) -> str:
    """An image, uint8 [h, w, 3] or floats in 0..1, as a PNG in a `data:` address."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def slider(name: str, options: Sequence[Any], value: Any = None) -> widgets.SelectionSlider:
    """A slider over given values; pairs (label, value) say how each is written."""
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return widgets.SelectionSlider(
        description=name, options=options, value=first if value is None else value, layout=dict(width="480px"),
        style=dict(description_width="130px"),
    )  # fmt: skip


def log_slider(name: str, value: float, low: float, high: float, steps: int = 60) -> widgets.SelectionSlider:
    """A slider over positive numbers in equal ratios."""
    values = np.geomspace(low, high, steps + 1)
    nearest = float(values[np.abs(np.log(values / value)).argmin()])
    return slider(name, [(f"{v:.3g}", float(v)) for v in values], nearest)


def choice(name: str, options: Sequence[Any], value: Any = None) -> widgets.ToggleButtons:
    """Buttons of which one is pressed."""
    buttons = widgets.ToggleButtons(
        description=name, options=options, layout=dict(width="900px"),
        style=dict(description_width="130px", button_width="auto"),
    )  # fmt: skip
    if value is not None:
        buttons.value = value
    return buttons


def words(name: str, value: str, suggestions: Sequence[str]) -> widgets.Combobox:
    """A line to type in, answered at every letter, with suggestions."""
    return widgets.Combobox(
        description=name, value=value, options=tuple(suggestions), ensure_option=False, layout=dict(width="480px"),
        style=dict(description_width="130px"),
    )  # fmt: skip


class Exhibit(widgets.VBox):
    """A figure and its controls: `draw(**values)` changes the figure, now and whenever a control moves.

    What `draw` returns, if anything, becomes the figure's headline. It is drawn once before the browser hears of it: a
    widget that is changed before it is shown loses the arrays that do not change.
    """

    shown: ClassVar[list["Exhibit"]] = []

    def __init__(self, figure: go.Figure, draw: Callable[..., str | None], **controls: Any):
        self.plain, self.draw, self.controls = figure, draw, controls
        self.compute()
        self.figure = go.FigureWidget(figure)
        super().__init__([*controls.values(), self.figure])
        for control in controls.values():
            control.observe(self.redraw, names="value")
        Exhibit.shown.append(self)

    def compute(self) -> None:
        """Draw what the controls say, in the figure that the notebook knows."""
        if headline := self.draw(**{name: control.value for name, control in self.controls.items()}):
            self.plain.layout.title.text = headline

    def redraw(self, change: Any = None) -> None:
        """Draw, and send what has changed; the view that a sphere was turned to stays."""
        self.compute()
        with self.figure.batch_update():
            for trace, new in zip(self.figure.data, self.plain.data, strict=True):
                trace.update({key: value for key, value in new.to_plotly_json().items() if key not in ("type", "uid")})
            self.figure.layout.title.text = self.plain.layout.title.text
            for old, new in zip(self.figure.layout.annotations, self.plain.layout.annotations, strict=True):
                old.update(new.to_plotly_json())
