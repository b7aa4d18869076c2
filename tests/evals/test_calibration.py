"""Calibration errors and temperature scaling against golden vectors and plain loops."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import calibration as cal
from mixcon.evals.calibration import bins_of, calibration_report, ece, nll, temperature_scale

FOLDER = Path(__file__).parents[1] / "golden"


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def looped(p, right, edges):
    """Σ n_b/N |acc - conf| over (lo, hi], example by example."""
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(len(p)) if low < p[i] <= high]
        if inside:
            total += abs(np.mean([right[i] for i in inside]) - np.mean([p[i] for i in inside])) * len(inside)
    return total / len(p)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    return 2 * np.eye(4)[labels] + 1.5 * rng.normal(size=(200, 4)), labels


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_golden_ece_of_the_toolbox(case):
    golden = np.load(FOLDER / "openmixup-metrics.npz")
    logits, labels = golden[f"{case}/in/logits"], golden[f"{case}/in/y"]
    assert ece(logits, labels, bins=10) == pytest.approx(float(golden[f"{case}/out/ece"]), rel=1e-6)
    wrong = float(golden[f"{case}/out/ece_sorted_legacy"])  # bins sorted apart from each other: a bug, not a measure
    assert abs(ece(logits, labels, bins=10) - wrong) > 0.05


def test_golden_of_every_other_measure():
    golden = np.load(FOLDER / "rankmixup.npz")
    found = calibration_report(golden["c2/in/logits"], golden["c2/in/labels"], bins=int(golden["c2/in/n_bins"]))
    names = {"ece": "ece", "aece": "adaptive_ece", "cece": "classwise_ece", "oe": "over", "ue": "under",
             "mce": "max_ce", "ace": "mean_ce", "nll": "nll"}  # fmt: skip
    for theirs, ours in names.items():
        assert found[ours] == pytest.approx(float(golden[f"c2/out/{theirs}"]), rel=1e-5), ours


def test_every_measure_matches_a_loop(drawn):
    logits, labels = drawn
    p = softmax(logits)
    top, right = p.max(1), p.argmax(1) == labels
    found = calibration_report(logits, labels, bins=7)
    assert found["ece"] == pytest.approx(looped(top, right, np.linspace(0, 1, 8)))
    edges = np.interp(np.linspace(0, 200, 8), np.arange(200), np.sort(top))
    assert found["adaptive_ece"] == pytest.approx(looped(top, right, edges))
    by_class = [looped(p[:, c], labels == c, np.linspace(0, 1, 8)) for c in range(4)]
    assert found["classwise_ece"] == pytest.approx(np.mean(by_class))
    assert found["nll"] == pytest.approx(-np.mean([np.log(p[i, y]) for i, y in enumerate(labels)]))
    assert found["brier"] == pytest.approx(
        np.mean([sum((p[i, c] - (c == y)) ** 2 for c in range(4)) for i, y in enumerate(labels)])
    )


def test_bins_have_closed_upper_ends_and_empty_ones_do_not_count():
    found = bins_of([0.5, 0.5, 1.0], [True, False, True], bins=2)
    assert found.counts.tolist() == [2, 1]
    assert found.accuracy.tolist() == [0.5, 1.0]
    assert bins_of([0.9], [True], bins=10).error == pytest.approx(0.1)


@pytest.mark.parametrize("factor", [0.25, 1.0, 6.0])
def test_temperature_undoes_a_factor_and_is_the_best_of_a_fine_grid(drawn, factor):
    logits, labels = drawn
    base, scaled = temperature_scale(logits, labels), temperature_scale(factor * logits, labels)
    assert scaled == pytest.approx(factor * base, rel=1e-4)
    grid = np.geomspace(base / 3, base * 3, 400)
    assert nll(logits / base, labels) <= min(nll(logits / t, labels) for t in grid) + 1e-9
    assert temperature_scale(logits, labels) == base


def test_temperature_by_ece_is_the_first_best_of_its_grid(drawn):
    logits, labels = drawn
    values = [ece(logits / t, labels) for t in np.arange(1, 101) / 10]
    assert temperature_scale(logits, labels, criterion="ece") == pytest.approx((np.argmin(values) + 1) / 10)


def test_what_cannot_be_measured_is_refused(drawn):
    logits, labels = drawn
    bad = logits.copy()
    bad[3, 1] = np.nan
    for call, message in (
        (lambda: ece(logits[0], labels), "logits must be"),
        (lambda: ece(bad, labels), "non-finite values in 1 of"),
        (lambda: ece(logits, labels + 1), "labels must lie"),
        (lambda: ece(logits, labels[:-1]), "labels must be 200"),
        (lambda: ece(logits, labels, bins=0), "bins"),
        (lambda: bins_of([1.5], [True]), "confidence must lie"),
        (lambda: temperature_scale(logits, labels, criterion="mse"), "criterion"),
        (lambda: cal.reliability(logits, labels, bins=0), "bins"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_reliability_diagram_holds_its_bins(drawn):
    logits, labels = drawn
    diagram = cal.reliability(logits, labels, bins=5, title="t")
    assert str(diagram["kind"]) == "reliability"
    assert diagram["count"].sum() == 200
    gaps = np.abs(diagram["accuracy"] - diagram["confidence"])
    assert float(diagram["ece"]) == pytest.approx((gaps * diagram["count"]).sum() / 200)
