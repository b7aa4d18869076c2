"""The two leak-free splits of the emoji set (used by its builder)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from mixcon.data.emoji_parts import Parts, without_hair

Report = dict[str, int]


def clusters(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Labels of the connected components of items that share any key; the label is the first member's position."""
    parent = list(range(len(keys)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[Hashable, int] = {}
    for i, shared in enumerate(keys):
        for key in shared:
            a, b = find(i), find(first.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(len(keys))]


def alike(images: Sequence[np.ndarray], *, tolerance: float) -> list[int]:
    """Cluster labels of pictures that differ by less than `tolerance` (root mean square, white - black = 1)."""
    x = np.stack(images).reshape(len(images), -1).astype(np.float32) / 255
    norms = np.einsum("np,np->n", x, x)
    squares = (norms[:, None] + norms[None, :] - 2 * x @ x.T) / x.shape[1]
    near = np.argwhere(squares < tolerance**2)
    pairs: list[list[tuple[int, int]]] = [[] for _ in images]
    for a, b in near.tolist():
        pairs[a].append((min(a, b), max(a, b)))
    return clusters(pairs)


def _count(members: Iterable[Hashable]) -> int:
    """How many distinct values occur more than once."""
    return sum(n > 1 for n in Counter(members).values())


def split_concept(
    parts: Sequence[Parts],
    pictures: Sequence[int],
    names: Sequence[tuple[str, ...]],
    strata: Sequence[str],
    *,
    seed: int,
    share: float = 0.12,
) -> tuple[list[str], Report]:
    """Whole concepts go to one side: all variants of a base, and bases tied by picture or name.

    Concepts are drawn within each subgroup until `share` of its items is held out: every kind is tested.
    """
    rows = list(zip(parts, pictures, names, strict=True))
    bases = clusters([(without_hair(part.base),) for part in parts])
    label = clusters([(without_hair(part.base), picture, *name) for part, picture, name in rows])
    items = defaultdict(list)
    for i, concept in enumerate(label):
        items[concept].append(i)
    by_stratum = defaultdict(list)
    for concept in items:
        by_stratum[strata[concept]].append(concept)
    rng = np.random.default_rng([seed, 1])
    held: set[int] = set()
    for stratum in sorted(by_stratum):
        concepts = by_stratum[stratum]
        wanted = share * sum(len(items[c]) for c in concepts)
        for concept in rng.permutation(concepts).tolist():
            if len(items[concept]) <= wanted + 0.5:  # half an item of slack, so that small subgroups take part
                held.add(concept)
                wanted -= len(items[concept])
    sides = ["test" if concept in held else "train" for concept in label]
    return sides, {
        "concepts": len(items),
        "concepts merged because a picture or name is shared": len(set(bases)) - len(items),
        "names (18 languages) shared by several emoji": sum(_count(column) for column in zip(*names, strict=True)),
    }


def split_composition(
    parts: Sequence[Parts],
    pictures: Sequence[int],
    names: Sequence[tuple[str, ...]],
    *,
    seed: int,
    size: int = 400,
) -> tuple[list[str], Report]:
    """Holds out combinations: base, tone and gender each remain in train, the picture and every name do not.

    Only emoji with a skin tone and without a twin (same combination, picture or name) are candidates.
    """
    label = clusters([(part, picture, *name) for part, picture, name in zip(parts, pictures, names, strict=True)])
    items = defaultdict(list)
    for i, twin in enumerate(label):
        items[twin].append(i)

    def factors(i: int) -> tuple[tuple[str, str], ...]:
        return tuple(zip(Parts._fields, parts[i], strict=True))

    left = Counter(factor for i in range(len(parts)) for factor in factors(i))
    bases_held: Counter[str] = Counter()
    per_base = Counter(part.base for part in parts)
    candidates = [twin for twin, (i, *others) in items.items() if parts[i].tone != "none" and not others]
    held: set[int] = set()
    refused = 0
    for i in np.random.default_rng([seed, 2]).permutation(candidates).tolist():
        base_full = bases_held[parts[i].base] >= per_base[parts[i].base] // 3
        if base_full or any(left[factor] <= 1 for factor in factors(i)):
            refused += 1
            continue
        left.subtract(factors(i))
        bases_held[parts[i].base] += 1
        held.add(i)
        if len(held) >= size:
            break
    toned = sum(part.tone != "none" for part in parts)
    return ["test" if i in held else "train" for i in range(len(parts))], {
        "toned emoji": toned,
        "toned emoji with a twin (same combination, picture or name), kept in train": toned - len(candidates),
        "combinations refused to keep base, tone and gender in train": refused,
    }
