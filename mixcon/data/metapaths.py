"""Adjacency of meta-paths, on the host: the nearest neighbours, normalisation, and what is dropped from a view.

Shapes: N target nodes; every matrix is of scipy.sparse, in compressed rows.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp

from mixcon.errors import InputError

Ties = Literal["random", "argsort"]
TIE_SEED = 0  # of the one order in which columns of equal similarity are taken


def pathsim_topk(counts: sp.spmatrix | np.ndarray, k: int, *, ties: Ties = "random") -> sp.csr_matrix:
    """Keeps in each row the path counts of the k columns that are most similar to it.

    `s_ij = 2 A_ij / (A_ii + A_jj)` where A_ij ≠ 0; the result has A_ij (counts, not s), and is not symmetric.
    Where a row has more columns of equal similarity than it may keep, `ties` decides, which matters: the files are
    often sorted by class, so that an order by index tells the classes apart.

    Args:
      counts: A [N, N], how many paths join i and j, the diagonal included.
      k: columns kept in a row, at least 1; larger than N keeps all.
      ties: "random" takes them in one fixed random order, the same for all rows; "argsort" as the original code does,
        the last k of NumPy's unstable sort of the dense row, which depends on the processor.

    Returns:
      [N, N].

    Raises:
      InputError: not square, negative or non-finite counts, k below 1, or a pair that is joined although neither end
        has a path to itself (0/0).

    Example:
      >>> pathsim_topk(np.array([[2, 1, 2], [1, 1, 0], [2, 0, 4]]), k=2).toarray().tolist()
      [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 4.0]]

    Reference: Sun et al., "PathSim: Meta Path-Based Top-K Similarity Search in Heterogeneous Information Networks",
      2011, definition 4.
    """
    csr = _square("counts", counts)
    if not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k={k!r} neighbours must be a whole number of at least 1.")
    if ties not in get_args(Ties):
        raise InputError(f"ties={ties!r} is unknown; choose one of {', '.join(get_args(Ties))}.")
    rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    own = csr.diagonal()
    reach = own[rows] + own[csr.indices]
    if lone := np.flatnonzero(reach == 0).tolist():
        i, j = rows[lone[0]], csr.indices[lone[0]]
        raise InputError(f"counts: {i} and {j} are joined, but neither to itself (A_ii + A_jj = 0); add the diagonal.")
    similarity = 2 * csr.data / reach
    if ties == "argsort":
        dense = sp.csr_matrix((similarity, csr.indices, csr.indptr), shape=csr.shape)
        picked = [np.argsort(dense[[i]].toarray()[0])[-k:] for i in range(csr.shape[0])]
        starts = np.cumsum([0, *map(len, picked)])
        chosen = sp.csr_matrix((np.ones(starts[-1]), np.concatenate(picked), starts), shape=csr.shape)
        return sp.csr_matrix(csr.multiply(chosen))
    tie = np.random.default_rng(TIE_SEED).permutation(csr.shape[0])[csr.indices]
    order = np.lexsort((tie, -similarity, rows))  # rows stay where they are, each sorted by similarity
    place = np.arange(csr.nnz) - csr.indptr[rows]
    kept = order[place < k]
    return sp.csr_matrix((csr.data[kept], (rows[kept], csr.indices[kept])), shape=csr.shape)


def normalize_adjacency(adjacency: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
    """`D^-1/2 Aᵀ D^-1/2` with D the row sums of A; the degree of an empty row counts as 0.

    The transpose is the original's: a message goes from i to the neighbours that i has chosen.

    Raises:
      InputError: not square, negative or non-finite entries.

    Example:
      >>> normalize_adjacency(np.array([[1, 1], [0, 1]])).toarray().round(3).tolist()
      [[0.5, 0.0], [0.707, 1.0]]
    """
    csr = _square("adjacency", adjacency)
    degree = np.asarray(csr.sum(1)).ravel()
    scale = sp.diags(np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0))
    return sp.csr_matrix(scale @ csr.T @ scale)


def drop_edges(
    adjacency: sp.spmatrix | np.ndarray, rate: float, *, seed: int = 0, order: np.ndarray | None = None
) -> sp.csr_matrix:
    """A view of a graph without some of its edges: 0/1, counts are lost, every node joined to itself.

    The off-diagonal nonzeros, shuffled; the first ⌊rate·E⌋ dropped, the rest set to 1; plus the identity.

    Args:
      adjacency: [N, N].
      rate: share of edges dropped, in [0, 1].
      seed: of the shuffle. order: [E, 2] the edges already shuffled, instead of a seed.

    Raises:
      InputError: a rate outside [0, 1], edges outside the graph, and as for `normalize_adjacency`.

    Example:
      >>> drop_edges(np.array([[3, 2], [2, 5]]), 0.5, seed=0).sum()
      np.float64(3.0)
    """
    csr = _square("adjacency", adjacency)
    _rate("rate", rate)
    if order is None:
        edges = np.stack(csr.nonzero(), 1)
        edges = edges[edges[:, 0] != edges[:, 1]]
        order = np.random.default_rng(seed).permutation(edges)
    kept = np.asarray(order).reshape(-1, 2)[int(rate * len(order)) :]
    if kept.size and not 0 <= kept.min() <= kept.max() < csr.shape[0]:
        raise InputError(f"order: an edge names node {kept.max()}, outside the {csr.shape[0]} nodes.")
    edges = sp.csr_matrix((np.ones(len(kept)), (kept[:, 0], kept[:, 1])), shape=csr.shape)
    return sp.csr_matrix(edges + sp.identity(csr.shape[0]))


def mask_features(features: sp.spmatrix | np.ndarray, rate: float, *, seed: int = 0) -> sp.csr_matrix:
    """⌊rate·nnz⌋ nonzero entries set to 0, uniformly without replacement.

    Raises:
      InputError: a rate outside [0, 1].

    Example:
      >>> mask_features(np.eye(4), 0.5).nnz
      2
    """
    csr = sp.csr_matrix(features, dtype=np.float64, copy=True)
    csr.eliminate_zeros()
    csr.sort_indices()  # what is dropped follows from the matrix, not from how it is stored
    _rate("rate", rate)
    dropped = np.random.default_rng(seed).choice(csr.nnz, int(rate * csr.nnz), replace=False)
    csr.data[dropped] = 0
    csr.eliminate_zeros()
    return csr


def normalize_rows(features: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
    """Each row divided by its sum; an empty row stays empty.

    Example:
      >>> normalize_rows(np.array([[1, 3], [0, 0]])).toarray().tolist()
      [[0.25, 0.75], [0.0, 0.0]]
    """
    csr = sp.csr_matrix(features, dtype=np.float64)
    total = np.asarray(csr.sum(1)).ravel()
    return sp.csr_matrix(sp.diags(np.where(total != 0, 1 / np.where(total != 0, total, 1), 0)) @ csr)


def _square(name: str, matrix: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
    if getattr(matrix, "ndim", 0) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name} must be square [N, N], got shape {getattr(matrix, 'shape', None)}.")
    csr = sp.csr_matrix(matrix, dtype=np.float64, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    if csr.nnz and not (np.isfinite(csr.data).all() and csr.data.min() >= 0):
        raise InputError(f"{name} must be finite and not negative, got {csr.data.min()} .. {csr.data.max()}.")
    return csr


def _rate(name: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise InputError(f"{name}={rate} must lie in [0, 1].")
