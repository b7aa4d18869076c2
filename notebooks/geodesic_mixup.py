# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Geodesic mixup
#
# Embeddings of pictures and of texts lie in two caps of the sphere, with nothing between them. Mixing a picture $a$ and
# a text $b$ along the great circle through both,
#
# $$m_\lambda(a, b) = \frac{\sin \lambda\theta}{\sin\theta}\, a + \frac{\sin (1-\lambda)\theta}{\sin\theta}\, b,
# \qquad \cos\theta = a \cdot b,$$
#
# gives points in the empty region: negatives that are harder than any real text. The strokes show where the loss moves
# each point. **Turn the sphere; move $\lambda$ and the gap; mix in straight lines, and see the points fall inside.**
#
# ![Two caps on a sphere, points mixed between them, and how hard they are](../docs/img/notebooks/geodesic_mixup.png)

# %%
import jax
import jax.numpy as jnp
import numpy as np

import exhibit
from exhibit import GRID, INK, MUTED, PAPER, SERIES
from mixcon import evals, mixers, objectives

# %%
PAIRS, WIDTH = 60, 0.34
rng = np.random.default_rng(1)
shared, alone = rng.normal(size=(PAIRS, 2)), rng.normal(size=(2, PAIRS, 2))
near = 0.9 * shared[None] + 0.44 * alone  # what a picture and its text have in common, and what not


