"""Objectives over weak and strong views for the battery: arguments of `Case`, and the same by plain loops.

Of four feature matrices the first two are the weak views; with the others they are the two strong ones.
"""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from objective_references import Arrays, cross_entropy, dot, mean

from mixcon import objectives as o

EPSILON = 0.3


def _views(f: dict[str, Any]) -> o.PairedViews:
    return o.PairedViews(f["a"], f["b"], jnp.stack([f["a"], f["c"]], 1), jnp.stack([f["b"], f["d"]], 1))


def _pairs(f: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(itertools.product((f["a"], f["c"]), (f["b"], f["d"])))


def multiview_clip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    def both(a, b, scale, smoothing):
        return sum(cross_entropy(*ways, scale, smoothing=smoothing) for ways in ((a, b), (b, a)))

    strong = mean([both(a, b, s["t"], 0.1) for a, b in _pairs(f)])
    return (both(f["a"], f["b"], s["scale"], 0.0) + 2 * strong) / 3


def barlip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    def one(a, b):
        total = 0.0
        for k in range(a.shape[1]):
            for m in range(b.shape[1]):
                c = dot(a[:, k], b[:, m]) / len(a)
                total += (c - 1) ** 2 if k == m else s["weight"] * c**2
        return 0.025 * total

    return mean([one(a, b) for a, b in [(f["a"], f["b"]), *_pairs(f)]])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return dot(a, b) / max(math.sqrt(dot(a, a)), 1e-12) / max(math.sqrt(dot(b, b)), 1e-12)


def negative_cosine(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return 2 - 2 * mean([_cosine(p, v) for p, v in zip(f["a"], frozen["b"], strict=True)])


def siamlip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    now, held = ([(x["a"], x["b"]), *_pairs(x)] for x in (f, frozen))
    terms = []
    for (p_image, p_text), (v_image, v_text) in zip(now, held, strict=True):
        for p, v in ((p_image, v_text), (p_text, v_image)):
            terms.append(2 - 2 * mean([_cosine(x, y) for x, y in zip(p, v, strict=True)]))
    return mean(terms)


def _assigned(scores: np.ndarray) -> np.ndarray:
    q = [[math.exp(x / EPSILON) for x in row] for row in scores]
    for _ in range(3):
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[x / c for x, c in zip(row, columns, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return np.asarray(q)


def _entropy(target: np.ndarray, logits: np.ndarray) -> float:
    total = 0.0
    for q, row in zip(target, logits, strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(x - top) for x in row))
        total -= sum(w * (x - log_sum) for w, x in zip(q, row, strict=True))
    return total / len(target)


def swalip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    terms = []
    for anchors, candidates in (("ac", "bd"), ("bd", "ac")):
        for u, v in itertools.product((0, 1), (0, 1)):
            q = _assigned(frozen[anchors[1 - u]] @ frozen[candidates[1 - v]].T)
            terms.append(_entropy(q, s["scale"] * f[anchors[u]] @ f[candidates[v]].T))
    return mean(terms)


def swapped_assignment(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    one, other = (_entropy(_assigned(frozen[q]), s["scale"] * f[p]) for p, q in (("a", "b"), ("b", "a")))
    return (one + other) / 2


CASES: list[dict[str, Any]] = [
    dict(
        name="multiview_clip",
        loss=lambda f, d, s, **p: o.multiview_clip(
            _views(f),
            logit_scale=s["scale"],
            view_logit_scale=s["t"],
            label_smoothing=0.1,
            reduction="sum",
            **p,
        ),
        reference=multiview_clip,
        features="abcd",
        shared=("scale", "t"),
    ),
    dict(
        name="barlip",
        loss=lambda f, d, s, axis_name=None, **_: o.barlip(
            _views(f), off_diagonal_weight=s["weight"], axis_name=axis_name
        ),
        reference=barlip,
        features="abcd",
        shared=("weight",),
        engine=False,
        unit=False,
    ),
    dict(
        name="negative_cosine",
        loss=lambda f, d, s, axis_name=None, **_: o.negative_cosine(f["a"], f["b"], axis_name=axis_name),
        reference=negative_cosine,
        shared=(),
        engine=False,
        unit=False,
    ),
    dict(
        name="siamlip",
        loss=lambda f, d, s, axis_name=None, **_: o.siamlip(_views(f), _views(f), axis_name=axis_name),
        reference=siamlip,
        features="abcd",
        shared=(),
        engine=False,
    ),
    dict(
        name="swalip",
        loss=lambda f, d, s, **p: o.swalip(_views(f), logit_scale=s["scale"], epsilon=EPSILON, **p),
        reference=swalip,
        features="abcd",
        shared=("scale",),
    ),
    dict(
        name="swapped_assignment",
        loss=lambda f, d, s, axis_name=None, **_: o.swapped_assignment(
            f["a"], f["b"], logit_scale=s["scale"], epsilon=EPSILON, axis_name=axis_name
        ),
        reference=swapped_assignment,
        shared=("scale",),
        engine=False,
    ),
]
