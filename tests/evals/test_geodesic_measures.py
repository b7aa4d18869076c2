"""Hardness of negatives and SIMAT against plain loops, and what they refuse."""

import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import gap_report, negative_hardness, relative_alignment, simat_score, uniformity
from mixcon.evals.geodesic import STRENGTHS


def unit(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_hardness_is_that_of_plain_loops():
    x, y, n = unit(0, 3, 12, 4)
    got = negative_hardness(x, y, n)
    others = [[j for j in range(12) if j != i] for i in range(12)]
    for name, rows in (("", n), ("partner_", y)):
        cosines = [[float(x[i] @ rows[j]) for j in others[i]] for i in range(12)]
        assert got[f"{name}cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert got[f"{name}hardest"] == pytest.approx(np.mean([max(row) for row in cosines]), abs=1e-6)
    harder = [max(x[i] @ n[j] for j in others[i]) > max(x[i] @ y[j] for j in others[i]) for i in range(12)]
    assert got["harder"] == pytest.approx(np.mean(harder))


def test_simat_is_that_of_plain_loops():
    rng = np.random.default_rng(1)
    image, old, new = unit(2, 15, 3), unit(3, 6, 3), unit(4, 6, 3)
    query, oracle, norm = rng.integers(0, 15, 6), rng.uniform(size=(6, 15)), rng.uniform(1, 9, 6)
    best = (-1.0, 0.0)
    for strength in STRENGTHS:
        total = 0.0
        for q in range(6):
            target = image[query[q]] + strength * (new[q] - old[q])
            nearest = max((i for i in range(15) if i != query[q]), key=lambda i: float(target @ image[i]))
            total += (oracle[q, nearest] > 0.5) / np.sqrt(norm[q])
        best = max(best, (total / sum(1 / np.sqrt(norm)), -strength))
    got = simat_score(image, query, old, new, oracle, norm=norm)
    assert (got["simat"], -got["strength"]) == pytest.approx(best)


def test_the_gap_report_looks_at_both_modalities_together():
    x, y = unit(5, 2, 14, 4)
    found = gap_report(x, y)
    assert found["union_uniformity"] == pytest.approx(uniformity(np.concatenate([x, y])))
    assert found["relative_alignment"] == pytest.approx(relative_alignment(y, x))


def test_bad_input_is_refused_in_words():
    rows, one = np.eye(3), np.eye(3)[:1]
    good = {"image": rows, "query": [0], "old": one, "new": one, "oracle": np.ones((1, 3)), "norm": [1.0]}
    assert simat_score(**good)["simat"] == 1.0
    for change, message in (
        ({"norm": [0.0]}, "above 0"),
        ({"strengths": ()}, "strengths"),
        ({"query": [3]}, "places of the 3"),
        ({"old": rows}, "old must have a row for each"),
        ({"oracle": np.ones((1, 2))}, r"oracle must be \[1, 3\]"),
        ({"image": 2 * rows}, "unit"),
    ):
        with pytest.raises(InputError, match=message):
            simat_score(**good | change)
    with pytest.raises(InputError):
        negative_hardness(rows, rows, rows[:2])
