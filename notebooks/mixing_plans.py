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
# # A batch is a matrix
#
# Mixup, CutMix and their relatives draw one thing for a batch: a *plan*, which says of whom each example is made. A plan
# is a matrix $M$ with rows that sum to one, and the same $M$ mixes everything: pictures $x' = Mx$, labels $y' = My$, and
# the matrix of positives of a contrastive loss, $T' = MT$, $TM^\top$ or $MTM^\top$. Nothing else has to be known about
# a mixing policy. **Choose a policy, draw again, mix the other side.**
#
# ![Eight pictures, their mixing matrix and the matrix of positives](../docs/img/notebooks/mixing_plans.png)

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import exhibit
from exhibit import SERIES
from mixcon import mixers
from mixcon.data.emoji import Emoji

# %% [markdown]
# Eight pictures with names, two of each kind.

# %%
NAMES = ("red apple", "lemon", "dog face", "cat face", "tulip", "sunflower", "locomotive", "bus")
source = Emoji("both", "all")
records = {r["text"]: r for r in map(source.__getitem__, range(len(source))) if r["text"] in NAMES}
images = jnp.asarray(np.stack([records[name]["image"] for name in NAMES]), jnp.float32) / 255
kinds, B = jnp.arange(8) // 2, len(NAMES)

policies = {
    "mixup": partial(mixers.mixup, per="example"),
    "CutMix": partial(mixers.cutmix, per="example"),
    "FMix": partial(mixers.fmix, per="example"),
    "ResizeMix": partial(mixers.resizemix, per="example"),
    "three at once": partial(mixers.simplex_mixup, num_sources=3),
}
SIDES = {"pictures": "rows", "names": "columns", "both": "both"}


@partial(jax.jit, static_argnames="policy")
def draw_plan(policy, alpha, seed):
    """A plan, as training draws it, and the pictures it mixes."""
    plan = policies[policy](jax.random.key(seed), images, alpha=alpha)
    return plan, mixers.mix(plan, images)


@partial(jax.jit, static_argnames="sides")
def matrices(shares, sides, labels):
    """M, and the positives T' that the loss is given; here in full, in training one tile at a time."""
    positives = mixers.mix_pairs(shares, side=SIDES[sides], labels=labels)
    return mixers.mix(shares, jnp.eye(B)), positives.matrix(B, B)


for policy in policies:  # compiled once
    plan, _ = draw_plan(policy, 1.0, 0)
    for sides in SIDES:
        matrices(mixers.Plan(plan.partner, plan.weight), sides, kinds)

# %% jupyter={"source_hidden": true}
figure = exhibit.panels("M: of whom each picture is made", "T′: whose name counts as right", widths=(0.5, 0.5), height=600, gap=0.06)
PIXELS = images.shape[1]


def strip(pictures, down):
    """Pictures in a row, or down a column, as one."""
    return exhibit.picture(np.concatenate(list(np.asarray(pictures)), axis=0 if down else 1))


for at, color in ((1, SERIES[0]), (2, SERIES[1])):
    shades = [[0, "#f6f7f9"], [1, color]]
    figure.add_heatmap(
        zmin=0, zmax=1, colorscale=shades, showscale=False, xgap=2, ygap=2, texttemplate="%{text}", hoverinfo="skip",
        textfont=dict(size=13), row=1, col=at,
    )  # fmt: skip
    figure.add_image(x0=-1.5, y0=-0.5, dx=1 / PIXELS, dy=1 / PIXELS, hoverinfo="skip", row=1, col=at)
    if at == 1:
        figure.add_image(x0=-0.5, y0=-1.5, dx=1 / PIXELS, dy=1 / PIXELS, hoverinfo="skip", row=1, col=at)
for place, name in enumerate(NAMES):
    exhibit.label(figure, name, place - 0.15, -0.6, at=2, size=13, textangle=-40, xanchor="left", yanchor="bottom")
heat_m, rows_m, columns_m, heat_t, rows_t = figure.data
columns_m.source = strip(images, down=False)
axis = dict(visible=False, range=[-1.6, 8.3])
figure.update_layout(
    xaxis=axis, xaxis2=axis, yaxis=axis | dict(range=[7.6, -1.8], scaleanchor="x"),
    yaxis2=axis | dict(range=[7.6, -1.8], scaleanchor="x2"),
)  # fmt: skip


def written(share):
    """A share as it stands in a cell."""
    return "" if share < 0.005 else f"{share:.2f}".removeprefix("0").removesuffix(".00")


def shown(matrix):
    """A matrix of shares, and what is written into its cells."""
    return dict(z=np.asarray(matrix), text=[[written(share) for share in row] for row in matrix.tolist()])


def draw(policy, alpha, seed, sides, positives):
    plan, pictures = draw_plan(policy, alpha, seed)
    made_of, counts = matrices(mixers.Plan(plan.partner, plan.weight), sides, kinds if positives == "of its kind" else jnp.arange(B))
    heat_m.update(**shown(made_of))
    heat_t.update(**shown(counts))
    rows_m.source = made = strip(pictures, down=True)
    rows_t.source = made if sides != "names" else strip(images, down=True)
    formula = {"pictures": "M T", "names": "T Mᵀ", "both": "M T Mᵀ"}[sides]
    return f"<b>{policy}</b>: x′ = M x, and T′ = <b>{formula}</b>"


exhibit.Exhibit(
    figure,
    draw,
    policy=exhibit.choice("policy", list(policies)),
    alpha=exhibit.log_slider("α of Beta(α, α)", 1.0, 0.1, 10),
    seed=exhibit.slider("draw", range(20), 3),
    sides=exhibit.choice("mixed are", list(SIDES)),
    positives=exhibit.choice("right is a name", ["of its own", "of its kind"]),
)

# %% [markdown]
# `mix_pairs` does not form these matrices. It returns partners and shares, from which the engine builds a tile when it
# needs one: `ops.contrastive_cross_entropy(image, text, scale=..., positives=mixers.mix_pairs(plan))` costs what the
# loss costs without mixing.
