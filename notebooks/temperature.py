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
# # Temperature and hardness
#
# A contrastive loss pulls an anchor $q$ to its own other view and pushes everything else away. How hard it pushes each
# negative $k_j$ depends on its cosine $s_j = q \cdot k_j$ through one number, the temperature $\tau$:
#
# $$r_j = \frac{|\partial L / \partial s_j|}{|\partial L / \partial s_+|} = \frac{e^{s_j/\tau}}{\sum_k e^{s_k/\tau}}.$$
#
# All pushes together equal the pull, whatever $\tau$. Cold, the nearest negative gets nearly all of it; hot, all get the
# same. **Move $\tau$.**
#
# ![Negatives on a circle, their share of the push, and how many of them share it](../docs/img/notebooks/temperature.png)

# %%
import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go

import exhibit
from exhibit import GOOD, GRID, INK, MUTED, PAPER, SERIES
from mixcon import evals, objectives

# %% [markdown]
# One anchor at the top of a circle, its positive (green), forty negatives. The bubbles are not drawn from the formula:
# they are the gradient of the loss that training uses.

# %%
NEGATIVES, NEAREST = 40, 8
angle = np.concatenate([[0.22], np.random.default_rng(4).uniform(0.3, 2 * np.pi - 0.3, NEGATIVES)])
place = np.stack([np.sin(angle), np.cos(angle)], 1)
keys = jnp.asarray(place, jnp.float32)
anchor, own = jnp.asarray([[0.0, 1.0]]), jnp.asarray([0])
cosine = np.asarray(keys @ anchor[0])[1:]

losses = {
    "softmax": lambda k, t: objectives.info_nce(anchor, k, temperature=t, positive_index=own),
    f"softmax over the {NEAREST} nearest": lambda k, t: objectives.hard_info_nce(
        anchor, k, temperature=t, top_k=NEAREST, positive_index=own
    ),
    "no hardness": lambda k, t: objectives.simple_contrastive(anchor, k, positive_index=own),
}
slopes = {name: jax.jit(jax.grad(loss)) for name, loss in losses.items()}


def shares(loss, temperature):
    """Push on each negative over the pull on the positive; ∂L/∂k_j = (∂L/∂s_j) q, so its length along q is the push."""
    push = np.asarray(slopes[loss](keys, jnp.float32(temperature)) @ anchor[0])
    return push[1:] / -push[0]


for loss in losses:
    shares(loss, 1.0)  # compiled once; the temperature is an argument

# %% jupyter={"source_hidden": true}
figure = exhibit.panels(
    "area of a bubble = its share of the push", "share against cosine (equal share = 1)", "how many share the push",
    widths=(0.36, 0.36, 0.28), height=480,
)  # fmt: skip
turn = np.linspace(0, 2 * np.pi, 181)
figure.add_scatter(x=np.sin(turn), y=np.cos(turn), mode="lines", line=dict(color=GRID, width=2), row=1, col=1)
figure.add_scatter(x=[0], y=[1], mode="markers", marker=dict(size=15, color=INK, symbol="star"), row=1, col=1)
figure.add_scatter(x=[place[0, 0]], y=[place[0, 1]], mode="markers", marker=dict(size=13, color=GOOD), row=1, col=1)
bubbles = go.Scatter(
    x=place[1:, 0], y=place[1:, 1], mode="markers", customdata=cosine, hovertemplate="cosine %{customdata:.2f}<extra></extra>",
    marker=dict(color=SERIES[1], opacity=0.65, sizemode="area", sizeref=2 / 64**2, sizemin=1.5, line=dict(width=0)),
)  # fmt: skip
figure.add_trace(bubbles, 1, 1)
exhibit.label(figure, "anchor", 0, 1, at=1, yshift=20, xanchor="center")
exhibit.label(figure, "positive", place[0, 0], place[0, 1], at=1, color=GOOD, yshift=14, xshift=8)
exhibit.label(figure, "negatives", 0, 0, at=1, color=SERIES[1], xanchor="center")

