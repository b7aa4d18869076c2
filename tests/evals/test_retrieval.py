"""Ranks against a plain sort, golden vectors, ties, tiles, chance."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from mixcon.errors import InputError
from mixcon.evals import (
    chance_recall,
    combined_query,
    fit_sgd,
    image_text_retrieval,
    ranks,
    retrieval,
    tiles,
    top_k,
    uniformity,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "evals.npz")


def golden(prefix):
    return {k.removeprefix(prefix + "/"): GOLDEN[k] for k in GOLDEN.files if k.startswith(prefix + "/")}


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loop_ranks(query, corpus, positives, skip=None):
    """Sort everything; walk down until a positive; ties go against it."""
    result = []
    for i, q in enumerate(query):
        best = max(float(q @ corpus[p]) for p in positives[i])
        ahead = 0
        for j, c in enumerate(corpus):
            if j in positives[i] or (skip is not None and j == skip[i]):
                continue
            ahead += float(q @ c) >= best - 1e-12
        result.append(1 + ahead)
    return np.array(result)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles far smaller than the data, and not dividing it: every seam is crossed."""
    defaults = {"query_tile": 4, "corpus_tile": 8}
    monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "query_tile", defaults["query_tile"])
    monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "corpus_tile", defaults["corpus_tile"])


def test_ranks_one_positive_match_a_loop(small_tiles):
    rng = np.random.default_rng(0)
    query, corpus = unit(rng, 11, 6), unit(rng, 29, 6)
    positive = rng.integers(0, 29, 11)
    want = loop_ranks(query, corpus, [{p} for p in positive])
    np.testing.assert_array_equal(ranks(query, corpus, relevant=positive), want)


def test_ranks_are_the_same_for_every_tiling(monkeypatch):
    rng = np.random.default_rng(1)
    query, corpus = unit(rng, 37, 16), unit(rng, 37, 16)
    whole = ranks(query, corpus)
    for q, c in ((1, 1), (8, 4), (16, 64)):
        monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "query_tile", q)
        monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "corpus_tile", c)
        np.testing.assert_array_equal(ranks(query, corpus), whole)


def test_ids_may_be_sets_on_one_side(small_tiles):
    rng = np.random.default_rng(8)
    query, corpus, ids = unit(rng, 7, 5), unit(rng, 23, 5), rng.integers(0, 6, 23)
    sets = [{0, 1}, {2}, {3, 4, 5}, {1}, {5, 0}, {2, 4}, {3}]
    padded = np.array([[*s, *s, -1, -1, -1][:3] for s in sets])
    want = [{j for j in range(23) if ids[j] in s} for s in sets]
    np.testing.assert_array_equal(ranks(query, corpus, relevant=(padded, ids)), loop_ranks(query, corpus, want))
    back = [{q for q, s in enumerate(sets) if i in s} for i in ids]
    np.testing.assert_array_equal(ranks(corpus, query, relevant=(ids, padded)), loop_ranks(corpus, query, back))
    found = image_text_retrieval(query, corpus, image_ids=padded, text_ids=ids, ks=(2,))
    assert found["image_to_text/R@2/chance"] == pytest.approx(chance_recall([len(p) for p in want], 23, 2))
    assert found["text_to_image/R@2/chance"] == pytest.approx(chance_recall([len(p) for p in back], 7, 2))
    both = ranks(query, query, relevant=(padded, np.arange(7) % 6), exclude_self=True)
    others = [{j for j in range(7) if j % 6 in s and j != q} for q, s in enumerate(sets)]
    np.testing.assert_array_equal(both, loop_ranks(query, query, others, skip=range(7)))


def test_ranks_several_positives_by_index_and_by_id(small_tiles):
    rng = np.random.default_rng(2)
    query, corpus = unit(rng, 5, 4), unit(rng, 15, 4)
    groups = np.array([3, 1, 4, 0, 2] * 3)
    positives = [set(np.flatnonzero(groups == i)) for i in range(5)]
    want = loop_ranks(query, corpus, positives)
    padded = np.full((5, 4), -1)
    for i, p in enumerate(positives):
        padded[i, :3] = sorted(p)
    np.testing.assert_array_equal(ranks(query, corpus, relevant=padded), want)
    np.testing.assert_array_equal(ranks(query, corpus, relevant=(np.arange(5), groups)), want)
    names = np.array(["a", "b", "c", "d", "e"])
    np.testing.assert_array_equal(ranks(query, corpus, relevant=(names, names[groups])), want)


