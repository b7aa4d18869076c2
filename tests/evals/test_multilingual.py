"""Ranks of scores, recalls and rank variance as the authors' code gives them; the second stage by plain loops."""

import pathlib

import numpy as np
import pytest

from mixcon import evals
from mixcon.errors import InputError

FILE = np.load(pathlib.Path(__file__).parents[1] / "golden" / "one-to-k.npz")


def report(texts, **options):
    return dict(evals.multilingual_report(np.eye(4), texts, **options))


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_ranks_and_recalls_of_the_official_code():
    scores = FILE["c2/in/scores_i2t"]
    for name, ranks in (("txt", "ranks_tr"), ("img", "ranks_ir")):
        got = evals.ranks_of_scores(scores if name == "txt" else scores.T)
        np.testing.assert_array_equal(got, FILE[f"c2/out/{ranks}"])
        recalls = [100 * evals.recall_at_k(got, k) for k in (1, 5, 10)]
        np.testing.assert_allclose(recalls, [FILE[f"c2/out/{name}_r{k}"] for k in (1, 5, 10)])
        np.testing.assert_allclose(np.mean(recalls), FILE[f"c2/out/{name}_r_mean"])


def test_rank_variance_of_the_official_code_and_of_the_paper():
    ranks = FILE["c3/in/ranks"]
    np.testing.assert_allclose(evals.mean_rank_variance(ranks), FILE["c3/out/mean_rank_std"], rtol=1e-6)
    got = evals.mean_rank_variance(ranks, kind="variance")
    np.testing.assert_allclose(got, FILE["c3/out/mean_rank_variance"], rtol=1e-6)
    assert evals.mean_rank_variance(np.repeat(ranks[:, :1], 3, axis=1)) == 0


def test_ties_are_pessimistic_and_the_best_of_several_positives_counts():
    scores = np.array([[0.5, 0.5, 0.1], [0.9, 0.2, 0.3]])
    relevant = np.array([[True, False, False], [False, True, True]])
    assert evals.ranks_of_scores(scores, relevant=relevant).tolist() == [1, 1]
    assert evals.ranks_of_scores(np.zeros((4, 4))).tolist() == [3] * 4


def test_the_second_stage_orders_the_first_k_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    query, corpus, second = unit(rng, 30, 3), unit(rng, 30, 3), rng.normal(size=(30, 30))
    asked = []

    def score(rows, cols):
        asked.append((rows, cols))
        return second[rows, cols]

    got = evals.reranked(query, corpus, score, k=6)
    for i, rank in enumerate(got):
        order = np.argsort(-(query[i] @ corpus.T))
        front = sorted(order[:6], key=lambda j: -second[i, j])
        assert rank == [*front, *order[6:]].index(i)
    assert len(asked[0][0]) == 180, "every pair is asked for once"
    np.testing.assert_array_equal(evals.reranked(query, corpus, lambda q, c: (query[q] * corpus[c]).sum(1), k=30),
                                  evals.ranks(query, corpus) - 1)  # fmt: skip


def test_a_report_of_languages():
    rng = np.random.default_rng(1)
    image, noise = unit(rng, 40, 8), unit(rng, 40, 8)
    texts = {"en": image, "de": evals.normalized(image + 0.8 * noise)}
    report = dict(
        evals.multilingual_report(image, texts, score=lambda *_: lambda rows, cols: 1.0 * (rows == cols), k=5)
    )
    assert report["text_to_image/en/R@1"] == 1
    assert report["text_to_image/worst_R@1"] == report["text_to_image/de/R@1"] < 1
    ranks = np.stack([evals.ranks(text, image) - 1 for text in texts.values()], 1)
    assert report["text_to_image/rank_std"] == pytest.approx(ranks.std(1).mean())
    assert report["reranked/text_to_image/de/R@1"] == report["text_to_image/de/R@5"], (
        "what is among the first k is found"
    )
    assert 0 < report["R_mean"] < report["reranked/R_mean"]
    alone = dict(evals.multilingual_report(image, {"en": image}))
    assert "text_to_image/rank_std" not in alone


