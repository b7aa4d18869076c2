"""Heterogeneous graphs: target nodes with labels, nodes of other types, and meta-paths that join the targets.

ACM, IMDB, DBLP and AMiner as published with MEOW, in the repository's own file layout or, for ACM and IMDB, in one
file each.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mixcon.data.catalog import locate
from mixcon.errors import InputError

SPLITS = (20, 40, 60)  # labelled nodes of each class
AMINER_FEATURES = "feat_{path}.w1000.l100.npy"


class Context(NamedTuple):
    """Nodes of another type that are met along a meta-path."""

    node_type: str
    incidence: sp.csr_matrix  # [N, N_t] 0/1


class MetaPath(NamedTuple):
    """A way to go from target to target."""

    name: str
    counts: sp.csr_matrix  # [N, N] how many paths, the diagonal included
    contexts: tuple[Context, ...]


class Split(NamedTuple):
    """Node indices of a label split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class HeteroGraph(NamedTuple):
    """A graph as it is given: nothing normalised, nothing dropped."""

    target: tuple[sp.csr_matrix, ...]  # features [N, D] of the targets: one matrix, or one for each meta-path
    features: dict[str, sp.csr_matrix | None]  # of the other types [N_t, D_t]; None: known by their identity alone
    sizes: dict[str, int]  # N_t of the other types
    paths: tuple[MetaPath, ...]
    labels: np.ndarray  # [N] int32 from 0
    splits: dict[int, Split]  # by the number of training labels of each class

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1


def load_graph(name: str, root: str | pathlib.Path | None = None) -> HeteroGraph:
    """One of the graphs `acm`, `imdb`, `dblp`, `aminer`.

    Args:
      name: of the graph.
      root: folder that holds `<name>/` (or `meow_<name>.npz`); by default where the set "meow" is found.

    Returns:
      The checked graph.

    Raises:
      InputError: unknown name, a missing file (and where to get it), or indices, labels, shapes that do not fit.

    Example:
      >>> graph = load_graph("acm")
      >>> [path.name for path in graph.paths]
      ['pap', 'psp']
    """
    readers = {"acm": _acm, "imdb": _imdb, "dblp": _dblp, "aminer": _aminer}
    if name not in readers:
        raise InputError(f"graph {name!r} is not one of {', '.join(readers)}.")
    folder = pathlib.Path(locate("meow") if root is None else root)
    packed = folder / f"meow_{name}.npz"
    files: _Files = _Folder(folder / name) if (folder / name).is_dir() or not packed.is_file() else _Packed(packed)
    return check_graph(readers[name](files))


def check_graph(graph: HeteroGraph) -> HeteroGraph:
    """The graph itself, if its parts fit together.

    Raises:
      InputError: naming the part that does not.
    """
    count = len(graph.labels)
    if count == 0 or graph.labels.min() < 0:
        raise InputError("labels must be whole numbers from 0, one for each target node.")
    if len(graph.target) not in (1, len(graph.paths)) or any(x.shape[0] != count for x in graph.target):
        raise InputError(f"target features {[x.shape for x in graph.target]} do not fit {count} labels.")
    for node_type, features in graph.features.items():
        if features is not None and features.shape[0] != graph.sizes[node_type]:
            raise InputError(f"features of {node_type!r} have {features.shape[0]} rows for {graph.sizes[node_type]}.")
    for path in graph.paths:
        if path.counts.shape != (count, count):
            raise InputError(f"{path.name}: counts {path.counts.shape} do not fit the {count} target nodes.")
        if path.counts.nnz and path.counts.data.min() < 0:
            raise InputError(f"{path.name}: counts must not be negative, got {path.counts.data.min()}.")
        for context in path.contexts:
            expected = (count, graph.sizes.get(context.node_type))
            if context.incidence.shape != expected:
                raise InputError(
                    f"{path.name}: incidence with {context.node_type!r} is {context.incidence.shape}, not {expected}."
                )
    for per_class, split in graph.splits.items():
        for side, indices in split._asdict().items():
            if len(indices) == 0 or not 0 <= indices.min() <= indices.max() < count:
                raise InputError(f"split {side}_{per_class}: indices must be in range({count}).")
    return graph


def induced(graph: HeteroGraph, nodes: np.ndarray) -> HeteroGraph:
    """The subgraph of some target nodes (all other types stay); splits keep the nodes that are left.

    Paths between the nodes that are left are counted as before, so this is a part of the matrix, not another graph.

    Raises:
      InputError: nodes outside the graph, or twice, or a split that loses a side.
    """
    nodes = np.asarray(nodes)
    count = len(graph.labels)
    if nodes.size == 0 or not 0 <= nodes.min() <= nodes.max() < count or len(np.unique(nodes)) != len(nodes):
        raise InputError(f"nodes must be distinct and in range({count}).")
    new = np.full(count, -1)
    new[nodes] = np.arange(len(nodes))

    def left(indices: np.ndarray) -> np.ndarray:
        return new[indices][new[indices] >= 0].astype(np.int32)

    return check_graph(
        graph._replace(
            target=tuple(x[nodes] for x in graph.target),
            paths=tuple(
                MetaPath(
                    path.name,
                    path.counts[nodes][:, nodes],
                    tuple(Context(c.node_type, c.incidence[nodes]) for c in path.contexts),
                )
                for path in graph.paths
            ),
            labels=graph.labels[nodes],
            splits={k: Split(*map(left, split)) for k, split in graph.splits.items()},
        )
    )


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


