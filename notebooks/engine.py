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
# # The engine: tiles, rings, memory
#
# A contrastive loss needs, of each row of the $B \times B$ matrix of similarities, one number: $R_i = \log \sum_j
# e^{s_{ij}/\tau}$. So the matrix is never formed. Keys come by in blocks, each meets the queries in one tile, and what
# is kept is a running sum; on several devices the blocks travel around a ring, and every device works at every step.
# The result is exact. **Let the blocks pass.**
#
# ![Tiles of a ring of four devices, the running sums of rows, and memory against batch size](../docs/img/notebooks/engine.png)

# %%
import jax
import jax.numpy as jnp
import numpy as np

import exhibit
from exhibit import INK, SERIES
from mixcon import objectives, ops
from mixcon.models import l2_normalize

# %%
DEVICES, EACH, SCALE = 4, 8, 8.0
B = DEVICES * EACH
image, noise = jax.random.normal(jax.random.key(0), (2, B, 16))
image, text = l2_normalize(image), l2_normalize(image + 0.7 * noise)
similarity = np.asarray(image @ text.T)
device = np.arange(B) // EACH


@jax.jit
def log_sums(keys, seen):
    """R over the keys seen so far, by the function that the losses are made of."""
    rows, _ = ops.pair_statistics(image, keys, scale=SCALE, denominator=ops.pairs.dense(seen))
    return rows.log_denominator


def seen_after(steps):
    """Which pairs are done: at step t device r meets the keys of device r + t."""
    return (device[None] - device[:, None]) % DEVICES < steps


exact = np.asarray(log_sums(text, jnp.ones((B, B))))
running = [np.asarray(log_sums(text, jnp.asarray(seen_after(t), jnp.float32))) for t in range(1, DEVICES + 1)]

# %% [markdown]
# Memory is that of the compiled programs, value and gradient of the CLIP loss, beyond its inputs and gradients.

# %%
BATCHES, DIM = (1024, 2048, 4096, 8192), 64


def temporaries(batch, impl):
    """Bytes that the compiled program needs besides its arguments and results."""
    rows = jax.ShapeDtypeStruct((batch, DIM), jnp.float32)
    loss = jax.value_and_grad(lambda x, y: objectives.clip(x, y, logit_scale=100.0, impl=impl), (0, 1))
    return jax.jit(loss).lower(rows, rows).compile().memory_analysis().temp_size_in_bytes / 2**20


memory = {impl: [temporaries(batch, impl) for batch in BATCHES] for impl in ("dense", "tiled")}

# %%
figure = exhibit.panels("who meets whom: one colour, one device", "running log-sum of each row", "memory, MiB", widths=(0.36, 0.34, 0.3), height=480)
shades = [[0, "#f3f5f8"], *([(i + 0.5) / DEVICES, SERIES[i]] for i in range(DEVICES)), [1, SERIES[DEVICES - 1]]]
figure.add_heatmap(zmin=0, zmax=DEVICES, colorscale=shades, showscale=False, hoverinfo="skip", xgap=1, ygap=1, row=1, col=1)
figure.add_scatter(mode="markers", marker=dict(color=INK, size=4), x=np.arange(B), y=np.arange(B), hoverinfo="skip", row=1, col=1)
colors = [SERIES[i] for i in device]
figure.add_bar(orientation="h", y=np.arange(B), marker=dict(color=colors), hoverinfo="skip", row=1, col=2)
figure.add_scatter(x=exact, y=np.arange(B), mode="markers", marker=dict(color=INK, symbol="line-ns-open", size=9), hoverinfo="skip", row=1, col=2)
exhibit.label(figure, "| exact", float(exact.max()), -1.6, at=2, xanchor="right", color=INK)
for (impl, values), color in zip(memory.items(), (SERIES[1], SERIES[0]), strict=True):
    figure.add_scatter(x=BATCHES, y=values, mode="lines+markers", line=dict(color=color, width=3), hoverinfo="skip", row=1, col=3)
    exhibit.label(figure, impl, float(np.log10(BATCHES[-2])), float(np.log10(values[-2])), at=3, color=color, yshift=16, xanchor="right")
figure.add_scatter(mode="markers", marker=dict(color=INK, size=12), hoverinfo="skip", row=1, col=3)
tiles, _, bars, _, *_, here = figure.data
rows_down = dict(visible=False, range=[B, -2.5])
figure.update_layout(
    xaxis=dict(showticklabels=False, title_text="keys, by the device they come from"), yaxis=rows_down,
    xaxis2=dict(range=[0, float(exact.max()) * 1.05], title_text="log Σ exp(s/τ)"), yaxis2=rows_down,
    xaxis3=dict(type="log", title_text="batch", tickvals=list(BATCHES)), yaxis3=dict(type="log", dtick=1),
)  # fmt: skip


def draw(step, batch):
    tiles.z = np.where(seen_after(step), device[:, None] + 0.5, 0.0)
    sums = running[step - 1] if step else np.zeros(B)
    bars.update(x=sums, y=np.arange(B), marker_color=colors)
    place = BATCHES.index(batch)
    here.update(x=[batch, batch], y=[memory["dense"][place], memory["tiled"][place]])
    left = float(np.abs(sums - exact).max())
    return (
        f"step {step} of {DEVICES}: largest error of a row <b>{left:.2g}</b>; at a batch of {batch:,} "
        f"dense <b>{memory['dense'][place]:,.0f}</b>, tiled <b>{memory['tiled'][place]:,.0f}</b> MiB"
    )


exhibit.Exhibit(
    figure,
    draw,
    step=exhibit.slider("blocks passed", range(DEVICES + 1), 2),
    batch=exhibit.slider("batch", BATCHES, BATCHES[-1]),
)

# %% [markdown]
# The backward pass builds each tile once more, so that nothing of the matrix is kept. On a pod the same program holds a
# batch of a million: `docs/engine.md`.
