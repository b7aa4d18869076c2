"""Search by image and words: against a plain loop, its baselines, and on real emoji."""

import numpy as np
import pytest

from mixcon.data import Emoji
from mixcon.errors import InputError
from mixcon.evals.composed import Edit, composed_retrieval, edits


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_ranks_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    image, words = unit(rng.normal(size=(30, 5))), dict(zip("abc", unit(rng.normal(size=(3, 5))), strict=True))
    wanted = [Edit(int(q), int(t), *rng.choice(list("abc"), 2, replace=False)) for q, t in rng.integers(0, 15, (40, 2))]
    wanted = [edit for edit in wanted if edit.query != edit.target]
    groups = np.arange(30) % 4
    got = composed_retrieval(image, wanted, words, groups=groups, weight=0.7, ks=(1, 3))
    hits = {name: {1: [], 3: []} for name in ("", "image/", "words/", "class/")}
    for query, target, old, new in wanted:
        asked = {
            "": image[query] + 0.7 * (words[new] - words[old]),
            "image/": image[query],
            "words/": words[new] - words[old],
        }
        for name, vector in asked.items():
            rank = 1 + sum(
                float(image[j] @ vector) > float(image[target] @ vector) for j in range(30) if j not in (query, target)
            )
            for k in (1, 3):
                hits[name][k].append(rank <= k)
        group = [j for j in range(30) if groups[j] == groups[query] and j != query]
        for k in (1, 3):
            hits["class/"][k].append(min(k / len(group), 1) if target in group else 0)
    for name, by_k in hits.items():
        for k, values in by_k.items():
            assert got[f"{name}R@{k}"] == pytest.approx(np.mean(values)), (name, k)


def test_a_collapsed_encoder_finds_nothing():
    image = np.tile(unit(np.ones(4)), (20, 1))
    words = {"a": unit(np.ones(4)), "b": unit(np.ones(4))}
    got = composed_retrieval(image, [Edit(0, 1, "a", "b")], words, groups=np.zeros(20))
    assert got["R@10"] == 0
    assert got["median_rank"] == 19


def test_space_in_which_the_attribute_is_a_direction_is_searched_perfectly():
    rng = np.random.default_rng(0)
    records = [{"job": j, "who": who} for j in range(10) for who in ("man", "woman")]
    who = {"man": np.eye(12)[0], "woman": np.eye(12)[1]}
    image = unit(np.stack([np.r_[0, 0, np.eye(10)[r["job"]]] + 0.5 * who[r["who"]] for r in records]))
    wanted = edits(records, range(20), attribute="who", values=("man", "woman"), same=("job",))
    assert len(wanted) == 20
    found = composed_retrieval(image, wanted, who, groups=[r["job"] for r in records], ks=(1,))
    assert found["R@1"] == found["image/R@1"] == found["class/R@1"] == 1
    third = [{"job": j, "who": "child"} for j in range(10)]
    more = unit(np.stack([np.eye(12)[2 + j] + 0.01 * rng.normal(size=12) for j in range(10)]))
    found = composed_retrieval(
        np.concatenate([image, more]), wanted, who, groups=[r["job"] for r in records + third], ks=(1,)
    )
    assert found["R@1"] == 1
    assert found["image/R@1"] < 0.5
    assert found["class/R@1"] == 0.5


def test_edits_of_the_emoji_reach_held_out_combinations():
    everything, held_out = Emoji("composition", "all"), Emoji("composition", "test")
    table = [everything._labels[row] for row in everything.rows]
    targets = np.flatnonzero(np.isin(everything.rows, held_out.rows))
    wanted = edits(table, targets, attribute="gender", values=("man", "woman", "none"), same=("base", "tone"))
    assert set(edit.target for edit in wanted) <= set(targets)
    for edit in wanted:
        query, target = table[edit.query], table[edit.target]
        assert (query["base"], query["tone"]) == (target["base"], target["tone"])
        assert (query["gender"], target["gender"]) == (edit.old, edit.new)
    assert len(wanted) > 300


def test_mistakes_are_refused_in_words():
    image = unit(np.eye(3))
    with pytest.raises(InputError, match="no row for b"):
        composed_retrieval(image, [Edit(0, 1, "a", "b")], {"a": image[0]}, groups=[0, 0, 0])
    with pytest.raises(InputError, match="of the 3 rows"):
        composed_retrieval(image, [Edit(0, 3, "a", "a")], {"a": image[0]}, groups=[0, 0, 0])
    with pytest.raises(InputError, match="no two records differ"):
        edits([{"a": 1, "b": "x"}], [0], attribute="b", values=("x",), same=("a",))