def test_ties_count_against_the_positive_and_a_collapsed_encoder_ranks_last():
    rng = np.random.default_rng(3)
    row = unit(rng, 1, 193)
    collapsed = np.repeat(row, 50, axis=0)
    assert ranks(collapsed, collapsed).tolist() == [50] * 50
    assert retrieval(collapsed, collapsed)["R@10"] == 0
    twice = np.concatenate([np.eye(3), np.eye(3)])
    assert ranks(np.eye(3), twice, relevant=np.arange(3)).tolist() == [2, 2, 2]
    assert ranks(np.eye(3), twice, relevant=(np.arange(3), np.arange(6) % 3)).tolist() == [1, 1, 1]


def test_a_lead_within_rounding_is_a_tie_and_products_are_full_precision():
    corpus = np.array([[1.0, 0.0], [1.0 + 2e-7, 0.0], [0.9999, 0.0]], np.float32)
    assert ranks(corpus[:1], corpus, relevant=[1]).tolist() == [2]
    assert ranks(corpus[:1], corpus, relevant=[2]).tolist() == [3]
    assert "HIGHEST" in str(jax.make_jaxpr(tiles.dots)(corpus, corpus))  # a CPU would not show the difference


def test_an_index_named_twice_is_one_positive_and_padding_is_none():
    rng = np.random.default_rng(10)
    query, corpus = unit(rng, 2, 4), unit(rng, 20, 4)
    twice = retrieval(query, corpus, relevant=[[3, 3], [5, -1]], ks=(2,))
    assert twice == retrieval(query, corpus, relevant=[3, 5], ks=(2,))
    assert twice["R@2/chance"] == pytest.approx(0.1)
    with pytest.raises(InputError, match="no positive"):
        ranks(query, corpus, relevant=[[3, 3], [-1, -1]])


def test_exclude_self_ranks_within_one_set(small_tiles):
    rng = np.random.default_rng(4)
    x, label = unit(rng, 12, 5), np.arange(12) % 3
    positives = [set(np.flatnonzero(label == label[i])) - {i} for i in range(12)]
    want = loop_ranks(x, x, positives, skip=np.arange(12))
    np.testing.assert_array_equal(ranks(x, x, relevant=(label, label), exclude_self=True), want)


def test_golden_recall_with_five_captions_per_image():
    c = golden("align/c5")
    image, text, index, ks = (c[f"in/{k}"] for k in ("image_features", "text_features", "text_image_index", "ks"))
    got = image_text_retrieval(image, text, image_ids=np.arange(len(image)), text_ids=index, ks=ks.tolist())
    for i, k in enumerate(ks):
        assert got[f"text_to_image/R@{k}"] == pytest.approx(float(c["out/image_retrieval_recall"][i]), abs=1e-6)
        assert got[f"image_to_text/R@{k}"] == pytest.approx(float(c["out/text_retrieval_recall"][i]), abs=1e-6)


@pytest.mark.parametrize("case", ["c1", "c2"])
def test_golden_recall_of_pairs(case):
    c = golden(f"contrastive-gap/{case}")
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (c["in/image"], c["in/text"]))
    got = image_text_retrieval(image, text, ks=(1, 3, 5, 10))
    for i, k in enumerate((1, 3, 5, 10)):
        assert got[f"image_to_text/R@{k}"] == pytest.approx(c["out/metric/i2t_recall_1_3_5_10"][i], abs=1e-6)
        assert got[f"text_to_image/R@{k}"] == pytest.approx(c["out/metric/t2i_recall_1_3_5_10"][i], abs=1e-6)


def test_golden_recall_in_percent():
    c = golden("geodesic-mixup/c1")
    got = retrieval(c["in/text_features"], c["in/image_features"], ks=(1, 5))
    other = retrieval(c["in/image_features"], c["in/text_features"], ks=(1, 5))
    want = c["out/metric/recall_1_5_10"] / 100
    assert any(np.allclose([r["R@1"], r["R@5"]], want[:2]) for r in (got, other))