def test_any_caption_of_an_image_is_right_and_each_image_is_a_candidate_once():
    rng = np.random.default_rng(2)
    ids = np.repeat([7, 3, 9, 4, 8, 1], 5)
    image = unit(rng, 10, 8)[ids]
    texts = {"en": evals.normalized(image + 0.05 * unit(rng, 30, 8)), "de": unit(rng, 30, 8)}
    asked = []

    def score(language, images_ask):
        def of_pairs(rows, cols):
            asked.append((rows, cols) if images_ask else (cols, rows))
            return 1.0 * (ids[rows] == ids[cols])

        return of_pairs

    report = dict(evals.multilingual_report(image, texts, ids=ids, score=score, k=6))
    assert report["text_to_image/en/R@1"] == report["image_to_text/en/R@1"] == 1
    gallery = np.unique(ids, return_index=True)[1]
    backward = [evals.ranks(text, image[gallery], relevant=(ids, ids[gallery])) - 1 for text in texts.values()]
    assert report["text_to_image/rank_std"] == pytest.approx(np.stack(backward, 1).std(1).mean())
    forward = [evals.ranks(image[gallery], text, relevant=(ids[gallery], ids)) - 1 for text in texts.values()]
    assert report["image_to_text/rank_std"] == pytest.approx(np.stack(forward, 1).std(1).mean())
    assert report["image_to_text/de/R@5"] == np.mean(forward[1] < 5)
    assert report["reranked/text_to_image/de/R@1"] == 1, "all six images are looked at again"
    assert {*np.concatenate([images for images, _ in asked])} == {*gallery}, "pairs are rows of the set"
    assert max(texts.max() for _, texts in asked) == 29


def test_a_caption_that_is_not_there_is_no_query_and_no_candidate():
    rng = np.random.default_rng(3)
    image = unit(rng, 16, 6)
    texts = {name: evals.normalized(image + 0.8 * unit(rng, 16, 6)) for name in ("en", "de", "ja")}
    there = {"en": np.ones(16, bool), "de": np.arange(16) % 4 == 1, "ja": np.arange(16) > 4}
    texts["ja"] = np.where(there["ja"][:, None], texts["ja"], image)  # what is not there would be found
    score = lambda language, images_ask: lambda rows, cols: 1.0 * (rows == cols)  # noqa: E731
    report = dict(evals.multilingual_report(image, texts, there=there, score=score, k=16))
    for name, text in texts.items():
        rows = np.flatnonzero(there[name])
        assert report[f"text_to_image/{name}/R@1"] == np.mean(evals.ranks(text[rows], image, relevant=rows) == 1)
        assert report[f"image_to_text/{name}/R@1"] == np.mean(evals.ranks(image[rows], text[rows]) == 1)
        assert report[f"reranked/text_to_image/{name}/R@1"] == 1
    every = np.flatnonzero(there["de"] & there["ja"])
    backward = [evals.ranks(text[every], image, relevant=every) for text in texts.values()]
    assert report["text_to_image/rank_std"] == pytest.approx(np.stack(backward, 1).std(1).mean())
    forward = [evals.ranks(image[every], text[every]) for text in texts.values()]  # as many candidates in each language
    assert report["image_to_text/rank_std"] == pytest.approx(np.stack(forward, 1).std(1).mean())
    none = dict(evals.multilingual_report(image, texts, there=there | {"de": np.zeros(16, bool)}))
    assert "text_to_image/de/R@1" not in none
    assert "text_to_image/rank_std" not in none
    assert none["text_to_image/R@1"] == np.mean([none[f"text_to_image/{name}/R@1"] for name in ("en", "ja")])


def test_consistency_is_over_the_languages_that_are_named():
    rng = np.random.default_rng(4)
    image = unit(rng, 30, 4)
    texts = {name: unit(rng, 30, 4) for name in ("en", "de", "ja")}
    some = {name: texts[name] for name in ("en", "ja")}
    found = dict(evals.multilingual_report(image, texts, over=("en", "ja")))
    assert found["image_to_text/rank_std"] == dict(evals.multilingual_report(image, some))["image_to_text/rank_std"]
    assert found["R_mean"] == dict(evals.multilingual_report(image, texts))["R_mean"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evals.mean_rank_variance(np.zeros((5, 1))), "at least two languages"),
        (lambda: evals.mean_rank_variance(np.zeros((5, 2)), kind="mad"), "kind"),
        (lambda: evals.ranks_of_scores(np.zeros((3, 4))), "relevant=None"),
        (lambda: evals.ranks_of_scores(np.full((2, 2), np.nan)), "finite"),
        (lambda: evals.ranks_of_scores(np.zeros((2, 2)), relevant=np.zeros((2, 2))), "positive for every query"),
        (lambda: evals.reranked(np.eye(4), np.eye(4), lambda q, c: q[:3], k=2), "finite numbers"),
        (lambda: evals.reranked(np.eye(4), np.eye(4), lambda q, c: q, k=5), "candidates"),
        (lambda: report({"en": np.eye(4)}, there={"en": np.zeros(4, bool)}), "no caption"),
        (lambda: report({"en": np.eye(4)}, there={"de": np.ones(4, bool)}), "'en'"),
        (lambda: report({"en": np.eye(4), "de": np.eye(4)}, over=("en", "fr")), "'fr'"),
        (lambda: report({"en": np.eye(4)}, ids=np.arange(3)), "ids"),
    ],
)
def test_mistakes_are_refused_in_words(call, words):
    with pytest.raises(InputError, match=words):
        call()
