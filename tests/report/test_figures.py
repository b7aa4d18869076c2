"""Pictures: each kind draws on the smallest and on odd input, and shows what it should."""

import io

import numpy as np
import pytest
from PIL import Image

from mixcon.evals import artifacts
from mixcon.report import figures, style
from mixcon.report.curves import draw_panel, noisy, number, panels, panels_figure, smoothed
from mixcon.report.run import Headline, Run, Series, duration, group_of, percent, pretty, times_chance


def pixels(fig):
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


def image(*lead):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (*lead, 9, 7, 3)).astype(np.uint8)


SMALLEST = {
    "grid of images": artifacts.retrieval_grid(query_images=image(1), result_images=image(1, 1), truth_images=image(1),
                                               result_correct=[[True]]),
    "grid of texts": artifacts.retrieval_grid(query_texts=[""], result_texts=[["$x_1$", "y" * 300]],
                                              truth_texts=["a\nb"], result_correct=[[False, True]]),
    "one class": artifacts.confusion([[0]], ["only"]),
    "many classes": artifacts.confusion(np.eye(60, dtype=int), [f"class {i}" for i in range(60)]),
    "one point": artifacts.embedding_map([[1.0, 1.0]], [[1.0, 1.0]]),
    "twelve labels": artifacts.embedding_map(np.random.default_rng(0).normal(size=(24, 2)), np.zeros((24, 2)),
                                             labels=np.arange(24) % 12, names=[f"n{i}" for i in range(12)],
                                             thumbnails=image(3), thumbnail_index=[0, 5, 7]),
    "equal similarities": artifacts.histogram([1.0], [1.0, 1.0]),
    "one bin": artifacts.reliability([0, 2], [0.0, 0.9], [0.0, 0.5], error=0.4),
    "table without rows": artifacts.table(["a", "b"], []),
    "table": artifacts.table(["a"], [["$1"], ["<&>"]]),
}


@pytest.mark.parametrize("name", list(SMALLEST))
def test_every_kind_draws_its_smallest_input(name):
    fig = figures.FIGURES[str(SMALLEST[name]["kind"])](SMALLEST[name])
    assert len(np.unique(pixels(fig).reshape(-1, 3), axis=0)) > 3
    svg = style.to_svg(fig, name)
    assert svg.startswith("<svg")
    assert 'viewBox="' in svg[:200]


def test_the_right_answer_is_framed_in_green_and_the_wrong_one_is_not():
    def green(correct):
        grid = artifacts.retrieval_grid(query_texts=["q"], result_images=image(1, 2) // 4, truth_images=image(1) // 4,
                                        result_correct=[correct])
        rgb = pixels(figures.retrieval_grid(grid)).astype(int)
        return np.sum((rgb[..., 1] > rgb[..., 0] + 60) & (rgb[..., 1] > rgb[..., 2] + 30))

    assert green([True, False]) > green([False, False]) + 50
    assert green([True, True]) > 1.5 * green([True, False])


def test_without_ground_keeps_white_inside():
    picture = np.full((9, 9, 3), 255, np.uint8)
    picture[2:7, 2:7] = 30
    picture[4, 4] = 255  # an eye
    alpha = figures.without_ground(picture)[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[4, 4] == 255
    assert alpha[2, 2] == 255


def test_auc_matches_a_loop_with_ties():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 40).round(1)
    want = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    assert figures.auc(positive, negative) == pytest.approx(want)


def test_spent_shares_sum_to_one_and_keep_unknown_kinds():
    seconds = {"compile": 1.0, "step": 6.0, "data_wait": 0.0, "odd_thing": 3.0, "total": 10.0, "loop_overhead": 0.1}
    parts = figures.spent(seconds)
    assert [p[0] for p in parts] == ["step", "compile", "odd thing"]
    assert sum(p[2] for p in parts) == pytest.approx(1)
    assert figures.spent({}) == []


def test_headline_and_goodput_draw_extremes():
    rows = [Headline("eval/a/R@1", 0.0, 0.0, 1), Headline("eval/a/R@5", 1.0, 1e-6, 1), Headline("R@9", 0.5, 0.5, 1)]
    assert pixels(figures.headline(rows)).std() > 1
    assert pixels(figures.goodput({"step": 1e-3, "total": 0.0})).std() > 1


