"""Constant matrices that are multiplied at every step, such as a graph's: sparse or dense, fast in both directions.

A matrix that is not trained is known before the first step, so that its transpose, which the gradient needs, can be
laid out once instead of being walked against its grain at every step.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import Array
from jax.experimental import sparse

from mixcon.errors import InputError

# Above this share of nonzeros a dense product is faster (measured on one core, 4,019 x 4,019 times 64 columns).
DENSE_ABOVE = 0.1
# Below this share of distinct rows each is multiplied once.
MERGED_BELOW = 0.25


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A constant matrix [N, M] and its transpose, each dense or as (values, columns, row starts); a pytree.

    Where many rows are equal, as where nodes have the same neighbours, `rows` and `cols` are those of the R distinct
    ones, and `index` [N] says which of them a row is.
    """

    rows: Any
    cols: Any
    index: Any
    distinct: tuple[int, int]
    shape: tuple[int, int]


jax.tree_util.register_dataclass(LinearMap, data_fields=["rows", "cols", "index"], meta_fields=["distinct", "shape"])


def linear_map(
    matrix: sp.spmatrix | sp.sparray | np.ndarray, *, dense_above: float = DENSE_ABOVE, dtype: Any = np.float32
) -> LinearMap:
    """Lays a matrix out for `apply`, on the host.

    Args:
      matrix: [N, M], dense or of scipy.sparse.
      dense_above: share of nonzeros from which on it is kept dense; 1 keeps everything sparse, -1 everything dense.
      dtype: of the values.

    Returns:
      A pytree of numpy arrays; `jax.device_put` it once.

    Raises:
      InputError: not a matrix, or values that are not finite.

    Example:
      >>> adjacency = jax.device_put(linear_map(scipy_matrix))
      >>> messages = apply(adjacency, features)
    """
    if getattr(matrix, "ndim", 0) != 2 or 0 in matrix.shape:
        raise InputError(f"matrix must be [N, M] and not empty, got shape {getattr(matrix, 'shape', None)}.")
    csr = sp.csr_matrix(matrix, dtype=dtype, copy=True)  # sorted below: the caller's may share its indices
    if not np.isfinite(csr.data).all():
        raise InputError("matrix holds values that are not finite.")
    csr.sum_duplicates()
    shape, index = csr.shape, None
    first, of = _distinct_rows(csr)
    if len(first) <= MERGED_BELOW * shape[0]:
        csr, index = csr[first], of.astype(np.int32)
    share = csr.nnz / (csr.shape[0] * csr.shape[1])
    lay = _dense if share > dense_above else _compressed
    return LinearMap(lay(csr), lay(sp.csr_matrix(csr.T)), index, csr.shape, shape)


def _distinct_rows(csr: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """(the first row of each kind, which kind each row is of), by their bytes."""
    kinds: dict[bytes, int] = {}
    first: list[int] = []
    of = np.empty(csr.shape[0], np.int64)
    for i, (start, end) in enumerate(itertools.pairwise(csr.indptr)):
        content = csr.indices[start:end].tobytes() + csr.data[start:end].tobytes()
        of[i] = kinds.setdefault(content, len(kinds))
        if of[i] == len(first):
            first.append(i)
    return np.array(first), of


def _dense(csr: sp.csr_matrix) -> np.ndarray:
    return np.ascontiguousarray(csr.toarray())


def _compressed(csr: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    csr.sort_indices()
    return csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int32)


@jax.custom_vjp
def apply(matrix: LinearMap, x: Array) -> Array:
    """The product of a constant matrix [N, M] and x [M, D]; differentiable in x, the matrix gets no gradient.

    Example:
      >>> y = apply(adjacency, x)
    """
    out = _product(matrix.rows, matrix.distinct, x)
    return out if matrix.index is None else out[matrix.index]


def _product(layout: Any, shape: tuple[int, int], x: Array) -> Array:
    if x.ndim != 2 or x.shape[0] != shape[1]:
        raise InputError(f"a matrix of shape {shape} multiplies [{shape[1]}, D], got {x.shape}.")
    if isinstance(layout, tuple):
        # On the CPU this is a compiled row by row product; jax.ops.segment_sum would form every message.
        return sparse.BCSR(layout, shape=shape) @ x
    return jnp.dot(layout, x, preferred_element_type=x.dtype)


def _forward(matrix: LinearMap, x: Array) -> tuple[Array, LinearMap]:
    return apply(matrix, x), matrix


def _backward(matrix: LinearMap, gradient: Array) -> tuple[None, Array]:
    if matrix.index is not None:
        gradient = jax.ops.segment_sum(gradient, matrix.index, matrix.distinct[0])
    return None, _product(matrix.cols, matrix.distinct[::-1], gradient)


apply.defvjp(_forward, _backward)
