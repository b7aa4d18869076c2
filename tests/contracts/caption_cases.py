"""Cases of several captions an image and of what a fusion encoder learns by, with their loops."""

from typing import Any

import jax.numpy as jnp
from objective_references import Arrays, dot, log_sum_exp, mean

from mixcon import objectives as o

Tree = dict[str, Any]


def _texts(f: Tree) -> Any:
    return jnp.stack([f["b"], f["c"]], axis=1)


def _nats(logits: list[float], wanted: int) -> float:
    return log_sum_exp(logits) - logits[wanted]


def one_to_k(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    size, texts = len(f["a"]), [f["b"], f["c"]]
    there = [[True, True] if s.get("all") else [bool(y % 2), True] for y in d["labels"]]
    kept = [(j, k) for j in range(size) for k in (0, 1) if there[j][k]]
    logit = {(i, j, k): dot(f["a"][i], texts[k][j]) / s["temperature"] for i in range(size) for j, k in kept}
    i2t, t2i = [], []
    for i in range(size):
        total = log_sum_exp([logit[i, j, k] for j, k in kept])
        i2t.append(mean([total - logit[i, i, k] for k in (0, 1) if there[i][k]]))
        t2i += [log_sum_exp([logit[j, i, k] for j in range(size)]) - logit[i, i, k] for k in (0, 1) if there[i][k]]
    return (2 * mean(i2t) + mean(t2i)) / 4


def soft_id_info_nce(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    losses = []
    for a, b in ((f["a"], f["b"]), (f["b"], f["a"])):
        for i, id in enumerate(d["labels"]):
            logits = [dot(a[i], other) / s["temperature"] for other in b]
            losses.append(mean([_nats(logits, j) for j, other in enumerate(d["labels"]) if other == id]))
    return mean(losses)


def pair_matching(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """Three pairs an example; the first matches."""
    losses = []
    for no, yes in zip(f["a"], f["b"], strict=True):
        losses += [_nats([no[p], yes[p]], int(p == 0)) for p in range(3)]
    return mean(losses)


def masked_tokens(f: Arrays, d: Arrays, s: Arrays, frozen: Arrays) -> float:
    """Two positions an example, three tokens; the second position is hidden in every other class."""
    losses = []
    for first, second, y in zip(f["a"], f["b"], d["labels"], strict=True):
        losses += [_nats(list(first), y % 3)] + [_nats(list(second), (y + 1) % 3)] * (y % 2)
    return mean(losses)


def _masked(f: Tree, d: Tree, s: Tree, axis_name: str | None = None, **_: Any) -> Any:
    targets = jnp.stack([d["labels"] % 3, (d["labels"] + 1) % 3], axis=1)
    mask = jnp.stack([d["labels"] >= 0, d["labels"] % 2 == 1], axis=1)
    return o.masked_tokens(jnp.stack([f["a"], f["b"]], 1), targets, mask=mask, axis_name=axis_name)


CASES: list[dict[str, Any]] = [
    dict(
        name="one_to_k",
        loss=lambda f, d, s, **p: o.one_to_k(f["a"], _texts(f), **s, **p),
        reference=lambda f, d, s, frozen: one_to_k(f, d, s | {"all": True}, frozen),
        features="abc",
        data=("labels",),
    ),
    dict(
        name="one_to_k: captions are missing",
        loss=lambda f, d, s, **p: o.one_to_k(
            f["a"], _texts(f), text_mask=jnp.stack([d["labels"] % 2 == 1, d["labels"] >= 0], 1), **s, **p
        ),
        reference=one_to_k,
        features="abc",
        data=("labels",),
    ),
    dict(
        name="soft_id_info_nce",
        loss=lambda f, d, s, **p: o.soft_id_info_nce(f["a"], f["b"], d["labels"], **s, **p),
        reference=soft_id_info_nce,
        data=("labels",),
    ),
    dict(
        name="pair_matching",
        loss=lambda f, d, s, axis_name=None, **_: o.pair_matching(jnp.stack([f["a"], f["b"]], 2), axis_name=axis_name),
        reference=pair_matching,
        shared=(),
        engine=False,
    ),
    dict(
        name="masked_tokens",
        loss=_masked,
        reference=masked_tokens,
        data=("labels",),
        shared=(),
        engine=False,
    ),
]