def run_with(series):
    kept = {k: Series(np.arange(len(v)), np.array(v, float)) for k, v in series.items()}
    return Run(None, {}, {}, kept, None, {}, [], [])


def test_panels_gather_families_and_directions_and_drop_what_has_no_curve():
    found = panels(run_with({
        "train/loss": [3, 2, 1], "train/epoch": [1, 2, 3], "train/skipped": [0, 0, 0], "timing/rate": [5, 6, 7],
        "eval/s/i_to_t/R@10": [0.1, 0.5], "eval/s/i_to_t/R@1": [0, 0.2], "eval/s/i_to_t/R@1/chance": [0.01, 0.01],
        "eval/s/gap/pair_cosine": [0.1, 0.2], "eval/s/gap/x_cosine": [0.3, 0.4], "eval/s/gap/size": [1, 2],
        "eval/s/i_to_t/mean_rank": [9, 8], "eval/s/t_to_i/mean_rank": [9, 7], "eval/once": [1.0],
        "eval/nan": [np.nan] * 3,
    }))
    shape = [(p.group, p.title, p.context, list(p.curves), p.shares) for p in found]
    assert shape == [
        ("train", "loss", "train", ["loss"], False),
        ("eval", "R@k", "s · i → t", ["R@1", "R@10"], True),
        ("eval", "mean rank", "s", ["i → t", "t → i"], False),
        ("eval", "cosine", "s · gap", ["pair", "x"], False),
        ("eval", "size", "s · gap", ["gap"], False),
        ("timing", "rate", "timing", ["rate"], False),
    ]
    assert found[1].chance == [0.01]


def test_a_panel_labels_its_ends_without_overlap():
    found = panels(run_with({f"eval/x/R@{k}": [0.1, 0.5 + 0.001 * k] for k in (1, 5, 10)}))
    with style.styled():
        ax = style.figure(4, 3).add_subplot()
        draw_panel(ax, found[0])
    labels = sorted(ax.texts, key=lambda t: t.xy[1])
    assert [t.get_text() for t in labels] == ["R@1  50.1 %", "R@5  50.5 %", "R@10  51.0 %"]
    assert np.diff([t.xy[1] for t in labels]).min() > 0.1
    assert pixels(panels_figure(found)).std() > 1


def test_long_curves_are_thinned_and_gaps_kept():
    values = np.sin(np.arange(20011) / 3000)
    values[7000:9000] = np.nan
    found = panels(run_with({"train/loss": values}))
    with style.styled():
        ax = style.figure(4, 3).add_subplot()
        draw_panel(ax, found[0])
    line = ax.lines[0].get_xydata()
    assert len(line) < 1600
    assert line[-1, 0] == 20010
    assert np.isnan(line[:, 1]).any()


def test_smoothing_is_unbiased_at_the_ends_and_skips_gaps():
    np.testing.assert_allclose(smoothed(np.full(30, 2.0), 3), 2)
    gap = np.full(30, 2.0)
    gap[10] = np.nan
    np.testing.assert_allclose(smoothed(gap, 3), 2)
    rng = np.random.default_rng(0)
    assert noisy(rng.normal(size=100))
    assert not noisy(np.cos(np.linspace(0, 3, 100)))


def test_words_for_numbers():
    shares = {0: "0 %", 2e-5: "2e-3 %", 0.0042: "0.42 %", 0.042: "4.2 %", 0.42: "42.0 %", 1: "100 %"}
    assert [percent(v) for v in shares] == list(shares.values())
    assert [times_chance(v) for v in (1.4, 32.2, np.inf)] == ["1.4×", "32×", "∞×"]
    assert [duration(s) for s in (0, 45, 200, 7500, 273600)] == ["0 s", "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]
    assert [number(v) for v in (0, 1.23456, 1234.5, 45678, 1e-5)] == ["0", "1.23", "1234", "45.7k", "1e-5"]
    assert group_of("eval/composition/image_to_text/R@10") == "composition · image → text"
    assert pretty("top1") == "top-1"
