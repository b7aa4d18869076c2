"""Objectives that weigh or mix by the geometry of a modality, for the battery: arguments of `Case`, and loops."""

import math
from typing import Any

import numpy as np
from objective_references import Arrays, cross_entropy, dot, log_sum_exp, mean

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
]
