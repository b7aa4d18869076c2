"""The same as `objective_references`: loops for losses with a memory of every example, hardness, and the gap."""

import math
from collections.abc import Sequence

import numpy as np
from objective_references import Arrays, clip, cross_uniformity, dot, log_sum_exp, mean, square_distance, uniformity

# --- with a memory of every example: some were seen before, and what they weigh is constant ---------------------------


def _seen(id: int) -> float | None:
    return 0.5 + (id % 7) / 7 if id % 3 else None


def _own_temperature(id: int) -> float:
    return 0.2 + (id % 5) / 20


def _averaged(id: int, now: float, share: float = 0.6) -> float:
    """The moving average after this batch; an example starts from its own value."""
    before = _seen(id)
    return now if before is None else (1 - share) * before + share * now


def _of_views(f: Arrays, d: Arrays, frozen: Arrays, temperature) -> float:
    views, held, total = (f["a"], f["b"]), (frozen["a"], frozen["b"]), 0.0
    size = len(d["index"])
    for i, id in enumerate(d["index"]):
        for v in (0, 1):
            others = [(w, j) for w in (0, 1) for j in range(size) if j != i]
            exps = [math.exp(dot(held[v][i], held[w][j]) / temperature(id)) for w, j in others]
            s = _averaged(id, mean(exps))
            now = [dot(views[v][i], views[w][j]) for w, j in others]
            total += mean([e / s * x for e, x in zip(exps, now, strict=True)]) - dot(views[0][i], views[1][i])
    return total / size


def isogclr(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return _of_views(f, d, frozen, _own_temperature)


def sogclr(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return _of_views(f, d, frozen, lambda id: 0.3)


def _margins(f: Arrays, i: int, direction: int) -> list[tuple[int, float]]:
    """(other, margin) of anchor i: image i over texts (0), or text i over images (1)."""
    anchors, others = (f["a"], f["b"]) if direction == 0 else (f["b"], f["a"])
    return [(j, dot(anchors[i], others[j]) - dot(anchors[i], others[i])) for j in range(len(anchors))]


def _of_pairs(f: Arrays, d: Arrays, frozen: Arrays, temperature, positive: bool) -> float:
    total, size = 0.0, len(d["index"])
    for i, id in enumerate(d["index"]):
        for direction in (0, 1):
            held, now = _margins(frozen, i, direction), _margins(f, i, direction)
            exps = [math.exp(x / temperature(id)) for j, x in held if positive or j != i]
            s = _averaged(id, sum(exps) / (size - 1))
            weights = [math.exp(x / temperature(id)) / s for _, x in held]
            total += sum(w * x for w, (_, x) in zip(weights, now, strict=True)) / (size - 1)
    return total / size


def isogclr_clip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return _of_pairs(f, d, frozen, _own_temperature, positive=True)


def sogclr_clip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return _of_pairs(f, d, frozen, lambda id: 0.3, positive=False)


def fastclip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """Half of the features' slope only, the whole of the scale's; all were seen, and their averages hardly move."""
    total, size = 0.0, len(d["index"])
    for i, id in enumerate(d["index"]):
        for direction in (0, 1):
            for each in (f, frozen):
                now = [math.exp(x * s["t"]) for j, x in _margins(each, i, direction) if j != i]
                total += mean(now) / (0.5 + (id % 7) / 7) / 2
    return total / size


# --- hardness --------------------------------------------------------------------------------------------------------


def anchors(queries: np.ndarray, keys: np.ndarray, own: Sequence[int] | np.ndarray):
    """For each query: similarity to its own key, similarities to all others in falling order."""
    for q, i in zip(queries, own, strict=True):
        yield dot(q, keys[i]), sorted((dot(q, k) for j, k in enumerate(keys) if j != i), reverse=True)


def nearest(losses_of, temperature: float) -> float:
    """Mean loss of (own, kept negatives)."""
    return mean([log_sum_exp([x / temperature for x in (own, *kept)]) - own / temperature for own, kept in losses_of])


def info_nce_memory(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return nearest(anchors(f["a"], s["bank"], d["labels"]), s["temperature"])


def hard_info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    every = anchors(f["a"], f["b"], range(len(f["a"])))
    return nearest(((own, others[:3]) for own, others in every), s["temperature"])


def hard_simple_contrastive(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return mean([mean(others[:3]) - own for own, others in anchors(f["a"], f["b"], range(len(f["a"])))])


def simple_contrastive(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return mean([mean(others) - own for own, others in anchors(f["a"], f["b"], range(len(f["a"])))])


def slots_of(count: int) -> np.ndarray:
    """What a memory of examples holds before the step."""
    rows = np.random.default_rng(6).normal(size=(count, 3))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def feature_bank(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """Of all negatives the nearest 40 %, and whatever equals the last of them."""
    count = len(f["a"]) + 3
    last = max(1, int(0.4 * (count - 1))) - 1
    every = anchors(f["a"], slots_of(count), d["index"])
    return nearest(((own, [x for x in others if x >= others[last]]) for own, others in every), s["temperature"])


# --- the gap between modalities --------------------------------------------------------------------------------------


def clip_alignment_uniformity(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    near = mean([square_distance(x, y) for x, y in zip(f["a"], f["b"], strict=True)])
    spread = sum(uniformity({"a": x}, d, {"t": 2.0}, frozen) for x in (f["a"], f["b"])) / 2
    contrast = clip(f, d, {"scale": s["scale"], "bias": 0.0}, frozen)
    return contrast + 0.5 * near + 2 * spread + 1.5 * cross_uniformity(f, d, {"t": 2.0}, frozen)


def cyclic(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    x, y, size = f["a"], f["b"], len(f["a"])
    pairs = [(i, j) for i in range(size) for j in range(size)]
    within = mean([(dot(x[i], x[j]) - dot(y[i], y[j])) ** 2 for i, j in pairs])
    across = mean([(dot(x[i], y[j]) - dot(y[i], x[j])) ** 2 for i, j in pairs])
    return size * (0.3 * within + 0.7 * across)
