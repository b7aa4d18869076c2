"""Every objective again, by plain loops over numbers in float64, written from the formulas of the papers.

`f` features (one row for each sample), `d` labels and the like, `s` scalars and proxies. `frozen` is `f` as it was
before the finite-difference step: what an objective holds constant for its gradient is computed from it.
"""

import math
from collections.abc import Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)))


def square_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def cross_entropy(q, k, scale, *, bias=0.0, smoothing=0.0, extra=()):
    losses = []
    for i in range(len(q)):
        logits = [scale * dot(q[i], k[j]) + bias for j in range(len(k))]
        more = [scale * dot(q[i], e) + bias for e in extra]
        target = (1 - smoothing) * logits[i] + smoothing * mean(logits)
        losses.append(log_sum_exp(logits + more) - target)
    return mean(losses)


def clip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    both = [cross_entropy(a, b, s["scale"], bias=s["bias"]) for a, b in ((f["a"], f["b"]), (f["b"], f["a"]))]
    return sum(both) / 2


def align(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return sum(cross_entropy(a, b, s["scale"], smoothing=0.1) for a, b in ((f["a"], f["b"]), (f["b"], f["a"])))


def clip_one_sided(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return (cross_entropy(f["a"], frozen["b"], s["scale"]) + cross_entropy(f["b"], frozen["a"], s["scale"])) / 2


def siglip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    total = 0.0
    for i in range(len(f["a"])):
        for j in range(len(f["b"])):
            z = s["scale"] * dot(f["a"][i], f["b"][j]) + s["bias"]
            total += softplus(-z if i == j else z)  # -log sigmoid(±z)
    return total / len(f["a"])


def info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return cross_entropy(f["a"], f["b"], 1 / s["temperature"], extra=s["bank"])


def info_nce_symmetric(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    scale = 1 / s["temperature"]
    return (cross_entropy(f["a"], f["b"], scale) + cross_entropy(f["b"], f["a"], scale)) / 2


def two_view_terms(f: Arrays, temperature: float):
    """For each of the 2B views: (example, similarity to the other view, similarities to views of other examples)."""
    views = [(i, v, f[v][i]) for v in ("a", "b") for i in range(len(f["a"]))]
    for i, v, z in views:
        positive = next(dot(z, w) for j, u, w in views if j == i and u != v)
        negatives = [dot(z, w) for j, _, w in views if j != i]
        yield i, positive / temperature, [n / temperature for n in negatives]


def nt_xent(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return mean([log_sum_exp([p, *n]) - p for _, p, n in two_view_terms(f, s["temperature"])])


def decoupled(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return mean([log_sum_exp(n) - p for _, p, n in two_view_terms(f, s["temperature"])])


def decoupled_weighted(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    sharp = [math.exp(dot(a, b) / 0.5) for a, b in zip(f["a"], f["b"], strict=True)]
    weight = [2 - x / mean(sharp) for x in sharp]
    return mean([log_sum_exp(n) - weight[i] * p for i, p, n in two_view_terms(f, s["temperature"])])


def corrected(terms, temperature: float, prior: float, hardness: float) -> float:
    losses = []
    for positive, negatives in terms:
        p, ns = math.exp(positive), [math.exp(n) for n in negatives]
        weights = [n**hardness for n in ns]
        total = sum(w * n for w, n in zip(weights, ns, strict=True)) / mean(weights)
        count = len(ns)
        g = max((total - count * prior * p) / (1 - prior), count * math.exp(-1 / temperature))
        losses.append(-math.log(p / (p + g)))
    return mean(losses)


def debiased(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    terms = [(p, n) for _, p, n in two_view_terms(f, s["temperature"])]
    return corrected(terms, s["temperature"], 0.1, 0.0)


def hard_negative(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    terms = [(p, n) for _, p, n in two_view_terms(f, s["temperature"])]
    return corrected(terms, s["temperature"], 0.1, s["hardness"])


def hard_negative_other_view(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    t, size = s["temperature"], len(f["a"])
    terms = [
        (dot(f["a"][i], f["b"][i]) / t, [dot(f["a"][i], f["b"][j]) / t for j in range(size) if j != i])
        for i in range(size)
    ]
    return corrected(terms, t, 0.1, 1.0)


def soft_targets(q, k, target, scale, form="out", denominator=None):
    losses = []
    for i in range(len(q)):
        logits = [scale * dot(q[i], k[j]) for j in range(len(k))]
        kept = [j for j in range(len(k)) if denominator is None or denominator[i][j]]
        mass = sum(target[i])
        if mass == 0:
            continue
        r = log_sum_exp([logits[j] for j in kept])
        if form == "out":
            losses.append(sum(target[i][j] * (r - logits[j]) for j in range(len(k))) / mass)
        else:
            positive = [logits[j] + math.log(target[i][j]) for j in range(len(k)) if target[i][j] > 0]
            losses.append(r - (log_sum_exp(positive) - math.log(mass)))
    return mean(losses)


def same_class(labels) -> tuple[list, list]:
    """(positives, everything but self) as 0/1 matrices."""
    size = len(labels)
    own = [[int(labels[i] == labels[j] and i != j) for j in range(size)] for i in range(size)]
    return own, [[int(i != j) for j in range(size)] for i in range(size)]


def supcon(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    positives, others = same_class(d["labels"])
    return soft_targets(f["a"], f["a"], positives, 1 / s["temperature"], "out", others)


def supcon_in(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    rows = np.concatenate([f["a"], f["b"]])
    positives, others = same_class(np.concatenate([d["labels"], d["labels"]]))
    return soft_targets(rows, rows, positives, 1 / s["temperature"], "in", others)


def multi_positive(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return soft_targets(f["a"], f["b"], d["weights"], 1 / s["temperature"])


def multi_positive_symmetric(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    scale, size = 1 / s["temperature"], len(f["a"])
    target = np.zeros((size, size))
    for i in range(size):  # x'_i = w_i x_i + (1 - w_i) x_partner
        target[i, i] += d["weight"][i]
        target[i, d["partner"][i]] += 1 - d["weight"][i]
    rows = soft_targets(f["a"], f["b"], target, scale)
    return (rows + soft_targets(f["b"], f["a"], target.T, scale)) / 2


def m3co(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays, overwrite: bool = False) -> float:
    scale, size = 1 / s["temperature"], len(f["a"])
    target = np.zeros((size, size))
    for i in range(size):
        target[i, i] = d["weight"][i]
        rest = 1 - d["weight"][i]
        target[i, d["partner"][i]] = rest if overwrite else target[i, d["partner"][i]] + rest
    total = 0.0
    for q, k, t in ((f["a"], f["b"], target), (f["b"], f["a"], target.T)):
        for i in range(size):
            logits = [scale * dot(q[i], k[j]) for j in range(size)]
            total += sum(t[i, j] * (log_sum_exp(logits) - logits[j]) for j in range(size)) / size
    return total / 2


def m3co_overwritten(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return m3co(f, d, s, frozen, overwrite=True)


def soft_clip(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    scale, size, total = 1 / s["temperature"], len(f["a"]), 0.0
    for i in range(size):
        alike = [scale * dot(f["b"][i], f["b"][j]) for j in range(size)]
        weight = [math.exp(x - log_sum_exp(alike)) for x in alike]
        for q, k in ((f["a"], f["b"]), (f["b"], f["a"])):
            logits = [scale * dot(q[i], k[j]) for j in range(size)]
            total += sum(w * (log_sum_exp(logits) - x) for w, x in zip(weight, logits, strict=True)) / size
    return total / 2


def ranking(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return cross_entropy(f["a"], f["b"], s["scale"], extra=f["c"])


def n_pairs(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    losses = []
    for i in range(len(f["a"])):
        own = dot(f["a"][i], f["b"][i])
        losses.append(
            math.log(1 + sum(math.exp(dot(f["a"][i], f["b"][j]) - own) for j in range(len(f["b"])) if j != i))
        )
    norms = [dot(a, a) + dot(b, b) for a, b in zip(f["a"], f["b"], strict=True)]
    return mean(losses) + 0.02 * mean(norms) / 2


def barlow_twins(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    size, dim = f["a"].shape
    columns = {}
    for name in ("a", "b"):
        for k in range(dim):
            column = [float(x) for x in f[name][:, k]]
            centre = mean(column)
            deviation = math.sqrt(mean([(x - centre) ** 2 for x in column]) + 1e-5)
            columns[name, k] = [(x - centre) / deviation for x in column]
    loss = 0.0
    for k in range(dim):
        for l in range(dim):
            c = sum(x * y for x, y in zip(columns["a", k], columns["b", l], strict=True)) / size
            loss += (1 - c) ** 2 if k == l else s["weight"] * c**2
    return loss


def vicreg(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    size, dim = f["a"].shape
    loss = 25 * mean([square_distance(x, y) / dim for x, y in zip(f["a"], f["b"], strict=True)])
    for z in (f["a"], f["b"]):
        centre = [mean([float(x) for x in z[:, k]]) for k in range(dim)]
        covariance = [
            [sum((z[b, k] - centre[k]) * (z[b, l] - centre[l]) for b in range(size)) / (size - 1) for l in range(dim)]
            for k in range(dim)
        ]
        loss += 25 / 2 * mean([max(0.0, 1 - math.sqrt(covariance[k][k] + 1e-4)) for k in range(dim)])
        loss += sum(covariance[k][l] ** 2 for k in range(dim) for l in range(dim) if k != l) / dim
    return float(loss)


def alignment(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return mean([math.sqrt(square_distance(x, y)) ** 3 for x, y in zip(f["a"], f["b"], strict=True)])


def uniformity(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, t = f["a"], s["t"]
    return math.log(mean([math.exp(-t * square_distance(z[i], z[j])) for i in range(len(z)) for j in range(i)]))


def cross_uniformity(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    x, y, t, size = f["a"], f["b"], s["t"], len(f["a"])
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    return math.log(mean([math.exp(-t * square_distance(x[i], y[j])) for i, j in pairs]))


def class_pairs(labels):
    """(i, positives of i, negatives of i)."""
    size = len(labels)
    for i in range(size):
        yield (
            i,
            [j for j in range(size) if j != i and labels[j] == labels[i]],
            [j for j in range(size) if labels[j] != labels[i]],
        )


def contrastive(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, pull, push = f["a"], [], []
    for i, positives, negatives in class_pairs(d["labels"]):
        pull += [square_distance(z[i], z[j]) for j in positives]
        push += [max(0.0, s["margin"] - math.sqrt(square_distance(z[i], z[j]))) ** 2 for j in negatives]
    return mean(pull) + mean(push)


def contrastive_active(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, pull, push = f["a"], [], []
    for i, positives, negatives in class_pairs(d["labels"]):
        pull += [math.sqrt(square_distance(z[i], z[j])) for j in positives]
        push += [max(0.0, s["margin"] - math.sqrt(square_distance(z[i], z[j]))) for j in negatives]
    return mean([x for x in pull if x > 0]) + mean([x for x in push if x > 0])


def multi_similarity(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays, mining: float | None = 0.1) -> float:
    z, old, losses = f["a"], frozen["a"], []
    a, b, centre = s["alpha"], s["beta"], s["base"]
    for i, positives, negatives in class_pairs(d["labels"]):
        if mining is not None:
            hardest = max((dot(old[i], old[n]) for n in negatives), default=-math.inf)
            easiest = min((dot(old[i], old[p]) for p in positives), default=math.inf)
            positives = [p for p in positives if dot(old[i], old[p]) < hardest + mining]
            negatives = [n for n in negatives if dot(old[i], old[n]) > easiest - mining]
        pull = math.log(1 + sum(math.exp(-a * (dot(z[i], z[p]) - centre)) for p in positives)) / a
        losses.append(pull + math.log(1 + sum(math.exp(b * (dot(z[i], z[n]) - centre)) for n in negatives)) / b)
    return mean(losses)


def multi_similarity_plain(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    return multi_similarity(f, d, s, frozen, mining=None)


def circle(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, old, losses = f["a"], frozen["a"], []
    m, gamma = s["margin"], s["scale"]
    for i, positives, negatives in class_pairs(d["labels"]):
        if not positives or not negatives:
            continue
        pull = [-gamma * max(0.0, 1 + m - dot(old[i], old[p])) * (dot(z[i], z[p]) - (1 - m)) for p in positives]
        push = [gamma * max(0.0, dot(old[i], old[n]) + m) * (dot(z[i], z[n]) - m) for n in negatives]
        losses.append(math.log(1 + sum(map(math.exp, pull)) * sum(map(math.exp, push))))
    return mean(losses)


def triplet_hard(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, losses = f["a"], []
    for i, positives, negatives in class_pairs(d["labels"]):
        if positives and negatives:
            far = max(math.sqrt(square_distance(z[i], z[p])) for p in positives)
            near = min(math.sqrt(square_distance(z[i], z[n])) for n in negatives)
            losses.append(math.log(1 + math.exp(far - near)))
    return mean(losses)


def triplet_semi_hard(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, losses = f["a"], []
    for i, positives, negatives in class_pairs(d["labels"]):
        for p in positives:
            own = square_distance(z[i], z[p])
            others = [square_distance(z[i], z[n]) for n in negatives]
            beyond = [x for x in others if x > own]
            losses.append(max(0.0, own - (min(beyond) if beyond else max(others)) + 0.2))
    return mean(losses)


def triplet_all(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    z, losses = f["a"], []
    for i, positives, negatives in class_pairs(d["labels"]):
        losses += [max(0.0, dot(z[i], z[n]) - dot(z[i], z[p]) + 0.2) for p in positives for n in negatives]
    return mean([x for x in losses if x > 0])


def proxy_nca(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    losses = []
    for x, y in zip(f["a"], d["labels"], strict=True):
        value = [-s["scale"] * (2 - 2 * dot(x, p)) for p in s["proxies"]]
        losses.append(log_sum_exp([v for c, v in enumerate(value) if c != y]) - value[y])
    return mean(losses)


def proxy_anchor(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    alpha, delta, pull, push = s["scale"], s["margin"], [], []
    for c, p in enumerate(s["proxies"]):
        own = [dot(x, p) for x, y in zip(f["a"], d["labels"], strict=True) if y == c]
        other = [dot(x, p) for x, y in zip(f["a"], d["labels"], strict=True) if y != c]
        if own:
            pull.append(math.log(1 + sum(math.exp(-alpha * (x - delta)) for x in own)))
        push.append(math.log(1 + sum(math.exp(alpha * (x + delta)) for x in other)))
    return mean(pull) + mean(push)


def weighted(q, k, weight, temperature) -> float:
    losses = []
    for i in range(len(q)):
        logits = [dot(q[i], k[j]) / temperature for j in range(len(k))]
        terms = [x + math.log(weight(i, j)) for j, x in enumerate(logits) if weight(i, j) > 0]
        losses.append(log_sum_exp(terms) - logits[i])
    return mean(losses)


def weighted_info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    def other(i: int, j: int) -> float:
        return float(d["labels"][i] != d["labels"][j])

    return sum(weighted(q, k, other, s["temperature"]) for q, k in ((f["a"], f["b"]), (f["b"], f["a"]))) / 2


def cluster_weighted_info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    def apart(i: int, j: int) -> float:
        return sum(float(own[i] != own[j]) for own in (d["labels"], d["labels"] // 2))

    return weighted(f["a"], f["b"], apart, s["temperature"])


PAIR_MLP = ([[0.3, -0.5], [0.2, 0.4], [-0.6, 0.1]], [0.1, -0.2], [0.8, -0.7], 0.3)  # D = 3, two hidden units


def adaptive_weighted_info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    hidden, hidden_bias, output, output_bias = PAIR_MLP

    def gate(i: int, j: int) -> float:
        both = [s["scale"] * (x + y) for x, y in zip(f["a"][i], f["b"][j], strict=True)]
        units = [
            math.tanh(sum(x * row[h] for x, row in zip(both, hidden, strict=True)) + b)
            for h, b in enumerate(hidden_bias)
        ]
        return 1 / (1 + math.exp(-dot(units, output) - output_bias))

    return weighted(f["a"], f["b"], gate, s["temperature"])


PROTOTYPES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.6, 0.8], [-1.0, 0.0, 0.0]]  # one for each class
DENSITIES = [0.4, 0.7, 0.3, 0.5]


def prototype_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    losses = []
    for x, own in zip(f["a"], d["labels"], strict=True):
        logits = [dot(x, c) / phi for c, phi in zip(PROTOTYPES, DENSITIES, strict=True)]
        losses.append(log_sum_exp(logits) + math.log(len(f["a"]) / len(PROTOTYPES)) - logits[own])
    return mean(losses)


def cross_batch_memory(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """The loss of `a` after `b` has been pushed into an empty queue."""
    z, held, labels, losses = f["a"], frozen["b"], d["labels"], []
    for i in range(len(z)):
        others = [(dot(z[i], z[j]), labels[j]) for j in range(len(z)) if j != i]
        others += [(dot(z[i], held[j]), labels[j]) for j in range(len(held))]
        r = log_sum_exp([x / s["temperature"] for x, _ in others])
        losses.append(mean([r - x / s["temperature"] for x, y in others if y == labels[i]]))
    return mean(losses)


def momentum_contrast(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """The queue holds the other views; those of the own image, by label, are no negatives."""
    labels, losses = d["labels"], []
    for i, q in enumerate(f["a"]):
        others = [dot(q, k) for k, y in zip(frozen["b"], labels, strict=True) if y != labels[i]]
        own = dot(q, frozen["b"][i]) / s["temperature"]
        losses.append(log_sum_exp([own, *(x / s["temperature"] for x in others)]) - own)
    return mean(losses)


QUEUE = np.random.default_rng(5).normal(size=(12, 3))
QUEUE /= np.linalg.norm(QUEUE, axis=1, keepdims=True)


def mochi(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """Vectors are mixed and normalised, and the constants taken from before the difference step."""
    losses = []
    for q, still, key, label in zip(f["a"], frozen["a"], frozen["b"], d["labels"], strict=True):
        negatives = [n for row, n in enumerate(QUEUE) if row % 4 != label]
        hard = sorted(negatives, key=lambda n, still=still: -dot(still, n))[:4]
        mixtures = []
        for c in range(3):
            rank = (label + c) % 4
            share = (rank + 1) / 9
            mixtures.append(2 * share * hard[rank] + (1 - 2 * share) * hard[(rank + 1) % 4])
            mixtures.append(share * still + (1 - share) * hard[rank])
        mixtures = [h / math.sqrt(dot(h, h)) for h in mixtures]
        logits = [dot(q, n) / s["temperature"] for n in (key, *negatives, *mixtures)]
        losses.append(log_sum_exp(logits) - logits[0])
    return mean(losses)