grid = np.linspace(-1, 1, 81)
for t in (0.07, 0.3, 1.0):
    line = NEGATIVES * np.exp(grid / t) / np.exp(cosine / t).sum()
    figure.add_scatter(x=grid, y=line, mode="lines", line=dict(color=GRID, width=2), hoverinfo="skip", row=1, col=2)
    height = max(0.03, np.interp(-0.72, grid, line))
    x = np.interp(np.log(height), np.log(line), grid)
    exhibit.label(figure, f"τ = {t}", x, np.log10(height), at=2, color=MUTED, size=12, xanchor="center", bgcolor=PAPER)
formula = go.Scatter(mode="lines", line=dict(color=SERIES[0], width=3), hoverinfo="skip")
gradient = go.Scatter(x=cosine, mode="markers", marker=dict(color=SERIES[1], size=7), hovertemplate="%{y:.2f}<extra></extra>")
figure.add_traces([formula, gradient], rows=[1, 1], cols=[2, 2])
exhibit.label(figure, "● gradient of the loss", 0.04, 0.98, xref="x2 domain", yref="y2 domain", color=SERIES[1])
exhibit.label(figure, "<b>—</b> formula", 0.04, 0.91, xref="x2 domain", yref="y2 domain", color=SERIES[0])

temperatures = np.geomspace(0.02, 3, 61)
figure.add_scatter(mode="lines", line=dict(color=SERIES[0], width=3), x=temperatures, hoverinfo="skip", row=1, col=3)
figure.add_scatter(mode="markers", marker=dict(color=SERIES[1], size=13), hoverinfo="skip", row=1, col=3)
*_, bubbles, _, _, _, formula, gradient, curve, here = figure.data

square = dict(visible=False, range=[-1.25, 1.25])
figure.update_layout(
    xaxis=square, yaxis=square | dict(scaleanchor="x"),
    xaxis2=dict(range=[-1.05, 1.05], title_text="cosine with the anchor"),
    yaxis2=dict(type="log", range=[-2, np.log10(NEGATIVES) + 0.1], tickvals=[0.01, 0.1, 1, 10]),
    xaxis3=dict(type="log", tickvals=[0.02, 0.1, 0.5, 2], title_text="temperature τ"),
    yaxis3=dict(range=[0, NEGATIVES * 1.05]),
)  # fmt: skip


def draw(loss, temperature):
    share = shares(loss, temperature)
    kept = np.where(share > 0, cosine, -np.inf)  # of a hard loss; the closed form, for the line
    logits = dict(temperature=1e6 if loss == "no hardness" else temperature)
    bubbles.update(x=place[1:, 0], y=place[1:, 1], marker_size=share)
    gradient.update(x=cosine, y=np.where(share > 0, NEGATIVES * share, np.nan))
    drawn = np.argsort(cosine)
    formula.update(x=cosine[drawn], y=NEGATIVES * np.where(share > 0, evals.relative_penalty(kept, **logits), np.nan)[drawn])
    number = np.exp([evals.penalty_entropy(kept, temperature=t) for t in temperatures])
    curve.update(x=temperatures, y=np.full_like(temperatures, NEGATIVES) if loss == "no hardness" else number)
    count = np.exp(evals.penalty_entropy(kept, **logits))
    here.update(x=[temperature], y=[count])
    return f"<b>τ = {temperature:.3g}</b>: the push is spread as over <b>{count:.1f}</b> of {NEGATIVES} negatives"


exhibit.Exhibit(
    figure,
    draw,
    temperature=exhibit.log_slider("temperature τ", 0.2, 0.02, 3.0),
    loss=exhibit.choice("loss", list(losses)),
)

# %% [markdown]
# On the right, the number of negatives is $e^{H(r)}$ with the entropy $H(r) = -\sum_j r_j \log r_j$, which rises with
# $\tau$. The two ends of the slider are losses of their own: $\tau \to 0$ a triplet loss on the nearest negative,
# $\tau \to \infty$ the loss without hardness. Keeping only the nearest negatives restores hardness at *any* temperature.
#
# Wang, Liu, *Understanding the Behaviour of Contrastive Loss*, 2021; trained and measured in `configs/contrastive_behaviour.py`.
