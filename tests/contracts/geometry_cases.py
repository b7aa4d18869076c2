"""Objectives that weigh or mix by the geometry of a modality, for the battery: arguments of `Case`, and loops."""

import math
from typing import Any

import numpy as np
from objective_references import Arrays, cross_entropy, dot, log_sum_exp, mean, square_distance

from mixcon import objectives as o


def weighted(p: np.ndarray, q: np.ndarray, weights: list[list[float]], scale: float) -> float:
    """Soft-target cross-entropy of the rows of `p`; a row without weight costs nothing."""
    losses = []
    for i in range(len(p)):
        logits = [scale * dot(p[i], k) for k in q]
        total = sum(weights[i])
        terms = [w * (log_sum_exp(logits) - x) for w, x in zip(weights[i], logits, strict=True)]
        losses.append(sum(terms) / total if total else 0.0)
    return mean(losses)


def cwcl(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    r = frozen["b"]
    weights = [[0.5 + 0.5 * dot(x, y) for y in r] for x in r]
    return weighted(f["a"], f["b"], weights, s["scale"]) + cross_entropy(f["b"], f["a"], s["scale"])


def cwcl_exponential(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    r = frozen["c"]
    weights = [[math.exp((dot(x, y) - 1) / 0.5) for y in r] for x in r]
    return (weighted(f["b"], f["a"], weights, s["scale"]) + cross_entropy(f["a"], f["b"], s["scale"])) / 2


def _exponential(f: dict[str, Any], d: dict[str, Any], s: dict[str, Any], **placement: Any) -> Any:
    kind: dict[str, Any] = {"weights": "exp", "weight_temperature": 0.5, "frozen": "first", "reduction": "mean"}
    return o.cwcl(f["a"], f["b"], reference=f["c"], logit_scale=s["scale"], **kind, **placement)


def slerp(a: np.ndarray, b: np.ndarray, lam: float) -> np.ndarray:
    # On the sphere the arc cosine of a·b; off it, where differences are taken, only this is the function.
    angle = 2 * math.atan2(math.sqrt(square_distance(a, b)), math.sqrt(square_distance(a, -b)))
    if angle < 1e-6:
        return lam * a + (1 - lam) * b
    return (math.sin(lam * angle) * a + math.sin((1 - lam) * angle) * b) / math.sin(angle)


def m2(x: np.ndarray, y: np.ndarray, lam: np.ndarray, scale: float) -> float:
    total = 0.0
    for i in range(len(x)):
        negatives = [slerp(x[j], y[j], lam[j]) for j in range(len(x)) if j != i]
        own = scale * dot(x[i], y[i])
        for query in (x[i], y[i]):
            total += log_sum_exp([own, *(scale * dot(query, n) for n in negatives)]) - own
    return total / len(x)


def within(
    x: np.ndarray, y: np.ndarray, partner: np.ndarray, lam: np.ndarray, scale: float, *, both: bool, original: bool
) -> float:
    size = len(x)
    logits, target = np.zeros((size, size)), np.zeros((size, size))
    for i in range(size):
        target[i, i] += 1.0 if both else lam[i]
        target[i, partner[i]] += 1.0 if both else 1 - lam[i]
    mixed_x = [slerp(x[i], x[partner[i]], lam[i]) for i in range(size)]
    mixed_y = [slerp(y[i], y[partner[i]], lam[i]) if both else y[i] for i in range(size)]
    for i in range(size):
        for j in range(size):
            plain = original and j != i and j != partner[i]
            logits[i, j] = scale * (dot(x[i], y[j]) if plain else dot(mixed_x[i], mixed_y[j]))
    rows = [target[i, j] * (log_sum_exp(logits[i]) - logits[i, j]) for i in range(size) for j in range(size)]
    cols = [target[i, j] * (log_sum_exp(logits[:, j]) - logits[i, j]) for i in range(size) for j in range(size)]
    return (sum(rows) + sum(cols)) / (2 * size)


def m2mix(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return m2(f["a"], f["b"], d["weight"], s["scale"])


def vlmix_original(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return within(f["a"], f["b"], d["partner"], d["weight"], s["scale"], both=True, original=True)


def m3mix(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    x, y, lam, scale = f["a"], f["b"], d["weight"], s["scale"]
    contrast = (cross_entropy(x, y, s["t"]) + cross_entropy(y, x, s["t"])) / 2
    image = within(x, y, d["partner"], lam, s["t"], both=False, original=False)
    text = within(y, x, d["partner"], lam, s["t"], both=False, original=False)
    both = within(x, y, d["partner"], lam, s["t"], both=True, original=False)
    return contrast + 0.5 * (0.3 * image + 0.4 * text + 0.5 * both + 0.6 * m2(x, y, lam, scale))


def _m3mix(f: dict[str, Any], d: dict[str, Any], s: dict[str, Any], **placement: Any) -> Any:
    weights = {"image": 0.3, "text": 0.4, "both": 0.5, "m2": 0.6}
    lams = dict.fromkeys(weights, d["weight"])
    settings: dict[str, Any] = {"logit_scale": s["t"], "m2_logit_scale": s["scale"], "partner": d["partner"]}
    return o.m3mix(f["a"], f["b"], lams, weights=weights, factor=0.5, **settings, **placement)


CASES: list[dict[str, Any]] = [
    {
        "name": "cwcl",
        "loss": lambda f, d, s, **p: o.cwcl(f["a"], f["b"], logit_scale=s["scale"], **p),
        "reference": cwcl,
        "shared": ("scale",),
    },
    {
        "name": "cwcl: exponential weights of a reference",
        "loss": _exponential,
        "reference": cwcl_exponential,
        "features": "abc",
        "shared": ("scale",),
    },
    {
        "name": "m2mix",
        "loss": lambda f, d, s, **p: o.m2mix(f["a"], f["b"], d["weight"], logit_scale=s["scale"], **p),
        "reference": m2mix,
        "data": ("weight",),
        "shared": ("scale",),
    },
    {
        "name": "vlmix: original negatives",
        "loss": lambda f, d, s, **p: o.vlmix(
            f["a"], f["b"], d["weight"], partner=d["partner"], logit_scale=s["scale"], original_negatives=True, **p
        ),
        "reference": vlmix_original,
        "data": ("partner", "weight"),
        "shared": ("scale",),
    },
    {
        "name": "m3mix",
        "loss": _m3mix,
        "reference": m3mix,
        "data": ("partner", "weight"),
        "shared": ("scale", "t"),
    },
]
