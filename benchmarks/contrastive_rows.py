"""What the contrastive benchmark compares on the JAX side, and the float64 truth that every row must meet first."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixcon import objectives
from mixcon.ops import pairs
from mixcon.train.gradients import grad_cache
from mixcon.train.state import Task, TrainState

Inputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant. `loss` is None for a torch peer, which is known by its name."""

    name: str
    task: str
    loss: Callable[[Inputs], jax.Array] | None = None
    limit: int = 1 << 40  # largest batch: beyond it the row needs more memory than this machine has
    gradient: Callable[[Inputs], Any] | None = None  # instead of autodiff of `loss`
    gpu_only: bool = False


def inputs(size: int, dim: int) -> dict[str, np.ndarray]:
    """Unit rows that agree somewhat, labels, a mix and frozen features; `views` pairs row i with row i + size/2."""
    rng = np.random.default_rng(size)

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    base = rng.normal(size=(size, dim))
    return {
        "image": unit(base),
        "text": unit(0.3 * base + rng.normal(size=(size, dim))),
        "scale": np.float32(20.0),
        "bias": np.float32(-10.0),
        "labels": rng.permutation(np.arange(size) % max(size // 8, 2)),
        "views": np.arange(size) % (size // 2),
        "partner": rng.permutation(size).astype(np.int32),
        "weight": rng.uniform(size=size).astype(np.float32),
        "frozen": unit(rng.normal(size=(size, 32))),
    }


# --- contestants -----------------------------------------------------------------------------------------------------


def dense_clip(x: Inputs) -> jax.Array:
    logits = x["scale"] * (x["image"] @ x["text"].T)
    rows, cols = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -(jnp.diagonal(rows).mean() + jnp.diagonal(cols).mean()) / 2


def dense_siglip(x: Inputs) -> jax.Array:
    logits = x["scale"] * (x["image"] @ x["text"].T) + x["bias"]
    sign = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(sign * logits).sum() / logits.shape[0]


def clip(impl: Any) -> Callable[[Inputs], jax.Array]:
    return lambda x: objectives.clip(x["image"], x["text"], logit_scale=x["scale"], impl=impl)


def nt_xent(impl: Any) -> Callable[[Inputs], jax.Array]:
    def loss(x: Inputs) -> jax.Array:
        return objectives.nt_xent(*jnp.split(x["image"], 2), temperature=1 / x["scale"], impl=impl)

    return loss


def mixed(x: Inputs) -> jax.Array:
    target = pairs.mixed(x["partner"], x["weight"])
    return objectives.multi_positive(
        x["image"], x["text"], target, temperature=1 / x["scale"], symmetric=True, impl="tiled"
    )


def weighted(x: Inputs) -> jax.Array:
    return objectives.multi_positive(
        x["image"], x["text"], pairs.similarity(x["frozen"]), temperature=1 / x["scale"], symmetric=True, impl="tiled"
    )


def cached_clip(x: Inputs) -> Any:
    """The same loss through the gradient cache, in eight parts of an encoder that only adds a parameter."""
    task = Task(
        prepare=lambda batch, *, key, step: batch,
        encode=lambda params, extra, batch, *, key, train: (
            {k: batch[k] + params[k][batch["row"]] for k in ("image", "text")},
            extra,
        ),
        objective=lambda params, state, reps, batch, *, key, step: (
            clip("tiled")(reps | {"scale": x["scale"]}),
            {},
            state,
        ),
    )
    rows = jnp.arange(x["image"].shape[0])
    params = {k: jnp.zeros_like(x[k]) for k in ("image", "text")}
    state = TrainState(jnp.int32(0), jnp.uint32(0), params, (), (), (), (), ())
    batch = {"image": x["image"], "text": x["text"], "row": rows}
    grads, outcome = grad_cache(task, 8)(state, batch)
    return outcome.loss, grads


ROWS = [
    Row("JAX, dense", "clip", dense_clip),
    Row("mixcon, auto", "clip", clip("auto")),
    Row("mixcon, tiled", "clip", clip("tiled")),
    Row("mixcon, tiled, grad-cached", "clip", gradient=cached_clip),
    Row("open_clip ClipLoss", "clip"),
    Row("Inf-CL", "clip", gpu_only=True),
    Row("CCE, both directions", "clip", gpu_only=True),
    Row("mixcon, mixed targets", "mixed", mixed),
    Row("mixcon, weighted targets", "weighted", weighted),
    Row("JAX, dense", "siglip", dense_siglip),
    Row(
        "mixcon, tiled",
        "siglip",
        lambda x: objectives.siglip(x["image"], x["text"], logit_scale=x["scale"], logit_bias=x["bias"], impl="tiled"),
    ),
    Row("open_clip SigLipLoss", "siglip"),
    Row("mixcon, tiled", "nt_xent", nt_xent("tiled")),
    Row("mixcon, auto", "nt_xent", nt_xent("auto")),
    Row(
        "optax ntxent",  # forms [B, B, D]
        "nt_xent",
        lambda x: optax.losses.ntxent(x["image"], x["views"], temperature=1 / x["scale"]),
        limit=512,
    ),
    Row("lightly NTXentLoss", "nt_xent"),
    Row("pytorch-metric-learning NTXentLoss", "nt_xent", limit=512),  # every positive beside every negative pair
    Row(
        "mixcon, tiled",
        "supcon",
        lambda x: objectives.supcon(x["image"], x["labels"], temperature=1 / x["scale"], impl="tiled"),
    ),
    Row("pytorch-metric-learning SupConLoss", "supcon", limit=8192),
]


# --- truth -----------------------------------------------------------------------------------------------------------


def truth(task: str, x: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients in float64, from closed forms: dL/dlogits = softmax - target, or sigmoid - target."""
    image, text, scale = x["image"].astype(np.float64), x["text"].astype(np.float64), float(x["scale"])
    size = len(image)
    if task in ("nt_xent", "supcon"):
        label = x["views" if task == "nt_xent" else "labels"]
        other = ~np.eye(size, dtype=bool)
        loss, slope = _cross_entropy(scale * image @ image.T, (label[:, None] == label) & other, other)
        return loss, {"image": scale * (slope + slope.T) @ image}
    logits = scale * image @ text.T
    if task == "siglip":
        logits = logits + float(x["bias"])
        loss = (np.logaddexp(0, logits).sum() - np.trace(logits)) / size
        slope = (1 / (1 + np.exp(-logits)) - np.eye(size)) / size
    else:
        target = np.eye(size)
        if task == "mixed":
            weight = x["weight"].astype(np.float64)[:, None]
            target = weight * target + (1 - weight) * target[x["partner"]]
        if task == "weighted":
            target = (1 + x["frozen"].astype(np.float64) @ x["frozen"].astype(np.float64).T) / 2
        rows, row_slope = _cross_entropy(logits, target)
        cols, col_slope = _cross_entropy(logits.T, target.T)
        loss, slope = (rows + cols) / 2, (row_slope + col_slope.T) / 2
    return loss, {"image": scale * slope @ text, "text": scale * slope.T @ image}


def _cross_entropy(logits: np.ndarray, target: np.ndarray, keep: Any = True) -> tuple[float, np.ndarray]:
    mass = target.sum(1, keepdims=True)
    has = mass[:, 0] > 0
    share = target / np.where(mass > 0, mass, 1)
    top = logits.max(1, keepdims=True)
    exp = np.where(keep, np.exp(logits - top), 0)
    loss = np.log(exp.sum(1)) + top[:, 0] - (share * logits).sum(1)
    slope = (exp / exp.sum(1, keepdims=True) - share) * has[:, None] / has.sum()
    return float(loss[has].mean()), slope


def tangent(gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The part of a gradient along the sphere: what is left when a loss normalises its input (again)."""
    return gradient - (gradient * rows).sum(1, keepdims=True) * rows
