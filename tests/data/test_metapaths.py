"""Preprocessing of meta-paths: the original's matrices, plain loops, and what is refused."""

import pathlib

import numpy as np
import pytest
import scipy.sparse as sp

from mixcon.data.metapaths import drop_edges, mask_features, normalize_adjacency, normalize_rows, pathsim_topk
from mixcon.errors import InputError

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "meow.npz")


def test_neighbours_norms_and_dropped_edges_are_the_originals():
    near = pathsim_topk(GOLDEN["c2/in/A"], int(GOLDEN["c2/in/nei_max"]))
    np.testing.assert_allclose(near.toarray(), GOLDEN["c2/out/topk_adj"], rtol=1e-7)
    np.testing.assert_allclose(normalize_adjacency(near).toarray(), GOLDEN["c2/out/norm_adj"], atol=1e-7)
    thinned = drop_edges(near, float(GOLDEN["c2/in/adj_mask"]), order=GOLDEN["c2/in/edge_order"])
    np.testing.assert_allclose(normalize_adjacency(thinned).toarray(), GOLDEN["c2/out/masked_norm_adj"], atol=1e-7)


def test_neighbours_are_the_loops():
    rng = np.random.default_rng(0)
    b = rng.integers(0, 2, (12, 6))
    a = b @ b.T
    near = pathsim_topk(a, 3).toarray()
    for i in range(12):
        scores = {j: 2 * a[i, j] / (a[i, i] + a[j, j]) for j in range(12) if a[i, j]}
        kept = np.flatnonzero(near[i])
        assert len(kept) == min(3, len(scores))
        assert sorted(scores[j] for j in kept) == sorted(scores.values())[-len(kept) :]
        np.testing.assert_array_equal(near[i, kept], a[i, kept])


def test_more_neighbours_than_nodes_keep_all_and_equals_are_taken_in_one_order():
    a = np.ones((6, 6))
    np.testing.assert_array_equal(pathsim_topk(a, 99).toarray(), a)
    few = pathsim_topk(a, 2).toarray()
    assert (few == few[:1]).all(), "every row has the same favourites, not its own"


def test_drops_and_masks_take_the_share_they_are_asked_for():
    a = np.ones((5, 5)) * 3
    view = drop_edges(a, 0.5, seed=1)
    assert view.nnz == 10 + 5
    assert set(view.data) == {1.0}
    assert (view.diagonal() == 1).all()
    assert (drop_edges(a, 0.5, seed=1) != view).nnz == 0
    assert (drop_edges(a, 0.5, seed=2) != view).nnz > 0
    x = np.arange(12.0).reshape(3, 4)
    kept = mask_features(x, 0.3, seed=0)
    assert kept.nnz == 11 - 3
    assert np.isin(kept.toarray(), x).all()
    backwards = sp.csr_matrix((x[:, ::-1].ravel(), np.tile([3, 2, 1, 0], 3), [0, 4, 8, 12]))
    assert (mask_features(backwards, 0.3, seed=0) != kept).nnz == 0, "however the matrix is stored"


def test_isolated_rows_stay_empty():
    a = np.array([[0.0, 0.0], [0.0, 4.0]])
    np.testing.assert_array_equal(normalize_adjacency(a).toarray(), [[0, 0], [0, 1]])
    np.testing.assert_array_equal(normalize_rows(a).toarray(), [[0, 0], [0, 1]])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="k=0 neighbours"):
        pathsim_topk(np.eye(2), 0)
    with pytest.raises(InputError, match="counts must be finite and not negative"):
        pathsim_topk(-np.eye(2), 1)
    with pytest.raises(InputError, match="0 and 1 are joined, but neither to itself"):
        pathsim_topk(np.array([[0, 1], [1, 0]]), 1)
    with pytest.raises(InputError, match="must be square"):
        normalize_adjacency(np.ones((2, 3)))
    with pytest.raises(InputError, match=r"rate=1.5 must lie in \[0, 1\]"):
        drop_edges(np.eye(2), 1.5)
    with pytest.raises(InputError, match=r"rate=-1 must lie in \[0, 1\]"):
        mask_features(np.eye(2), -1)
    with pytest.raises(InputError, match="names node 2, outside the 2 nodes"):
        drop_edges(np.eye(2), 0.0, order=np.array([[0, 2]]))