@jax.jit
def caps(angle):
    """Pictures and texts [PAIRS, 3]: two caps whose centres are so many radians apart."""

    def cap(turn, offset):
        flat = jnp.concatenate([jnp.ones((PAIRS, 1)), WIDTH * offset[:, ::-1]], axis=1)
        points = mixers.normalise(flat)
        c, s = jnp.cos(turn), jnp.sin(turn)
        return points @ jnp.asarray([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    return cap(-angle / 2, jnp.asarray(near[0])), cap(angle / 2, jnp.asarray(near[1]))


@jax.jit
def mixtures(image, text, share):
    """Every picture with a text, its own; on the sphere by the policy that training uses, and in a straight line."""
    plan = mixers.Plan(jnp.arange(PAIRS), jnp.full(PAIRS, share))
    return mixers.geodesic_mix(plan, image, bank=text), mixers.mix(plan, image, bank=text)


@jax.jit
def loss_and_push(image, text, share):
    """m2-Mix as training has it: its loss and metrics, and where a step against its gradient moves every point."""
    loss = lambda image, text: objectives.m2mix(image, text, share, logit_scale=1 / 0.07, has_aux=True)
    (value, metrics), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(image, text)
    points, slope = jnp.concatenate([image, text]), jnp.concatenate(slopes)
    along = (slope * points).sum(1, keepdims=True) * points  # off the sphere: no matter
    return value, metrics, along - slope


@jax.jit
def arcs(image, text):
    """Great circles from some pictures to their texts, with breaks between them."""
    steps = jnp.linspace(0, 1, 25)
    lines = mixers.slerp(jnp.repeat(image[::6, None], 25, 1), jnp.repeat(text[::6, None], 25, 1), jnp.tile(steps, (10, 1)))
    return jnp.pad(lines, ((0, 0), (0, 1), (0, 0)), constant_values=jnp.nan).reshape(-1, 3)


# %% jupyter={"source_hidden": true}
named = [exhibit.colored(name, color) for name, color in zip(("pictures", "mixtures", "texts"), np.take(SERIES, [0, 2, 1]), strict=True)]
figure = exhibit.panels(f"{', '.join(named)}: drag to turn", "cosine of a picture with …", widths=(0.56, 0.44), scenes=(1,), height=540)
exhibit.globe(figure, 1, opacity=0.35, eye=(1.15, 0.1, 0.5))
for color, size in ((SERIES[0], 4), (SERIES[1], 4), (SERIES[2], 5.5)):
    figure.add_scatter3d(mode="markers", marker=dict(size=size, color=color), hoverinfo="skip", row=1, col=1)
figure.add_scatter3d(mode="lines", line=dict(color=MUTED, width=2), hoverinfo="skip", row=1, col=1)
for color in SERIES[:2]:
    figure.add_scatter3d(mode="lines", line=dict(color=color, width=3), hoverinfo="skip", row=1, col=1)
edges = np.linspace(-1, 1, 41)
rows = (("its own text", SERIES[1]), ("other texts", SERIES[1]), ("mixed negatives", SERIES[2]), ("other pictures", SERIES[0]))
for level, (name, color) in enumerate(rows):
    base = len(rows) - 1 - level
    figure.add_scatter(mode="lines", fill="toself", line=dict(color=color, width=1.5), hoverinfo="skip", row=1, col=2)
    exhibit.label(figure, name, -1, base + 0.42, at=1, color=color)
pictures, texts, mixed, arc, *strokes = figure.data[2:8]
hills = figure.data[8:]
hills[1].fillcolor = "rgba(213,94,0,0.15)"
figure.update_layout(
    xaxis=dict(range=[-1, 1.02], tickvals=[-1, -0.5, 0, 0.5, 1], title_text="cosine: the further right, the harder to tell apart"),
    yaxis=dict(visible=False, range=[-0.1, len(rows) + 0.1]),
)
off = ~np.eye(PAIRS, dtype=bool)
STROKE = 0.35  # length of the longest


def hill(values, base):
    """A histogram as an outline on a base line, 0.85 at its highest."""
    count = np.histogram(values, edges)[0].astype(float)
    smooth = np.convolve(count, [0.25, 0.5, 0.25], mode="same")
    x = np.concatenate([[-1], (edges[:-1] + edges[1:]) / 2, [1]])
    y = np.concatenate([[0], 0.85 * smooth / max(smooth.max(), 1e-9), [0]])
    return dict(x=x, y=base + y)


def draw(share, angle, way):
    image, text = caps(angle)
    round_, straight = mixtures(image, text, share)
    between = round_ if way == "along the sphere" else straight
    for trace, points in ((pictures, image), (texts, text), (mixed, between)):
        trace.update(**exhibit.spread_on_sphere(points))
    arc.update(**exhibit.spread_on_sphere(arcs(image, text)))
    loss, metrics, push = loss_and_push(image, text, share)
    image, text, between, push = (np.asarray(rows) for rows in (image, text, between, push))
    long = STROKE * push / np.linalg.norm(push, axis=1).max()
    for trace, points, moved in zip(strokes, (image, text), np.split(long, 2), strict=True):
        ends = np.stack([points, points + moved, np.full_like(points, np.nan)], 1).reshape(-1, 3)
        trace.update(**exhibit.spread_on_sphere(ends))
    cosines = ((image * text).sum(1), (image @ text.T)[off], (image @ between.T)[off], (image @ image.T)[off])
    for base, (trace, values) in enumerate(zip(hills[::-1], cosines[::-1], strict=True)):
        trace.update(**hill(values, base))
    if way == "in a straight line":
        return f"mixtures of length <b>{np.linalg.norm(between, axis=1).mean():.2f}</b>: inside the sphere, where no embedding is"
    gap = evals.modality_gap(image, text)["centroid_distance"]
    plain, harder = (round(float(metrics[name]), 2) + 0.0 for name in ("unmixed_negative_cosine", "negative_cosine"))
    return (
        f"gap <b>{gap:.2f}</b>; loss of m²-Mix <b>{loss:.1f}</b>; "
        f"mean cosine of a negative: text <b>{plain:.2f}</b>, mixed <b>{harder:.2f}</b>"
    )


exhibit.Exhibit(
    figure,
    draw,
    share=exhibit.slider("share λ of a", [(f"{v:.2f}", float(v)) for v in np.linspace(0, 1, 21)], 0.5),
    angle=exhibit.slider("gap between caps", [(f"{v}°", float(np.deg2rad(v))) for v in range(0, 151, 10)], float(np.deg2rad(90))),
    way=exhibit.choice("mix", ["along the sphere", "in a straight line"]),
)

# %% [markdown]
# In $m^2$-Mix a picture's own text stays its positive, and the negatives are the *other* pairs' mixtures. They are harder
# than other texts as long as there is a gap; without one, mixing makes no difference. So the loss fills the gap, and
# stops: against its gradient, the strokes, the caps move together wherever the two upper sliders stand (but at
# $\lambda = 0$ and 150°), and hardly at all once there is no gap. How the hills order themselves is all there is to it:
# look for the gap at which green and orange meet. What it does to real encoders: `configs/geodesic_mixup.py`.
#
# Oh et al., *Geodesic Multi-Modal Mixup for Robust Fine-Tuning*, 2023.
