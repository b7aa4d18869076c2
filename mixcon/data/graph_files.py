"""Where the arrays of a graph come from: the original repository's folder, or one packed file."""

from __future__ import annotations

import abc
import pathlib
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mixcon.data.records import readable
from mixcon.errors import InputError

SPLITS = (20, 40, 60)  # labelled nodes of each class


class Split(NamedTuple):
    """Node indices of a label split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def incidence(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int], name: str = "edges") -> sp.csr_matrix:
    """0/1 matrix of edges from their ends.

    Raises:
      InputError: an index outside the nodes.

    Example:
      >>> incidence(np.array([0, 1]), np.array([2, 2]), (2, 3)).toarray().tolist()
      [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    for side, indices, size in (("first", rows, shape[0]), ("second", cols, shape[1])):
        bad = np.flatnonzero((indices < 0) | (indices >= size))
        if bad.size:
            raise InputError(
                f"{name}: edge {bad[0]} names node {indices[bad[0]]} on its {side} side, which has {size} nodes "
                f"(0 .. {size - 1}); {bad.size} of {len(indices)} edges do."
            )
    matrix = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=shape)
    matrix.data[:] = 1
    return matrix


def checked(matrix: sp.csr_matrix, name: str) -> sp.csr_matrix:
    """The matrix itself, if its indices lie within it: products would read beyond their arrays otherwise."""
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise InputError(f"{name}: a damaged matrix {matrix.shape}: {error}") from error
    return matrix


def _shape(pair: np.ndarray) -> tuple[int, int]:
    rows, cols = map(int, pair)
    return rows, cols


class GraphFiles(abc.ABC):
    """Named arrays of one graph."""

    @abc.abstractmethod
    def array(self, name: str) -> np.ndarray:
        """Any array."""

    @abc.abstractmethod
    def sparse(self, name: str) -> sp.csr_matrix:
        """Features [N, D]."""

    @abc.abstractmethod
    def edges(self, name: str) -> sp.csr_matrix:
        """0/1 matrix of edges."""

    def text(self, name: str) -> np.ndarray:
        """Edges [E, 2] of a text file, which only the folder has."""
        raise InputError(f"{name}.txt is read from the folder of the original files, not from a packed one.")

    def vectors(self, name: str) -> sp.csr_matrix:
        """Dense features, which only the folder has."""
        raise InputError(f"{name} is read from the folder of the original files, not from a packed one.")

    def incidence(self, name: str, shape: tuple[int, int]) -> sp.csr_matrix:
        """0/1 matrix from a text file of edges."""
        edges = self.text(name)
        return incidence(edges[:, 0], edges[:, 1], shape, name)

    def labels(self) -> np.ndarray:
        """From 0: IMDB counts from 1."""
        labels = self.array("labels").astype(np.int32)
        return labels - labels.min()

    def splits(self) -> dict[int, Split]:
        """Indices by split."""
        return {
            k: Split(*(self.array(f"{side}_{k}").astype(np.int32) for side in ("train", "val", "test"))) for k in SPLITS
        }


class Folder(GraphFiles):
    """The repository's layout: scipy .npz, .npy, and text files of edges."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def find(self, name: str) -> pathlib.Path:
        """A file, or words about it."""
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing: run `mixcon data fetch meow`, or put the file there.")
        return path

    def array(self, name: str) -> np.ndarray:
        path = self.find(f"{name}.npy")
        with readable(path):
            return np.load(path, allow_pickle=False)

    def sparse(self, name: str) -> sp.csr_matrix:
        path = self.find(f"{name}.npz")
        with path.open("rb") as file:
            plain = file.read(6) == b"\x93NUMPY"  # DBLP's t_feat.npz is in truth a .npy
        with readable(path):
            found = np.load(path, allow_pickle=False) if plain else sp.load_npz(path)
        return checked(sp.csr_matrix(found, dtype=np.float64), name)

    def edges(self, name: str) -> sp.csr_matrix:
        path = self.find(f"{name}.npz")
        with readable(path), np.load(path, allow_pickle=False) as file:  # scipy would not say which edge is wrong
            return incidence(file["row"], file["col"], _shape(file["shape"]), name)

    def text(self, name: str) -> np.ndarray:
        path = self.find(f"{name}.txt")
        try:
            return np.loadtxt(path, dtype=np.int64, ndmin=2).reshape(-1, 2)
        except ValueError as error:
            raise InputError(f"{path} must have two node numbers in each line: {error}") from error

    def vectors(self, name: str) -> sp.csr_matrix:
        path = self.folder / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing: AMiner's node features, one such file for each meta-path, are too large for "
                "`mixcon data fetch meow`; take them from github.com/jianxiangyu/MEOW and put them there."
            )
        with readable(path):
            return sp.csr_matrix(np.load(path, allow_pickle=False), dtype=np.float64)


class Packed(GraphFiles):
    """All arrays of a graph in one .npz."""

    def __init__(self, path: pathlib.Path):
        with readable(path), np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.path = path

    def array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise InputError(f"{self.path} has no array {name!r}.")
        return self.arrays[name]

    def sparse(self, name: str) -> sp.csr_matrix:
        indices, starts = self.array(f"{name}/indices"), self.array(f"{name}/indptr")
        values = self.arrays.get(f"{name}/data", np.ones(len(indices)))  # without values: which words there are
        shape = _shape(self.array(f"{name}/shape"))
        return checked(sp.csr_matrix((values, indices, starts), shape=shape, dtype=np.float64), name)

    def edges(self, name: str) -> sp.csr_matrix:
        rows, cols, shape = (self.array(f"{name}/{part}") for part in ("row", "col", "shape"))
        return incidence(rows, cols, _shape(shape), name)