# --- the four graphs -------------------------------------------------------------------------------------------------


def _star(files: _Files, types: str, target: str, features: Mapping[str, sp.csr_matrix | None]) -> HeteroGraph:
    """Targets in the middle, every other type joined to them: path `pap` for type a of target p."""
    shared = {t: files.edges(f"nei_{t}") for t in types}
    paths = tuple(MetaPath(f"{target}{t}{target}", sp.csr_matrix(b @ b.T), (Context(t, b),)) for t, b in shared.items())
    own = (files.sparse(f"{target}_feat"),)
    sizes = {t: b.shape[1] for t, b in shared.items()}
    return HeteroGraph(own, dict(features), sizes, paths, files.labels(), files.splits())


def _acm(files: _Files) -> HeteroGraph:
    return _star(files, "as", "p", {"a": files.sparse("a_feat"), "s": None})


def _imdb(files: _Files) -> HeteroGraph:
    return _star(files, "adk", "m", {"a": None, "d": None, "k": None})


def _dblp(files: _Files) -> HeteroGraph:
    """Rebuilt from the text files: the repository's matrices of long paths are not needed."""
    features = {"p": files.sparse("p_feat"), "t": files.sparse("t_feat"), "c": None}
    authors, labels = files.sparse("a_feat"), files.labels()
    papers, terms = features["p"].shape[0], features["t"].shape[0]
    venues = int(files.text("pc")[:, 1].max(initial=-1)) + 1
    ap = sp.csr_matrix(files.incidence("pa", (papers, len(labels))).T)
    pc, pt = files.incidence("pc", (papers, venues)), files.incidence("pt", (papers, terms))

    def path(name: str, counted: sp.csr_matrix, *contexts: tuple[str, sp.csr_matrix]) -> MetaPath:
        met = tuple(Context(t, sp.csr_matrix(b > 0, dtype=np.float64)) for t, b in contexts)
        return MetaPath(name, sp.csr_matrix(counted @ counted.T), met)

    apc, apt = sp.csr_matrix(ap @ pc), sp.csr_matrix(ap @ pt)
    paths = (
        path("apa", ap, ("p", ap)),
        path("apcpa", apc, ("p", ap), ("c", apc), ("p", apc @ pc.T)),
        path("aptpa", apt, ("p", ap), ("t", apt), ("p", apt @ pt.T)),
    )
    sizes = {"p": papers, "t": terms, "c": venues}
    return HeteroGraph((authors,), dict(features), sizes, paths, labels, files.splits())


def _aminer(files: _Files) -> HeteroGraph:
    """Targets have other features for each meta-path, and nothing else has any."""
    shared = {t: files.edges(f"nei_{t}") for t in "ar"}
    paths = tuple(MetaPath(f"p{t}p", sp.csr_matrix(b @ b.T), (Context(t, b),)) for t, b in shared.items())
    own = tuple(files.vectors(AMINER_FEATURES.format(path=path.name)) for path in paths)
    sizes = {t: b.shape[1] for t, b in shared.items()}
    return HeteroGraph(own, dict.fromkeys(shared), sizes, paths, files.labels(), files.splits())


# --- files -----------------------------------------------------------------------------------------------------------


def _shape(pair: np.ndarray) -> tuple[int, int]:
    rows, cols = map(int, pair)
    return rows, cols


class _Files:
    """Named arrays of one graph."""

    def array(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def sparse(self, name: str) -> sp.csr_matrix:
        raise NotImplementedError

    def edges(self, name: str) -> sp.csr_matrix:
        raise NotImplementedError

    def text(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def vectors(self, name: str) -> sp.csr_matrix:
        raise NotImplementedError

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


class _Folder(_Files):
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
        return np.load(self.find(f"{name}.npy"), allow_pickle=False)

    def sparse(self, name: str) -> sp.csr_matrix:
        path = self.find(f"{name}.npz")
        with path.open("rb") as file:
            plain = file.read(6) == b"\x93NUMPY"  # DBLP's t_feat.npz is in truth a .npy
        return sp.csr_matrix(np.load(path, allow_pickle=False) if plain else sp.load_npz(path), dtype=np.float64)

    def edges(self, name: str) -> sp.csr_matrix:
        with np.load(self.find(f"{name}.npz"), allow_pickle=False) as file:  # scipy would not say which edge is wrong
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
                f"{path} is missing: AMiner's node features ({AMINER_FEATURES.format(path='<path>')}, one file for "
                "each meta-path) are large files that `mixcon data fetch meow` cannot get; take them from "
                "github.com/jianxiangyu/MEOW and put them there."
            )
        return sp.csr_matrix(np.load(path, allow_pickle=False), dtype=np.float64)


class _Packed(_Files):
    """All arrays of a graph in one .npz."""

    def __init__(self, path: pathlib.Path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.path = path

    def array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise InputError(f"{self.path} has no array {name!r}.")
        return self.arrays[name]

    def sparse(self, name: str) -> sp.csr_matrix:
        parts = (self.array(f"{name}/{part}") for part in ("data", "indices", "indptr"))
        return sp.csr_matrix(tuple(parts), shape=_shape(self.array(f"{name}/shape")), dtype=np.float64)

    def edges(self, name: str) -> sp.csr_matrix:
        rows, cols, shape = (self.array(f"{name}/{part}") for part in ("row", "col", "shape"))
        return incidence(rows, cols, _shape(shape), name)
