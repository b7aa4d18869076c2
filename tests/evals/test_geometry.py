"""Geometry against double loops and golden vectors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.evals import (
    alignment,
    cross_uniformity,
    explained_variance,
    linear_separability,
    modality_gap,
    neighbor_profile,
    normalized,
    project,
    relative_alignment,
    tiles,
    tolerance,
    uniformity,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "evals.npz")


def golden(prefix):
    return {k.removeprefix(prefix + "/"): GOLDEN[k] for k in GOLDEN.files if k.startswith(prefix + "/")}


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loop_uniformity(x, y, t, keep):
    terms = [np.exp(-t * np.sum((a - b) ** 2)) for i, a in enumerate(x) for j, b in enumerate(y) if keep(i, j)]
    return np.log(np.mean(terms))


def test_uniformity_matches_a_double_loop_across_tile_seams(monkeypatch):
    monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "query_tile", 4)
    monkeypatch.setitem(tiles.over_queries.__kwdefaults__, "corpus_tile", 8)
    rng = np.random.default_rng(0)
    x, y = unit(rng, 21, 5), unit(rng, 21, 5)
    assert uniformity(x, t=3.0) == pytest.approx(loop_uniformity(x, x, 3.0, lambda i, j: i != j), rel=1e-5)
    assert uniformity(x, include_self=True) == pytest.approx(loop_uniformity(x, x, 2.0, lambda i, j: True), rel=1e-5)
    assert cross_uniformity(x, y) == pytest.approx(loop_uniformity(x, y, 2.0, lambda i, j: i != j), rel=1e-5)
    assert uniformity(np.repeat(x[:1], 9, axis=0)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_golden_contrastive_gap(case):
    c = golden(f"contrastive-gap/{case}")
    x, y = normalized(c["in/image"]), normalized(c["in/text"])
    want = {k.removeprefix("out/metric/"): v for k, v in c.items() if k.startswith("out/metric/")}
    gap = modality_gap(x, y)
    for ours, theirs in {
        "centroid_distance": "centroid_distance",
        "centroid_cosine": "centroid_cosine",
        "pair_cosine": "mean_pair_cosine",
        "nonpair_cosine": "mean_nonpair_cosine",
        "pair_distance": "mean_pair_distance",
    }.items():
        assert gap[ours] == pytest.approx(float(want[theirs]), rel=1e-5, abs=1e-6), ours
    assert alignment(x, y) == pytest.approx(float(want["alignment"]), rel=1e-5)
    assert uniformity(x) == pytest.approx(float(want["image_uniformity_loss"]), rel=1e-5)
    assert uniformity(y) == pytest.approx(float(want["text_uniformity_loss"]), rel=1e-5)
    assert cross_uniformity(x, y) == pytest.approx(float(want["cross_encoder_uniform_loss"]), rel=1e-5)
    if "linear_separability" in want:
        split = c["in/linsep_train_index"], c["in/linsep_test_index"]
        got = linear_separability(x, y, train_index=split[0], test_index=split[1])
        assert got == pytest.approx(float(want["linear_separability"]))
        np.testing.assert_allclose(explained_variance(x), want["image_explained_variance"], rtol=1e-4, atol=1e-6)


def test_golden_contrastive_behaviour():
    c = golden("contrastive-behaviour/c1")
    x, y, labels, t = (c[f"in/{k}"] for k in ("features", "features_positive", "labels", "t"))
    assert uniformity(x, t=float(t)) == pytest.approx(float(c["out/uniformity_loss"]), rel=1e-5)
    with_self = uniformity(x, t=float(t), include_self=True)
    assert with_self == pytest.approx(float(c["out/uniformity_loss_with_self_pairs"]), rel=1e-5)
    assert tolerance(x, labels) == pytest.approx(float(c["out/tolerance_conditional"]), rel=1e-5)
    assert tolerance(x, labels, literal=True) == pytest.approx(float(c["out/tolerance_literal"]), rel=1e-5)
    assert alignment(x, y) == pytest.approx(float(c["out/alignment"]), rel=1e-5)
    positive, nearest = neighbor_profile(x, y, top=int(c["in/top_n"]))
    assert positive == pytest.approx(float(c["out/profile_positive"]), rel=1e-5)
    np.testing.assert_allclose(nearest, c["out/profile_top_negatives"], rtol=1e-5)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_golden_geodesic(case):
    c = golden(f"geodesic-mixup/{case}")
    image, text = c["in/image_features"], c["in/text_features"]
    # The code returns the measure without the minus of the paper.
    want = -float(c["out/metric/relative_alignment_top1"])
    assert relative_alignment(text, image) == pytest.approx(want, rel=1e-5)
    ratio = float(c["out/metric/relative_alignment_ratio"])
    assert relative_alignment(text, image, ratio=True) == pytest.approx(ratio, rel=1e-5)
    assert alignment(image, text) == pytest.approx(float(c["out/metric/alignment"]), rel=1e-5)
    both = uniformity(np.concatenate([image, text]))
    assert both == pytest.approx(float(c["out/metric/uniformity_image_text"]), rel=1e-5)


def test_modality_gap_matches_loops():
    rng = np.random.default_rng(1)
    x, y = unit(rng, 12, 4), unit(rng, 12, 4)
    got = modality_gap(x, y)

    def within(z):
        return np.mean([z[i] @ z[j] for i in range(12) for j in range(12) if i != j])

    assert got["x_cosine"] == pytest.approx(within(x), abs=1e-6)
    assert got["y_cosine"] == pytest.approx(within(y), abs=1e-6)
    pair = np.mean([1 - x[i] @ y[i] for i in range(12)])
    spread = (2 - within(x) - within(y)) / 2
    assert got["relative_gap"] == pytest.approx(pair / (pair + spread), rel=1e-5)


def test_a_gap_is_seen_and_no_gap_is_not():
    rng = np.random.default_rng(2)
    x, shift = rng.normal(size=(200, 6)), np.array([3.0, 0, 0, 0, 0, 0])
    far, near = normalized(x + shift), normalized(x - shift)
    assert linear_separability(far, near) > 0.95
    for split in ({"train_index": [], "test_index": [0]}, {"train_index": [0, 1], "test_index": []}):
        with pytest.raises(InputError, match="need pairs"):
            linear_separability(far, near, **split)
    assert modality_gap(far, near)["centroid_distance"] > 1
    same = unit(rng, 200, 6)
    other = normalized(same + 0.05 * rng.normal(size=same.shape))
    assert abs(linear_separability(same, other) - 0.5) < 0.2
    assert modality_gap(same, other)["relative_gap"] < 0.02


def test_under_a_transfer_guard():
    rng = np.random.default_rng(3)
    x = jax.device_put(unit(rng, 12, 4).astype(np.float32))
    with jax.transfer_guard("disallow"):
        uniformity(x)
        neighbor_profile(x, x, top=2)


def test_bad_input_is_refused():
    rng = np.random.default_rng(4)
    x = unit(rng, 8, 3)
    for call in (lambda: uniformity(2 * x), lambda: alignment(x, 0.9 * x), lambda: modality_gap(x * 1.01, x)):
        with pytest.raises(InputError, match="unit rows"):
            call()
    with pytest.raises(InputError, match="at least 2"):
        uniformity(x[:1])
    with pytest.raises(InputError, match="shape"):
        alignment(x, x[:4])
    with pytest.raises(InputError, match="equal to a non-partner"):
        relative_alignment(np.eye(3), np.eye(3)[[1, 2, 0]], ratio=True)
    with pytest.raises(InputError, match="t must"):
        uniformity(x, t=0.0)
    with pytest.raises(InputError, match="share a label"):
        tolerance(x, np.arange(8))
    with pytest.raises(InputError, match="10 pairs"):
        linear_separability(x, x)
    with pytest.raises(InputError, match="no variance"):
        explained_variance(np.repeat(x[:1], 4, 0))


def test_projection_is_an_isometry_of_planar_data_and_repeats():
    rng = np.random.default_rng(5)
    plane = rng.normal(size=(20, 2)) @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    image, text = project(plane[:12], plane[12:])
    both = np.concatenate([image, text])
    for i in range(20):
        for j in range(20):
            want = np.linalg.norm(plane[i] - plane[j])
            assert np.linalg.norm(both[i] - both[j]) == pytest.approx(want, abs=1e-4)
    again = project(plane[:12], plane[12:])
    np.testing.assert_array_equal(image, again[0])
    centred = project(plane[:12] + 5, plane[12:], center_modalities=True)
    np.testing.assert_allclose(centred[0].mean(0), centred[1].mean(0), atol=1e-5)
    for xy in project(plane[:12], plane[12:], method="tsne"):
        assert np.isfinite(xy).all()
    with pytest.raises(InputError, match="method"):
        project(plane, plane, method="umap")
