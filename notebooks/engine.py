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
from functools import reduce
from operator import or_

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import exhibit
from exhibit import INK, SERIES
from mixcon import objectives, ops
from mixcon.models import l2_normalize
from mixcon.ops import pairs

# %% [markdown]
# Four devices of one CPU, whatever else is here. What stands on the right of `impl=` is what a pod computes with.

# %%
DEVICES, EACH, SCALE = 4, 8, 8.0
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
mesh = jax.make_mesh((DEVICES,), ("data",))
share = NamedSharding(mesh, PartitionSpec("data"))

B = DEVICES * EACH
image, noise = jax.random.normal(jax.random.key(0), (2, B, 16))
image, text = l2_normalize(image), l2_normalize(image + 0.7 * noise)
device = np.arange(B) // EACH


def met(steps):
    """Which pairs are done: at step t device r has the keys of device r + t."""
    return reduce(or_, (pairs.same_label((device + t) % DEVICES, device) for t in range(steps)))


def log_sums(denominator):
    """R over these pairs, around the ring, by the function that the losses are made of."""
    with jax.set_mesh(mesh):
        rows, _ = jax.jit(ops.pair_statistics, static_argnames="impl")(
            jax.device_put(image, share), jax.device_put(text, share), scale=SCALE, denominator=denominator, impl="ring"
        )  # fmt: skip
    return np.asarray(rows.log_denominator)


exact = log_sums(pairs.everything())
running = [log_sums(met(steps)) for steps in range(1, DEVICES + 1)]
done = [np.zeros((B, B))] + [np.asarray(met(steps).matrix(B, B)) for steps in range(1, DEVICES + 1)]

# %% [markdown]
# Memory is that of the compiled programs on each device: value and gradient of the CLIP loss, beyond its inputs and
# gradients.

# %%
BATCHES, DIM = (1024, 2048, 4096, 8192), 64


def temporaries(batch, impl):
    """MiB that the compiled program needs besides its arguments and results."""
    around = impl == "ring"
    rows = jax.ShapeDtypeStruct((batch, DIM), jnp.float32, sharding=share if around else None)
    loss = jax.value_and_grad(lambda x, y: objectives.clip(x, y, logit_scale=100.0, impl=impl), (0, 1))
    with jax.set_mesh(mesh if around else jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        return jax.jit(loss).lower(rows, rows).compile().memory_analysis().temp_size_in_bytes / 2**20


memory = {impl: [temporaries(batch, impl) for batch in BATCHES] for impl in ("dense", "tiled", "ring")}

# %% jupyter={"source_hidden": true}
figure = exhibit.panels("who meets whom: one colour, one device", "running log-sum of each row", "memory, MiB", widths=(0.36, 0.34, 0.3), height=480)
shades = [[0, "#f3f5f8"], *([(i + 0.5) / DEVICES, SERIES[i]] for i in range(DEVICES)), [1, SERIES[DEVICES - 1]]]
figure.add_heatmap(zmin=0, zmax=DEVICES, colorscale=shades, showscale=False, hoverinfo="skip", xgap=1, ygap=1, row=1, col=1)
figure.add_scatter(mode="markers", marker=dict(color=INK, size=4), x=np.arange(B), y=np.arange(B), hoverinfo="skip", row=1, col=1)
colors = [SERIES[i] for i in device]
figure.add_bar(orientation="h", y=np.arange(B), marker=dict(color=colors), hoverinfo="skip", row=1, col=2)
figure.add_scatter(x=exact, y=np.arange(B), mode="markers", marker=dict(color=INK, symbol="line-ns-open", size=9), hoverinfo="skip", row=1, col=2)
exhibit.label(figure, "| exact", float(exact.max()), -1.6, at=2, xanchor="right", color=INK)
for impl, color, at, shift in (("dense", SERIES[1], 2, 16), ("tiled", SERIES[0], 1, -14), ("ring", SERIES[2], 1, -12)):
    values = memory[impl]
    figure.add_scatter(x=BATCHES, y=values, mode="lines+markers", line=dict(color=color, width=3), hoverinfo="skip", row=1, col=3)
    place = dict(x=float(np.log10(BATCHES[at])), y=float(np.log10(values[at])), xanchor="right" if at == 2 else "left")
    name = f"ring, on each of {DEVICES}" if impl == "ring" else impl
    exhibit.label(figure, name, **place, at=3, color=color, yshift=shift, xshift=8 * (impl == "ring"))
figure.add_scatter(mode="markers", marker=dict(color=INK, size=12), hoverinfo="skip", row=1, col=3)
tiles, _, bars, *_, here = figure.data
rows_down = dict(visible=False, range=[B, -2.5])
figure.update_layout(
    xaxis=dict(showticklabels=False, title_text="keys, by the device they come from"), yaxis=rows_down,
    xaxis2=dict(range=[0, float(exact.max()) * 1.05], title_text="log Σ exp(s/τ)"), yaxis2=rows_down,
    xaxis3=dict(type="log", title_text="batch", tickvals=list(BATCHES)), yaxis3=dict(type="log", dtick=1),
)  # fmt: skip


def draw(step, batch):
    tiles.z = np.where(done[step], device[:, None] + 0.5, 0.0)
    sums = running[step - 1] if step else np.zeros(B)
    bars.update(x=sums, y=np.arange(B), marker_color=colors)
    used = [memory[impl][BATCHES.index(batch)] for impl in memory]
    here.update(x=[batch] * len(used), y=used)
    left = float(np.abs(sums - exact).max())
    dense, tiled, ring = (f"<b>{each:,.0f}</b>" for each in used)
    return (
        f"step {step} of {DEVICES}: largest error of a row <b>{left:.2g}</b>; at a batch of {batch:,} "
        f"dense {dense}, tiled {tiled}, ring {ring} MiB"
    )


exhibit.Exhibit(
    figure,
    draw,
    step=exhibit.slider("blocks passed", range(DEVICES + 1), 2),
    batch=exhibit.slider("batch", BATCHES, BATCHES[-1]),
)

# %% [markdown]
# The backward pass builds each tile once more, so that nothing of the matrix is kept. On the right, what is left once
# tiles have their full size are vectors; a ring adds the block that is on its way. On a pod the same program holds a
# batch of a million: `docs/engine.md`.