def test_metrics_and_chance():
    rng = np.random.default_rng(5)
    image, text = unit(rng, 40, 8), unit(rng, 40, 8)
    rank = ranks(image, text)
    got = retrieval(image, text)
    assert got["R@5"] == np.mean(rank <= 5)
    assert got["median_rank"] == np.median(rank)
    assert got["mean_rank"] == pytest.approx(np.mean(rank))
    assert got["R@10/chance"] == pytest.approx(10 / 40)
    assert "R@10" not in retrieval(image[:8], text[:8])  # of eight, ten is no achievement


def test_chance_agrees_with_random_rankings():
    rng = np.random.default_rng(6)
    positives, corpus, k = np.array([1, 3]), 12, 4
    hits = [np.mean([(rng.permutation(corpus)[:k] < p).any() for p in positives]) for _ in range(4000)]
    assert chance_recall(positives, corpus, k) == pytest.approx(np.mean(hits), abs=0.03)
    assert chance_recall(2, 5, 99) == 1


def test_top_k_matches_a_stable_sort(small_tiles):
    rng = np.random.default_rng(7)
    query = rng.normal(size=(9, 3)).round()  # rounded: many exact ties
    corpus = rng.normal(size=(21, 3)).round()
    scores, index = top_k(query, corpus, 6)
    want = np.argsort(-(query @ corpus.T), axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(index, want)
    np.testing.assert_allclose(scores, np.take_along_axis(query @ corpus.T, want, 1), rtol=1e-6)
    _, others = top_k(corpus, corpus, 20, exclude_self=True)
    assert all(i not in row for i, row in enumerate(others))


def test_runs_under_a_transfer_guard_and_accepts_device_arrays():
    rng = np.random.default_rng(8)
    x = jax.device_put(unit(rng, 6, 4).astype(np.float32))
    with jax.transfer_guard("disallow"):
        assert ranks(x, x).tolist() == [1] * 6


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_inside_the_mesh_of_a_training_run(kind):
    rng = np.random.default_rng(11)
    x, label = unit(rng, 21, 4), np.arange(21) % 3
    outside = ranks(x, x[::-1]), uniformity(x), fit_sgd(x, label, classes=3, epochs=2).weight
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        inside = ranks(x, x[::-1]), uniformity(x), fit_sgd(x, label, classes=3, epochs=2).weight
    for a, b in zip(outside, inside, strict=True):
        np.testing.assert_array_equal(a, b)


def test_combined_query_moves_towards_the_text():
    rng = np.random.default_rng(9)
    corpus = unit(rng, 30, 8)
    added = combined_query(corpus[:1], corpus[7], weight=3.0)
    assert top_k(added, corpus, 1)[1][0, 0] == 7
    removed = combined_query(corpus[:1] + corpus[7:8], corpus[7], weight=-1)
    np.testing.assert_allclose(removed, corpus[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(query=np.eye(3), corpus=np.eye(3)[:, :2]), "columns"),
        (dict(query=np.eye(3), corpus=np.eye(3)[:2]), "relevant=None"),
        (dict(query=np.eye(3), corpus=np.eye(3), relevant=np.array([0, 1, 3])), "row 3"),
        (dict(query=np.eye(3), corpus=np.eye(3), relevant=np.array([0.0, 1.0, 2.0])), "integers"),
        (dict(query=np.eye(3), corpus=np.eye(3), relevant=([0, 1, 9], [0, 1, 2])), "no positive"),
        (dict(query=np.eye(3), corpus=np.eye(3), exclude_self=True), "no positive"),
        (dict(query=np.full((1, 2), np.nan), corpus=np.eye(2), relevant=[0]), "non-finite"),
        (dict(query=np.zeros((0, 2)), corpus=np.eye(2)), "at least one row"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ranks(**arguments)


def test_other_bad_input_is_refused():
    with pytest.raises(InputError, match="neighbours"):
        top_k(np.eye(3), np.eye(3), 4)
    with pytest.raises(InputError, match="together"):
        image_text_retrieval(np.eye(3), np.eye(3), image_ids=np.arange(3))
    with pytest.raises(InputError, match="one row"):
        combined_query(np.eye(3), np.eye(3)[:2])
