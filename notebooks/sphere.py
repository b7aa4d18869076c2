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
# # The uniformity–tolerance dilemma, on a sphere you can turn
#
# A contrastive loss never sees a label. It spreads embeddings over the sphere (*uniformity*), and so pushes apart what
# belongs together; or it leaves neighbours alone (*tolerance*), and crowds them. The temperature chooses. Below, one
# small network sees four kinds of handwritten digits, without their labels, and embeds them in three dimensions; it was
# trained at seven temperatures. **Turn the sphere; move $\tau$; go back to the first steps.**
#
# ![Embedded digits on a sphere, and uniformity against tolerance](../docs/img/notebooks/sphere.png)

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import exhibit
from exhibit import GRID, INK, MUTED, PAPER, SERIES
from mixcon import config as configs
from mixcon import data, evals, models, objectives

# %% [markdown]
# Data, augmentation and network are those of `configs/contrastive_behaviour.py:small`, but for the three dimensions.

# %%
CLASSES, BATCH = 4, 256
config = configs.load("../configs/contrastive_behaviour.py:small", ["--config.model.embed_dim=3"])
source = configs.call(config.data.train)
records = [r for r in map(source.__getitem__, range(len(source))) if r["label"] < CLASSES]
images, labels = jnp.asarray(np.stack([r["image"] for r in records])), np.asarray([r["label"] for r in records])
view = data.augment.pixels(*map(configs.partial, config.augment), mean=config.image_mean, std=config.image_std)
network = models.functional(models.build(configs.plain(config.model)))

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 0.8, 1.2, 3.0)
SEEN = (0, 10, 20, 40, 80, 160, 320)  # steps after which we look
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, SEEN[-1]))


def embed(params, extra, x, train=False):
    out, extra = network.apply(params, extra, x, train=train)
    return models.l2_normalize(out["embedding"]), extra


STRIDE = SEEN[1]


def advance(temperature, carry, keys):
    """So many steps further."""

    def step(carry, key):
        params, extra, moments = carry
        draw, first, second = jax.random.split(key, 3)
        batch = images[jax.random.choice(draw, len(images), (BATCH,), replace=False)]

        def loss(params):
            one, new = embed(params, extra, view(batch, first), train=True)
            two, new = embed(params, new, view(batch, second), train=True)
            return objectives.info_nce(one, two, temperature=temperature, symmetric=True), new

        slope, extra = jax.grad(loss, has_aux=True)(params)
        moved, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, moved), extra, moments), None

    return jax.lax.scan(step, carry, keys)[0]


advance = jax.jit(jax.vmap(advance, in_axes=(0, 0, None)))  # all temperatures side by side
look = jax.jit(jax.vmap(lambda carry: embed(carry[0], carry[1], view(images))[0]))
start = network.init(jax.random.key(0))
carry = jax.tree.map(lambda x: jnp.stack([x] * len(TEMPERATURES)), (*start, optimizer.init(start[0])))
found = [look(carry)]
for done, keys in enumerate(jax.random.split(jax.random.key(1), SEEN[-1]).reshape(-1, STRIDE), 1):
    carry = advance(jnp.asarray(TEMPERATURES), carry, keys)
    if done * STRIDE in SEEN:
        found.append(look(carry))
found = np.stack(found, 1)  # [τ, step, image, 3]

# %%
uniformity = np.asarray([[-evals.uniformity(x) for x in row] for row in found])
tolerance = np.asarray([[evals.tolerance(x, labels) for x in row] for row in found])

# %% jupyter={"source_hidden": true}
digits = " ".join(exhibit.colored(digit, SERIES[digit]) for digit in range(CLASSES))
figure = exhibit.panels(f"the digits {digits}: drag to turn", "the dilemma: each point is a temperature", widths=(0.56, 0.44), scenes=(1,), height=540)
exhibit.globe(figure, 1)
for digit in range(CLASSES):
    figure.add_scatter3d(mode="markers", marker=dict(size=3.4, color=SERIES[digit]), hoverinfo="skip", row=1, col=1)
figure.add_scatter(mode="lines+markers", line=dict(color=GRID, width=2), marker=dict(color=MUTED, size=7), hoverinfo="skip", row=1, col=2)
figure.add_scatter(mode="markers", marker=dict(color=SERIES[1], size=15), hoverinfo="skip", row=1, col=2)
*clouds, path, here = figure.data[2:]
LABELLED = (0, 1, 2, 4, 6)
for t in LABELLED:  # the cold side of the path below it, the hot side above
    side = dict(xshift=-10, yshift=-8, xanchor="right") if TEMPERATURES[t] < 0.5 else dict(xshift=10, yshift=6)
    exhibit.label(figure, f"τ = {TEMPERATURES[t]}", 0, 0, at=1, color=MUTED, size=13, **side)
tags = [a for a in figure.layout.annotations if "τ" in a.text]
figure.update_layout(
    xaxis=dict(title_text="uniformity  −log mean exp(−2 ‖x − y‖²)  →", range=[0, 2.25]),
    yaxis=dict(title_text="tolerance: mean cosine within a digit  →", range=[0.4, 1.02]),
)


def draw(temperature, step):
    t, s = TEMPERATURES.index(temperature), SEEN.index(step)
    points = found[t, s]
    for digit, cloud in enumerate(clouds):
        cloud.update(**exhibit.spread_on_sphere(points[labels == digit]))
    path.update(x=uniformity[:, s], y=tolerance[:, s])
    here.update(x=[uniformity[t, s]], y=[tolerance[t, s]])
    for tag, shown in zip(tags, LABELLED, strict=True):
        tag.update(x=uniformity[shown, s], y=tolerance[shown, s])
    return f"<b>τ = {temperature}</b>, step {step}: uniformity <b>{uniformity[t, s]:.2f}</b>, tolerance <b>{tolerance[t, s]:.2f}</b>"


exhibit.Exhibit(
    figure,
    draw,
    temperature=exhibit.slider("temperature τ", TEMPERATURES, 0.5),
    step=exhibit.slider("training step", SEEN, SEEN[-1]),
)

# %% [markdown]
# Hot, the digits draw together and leave the sphere empty: tolerant, not uniform. Cooler, they fill it, and a digit's own
# images drift apart: uniform, not tolerant. Only down to about 0.15: colder still, the sphere gets *less* even again after
# as many steps (uniformity 2.00 at $\tau = 0.2$, 1.88 at 0.1, 1.40 at 0.05, 0.72 at 0.02; nearly the same from another
# start), for only the few nearest are pushed away. With more dimensions there is more room, and the best temperature for a
# classifier on top lies in between (CIFAR-10 in the paper; measured on digits in `docs/results.md`).
#
# Wang, Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere*,
# 2020; Wang, Liu, *Understanding the Behaviour of Contrastive Loss*, 2021.
