"""Heterogeneous graphs: target nodes with labels, nodes of other types, and meta-paths that join the targets.

ACM, IMDB, DBLP and AMiner as published with MEOW: in the repository's own file layout, or packed in one file each. ACM
and IMDB come with the package, papers and movies as the words they contain.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mixcon.data.catalog import locate
from mixcon.data.graph_files import Folder, GraphFiles, Packed, Split
from mixcon.data.metapaths import normalize_rows
from mixcon.errors import InputError

EMBEDDED = ("acm", "imdb")
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


def load_graph(graph: str, *, root: str | pathlib.Path | None = None, nodes: int = 0, seed: int = 0) -> HeteroGraph:
    """One of the graphs `acm`, `imdb`, `dblp`, `aminer`.

    Args:
      graph: its name. ACM and IMDB are in the package.
      root: folder that holds `<graph>/` (or `meow_<graph>.npz`); by default where the set "meow" is found.
      nodes: so many target nodes, those that a split trains on and others drawn at random, and the paths between
        them; 0 keeps all. seed: of the draw.

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
    if graph not in readers:
        raise InputError(f"graph={graph!r} is not one of {', '.join(readers)}.")
    if root is None and graph in EMBEDDED:
        with resources.as_file(resources.files("mixcon.data").joinpath("embedded", f"{graph}_graph.npz")) as path:
            files: GraphFiles = Packed(path)
    else:
        folder = pathlib.Path(locate("meow") if root is None else root)
        packed = folder / f"meow_{graph}.npz"
        files = Packed(packed) if packed.is_file() and not (folder / graph).is_dir() else Folder(folder / graph)
    found = check_graph(readers[graph](files))
    if not nodes:
        return found
    labelled = np.unique(np.concatenate([split.train for split in found.splits.values()]))
    others = np.setdiff1d(np.arange(len(found.labels)), labelled)
    if not len(labelled) <= nodes <= len(found.labels):
        raise InputError(f"nodes={nodes} must lie in [{len(labelled)}, {len(found.labels)}]; 0 keeps all.")
    drawn = np.random.default_rng(seed).permutation(others)[: nodes - len(labelled)]
    return induced(found, np.sort(np.concatenate([labelled, drawn])))


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


# --- the four graphs -------------------------------------------------------------------------------------------------


def _star(files: GraphFiles, types: str, target: str, features: Mapping[str, sp.csr_matrix | None]) -> HeteroGraph:
    """Targets in the middle, every other type joined to them: path `pap` for type a of target p."""
    shared = {t: files.edges(f"nei_{t}") for t in types}
    paths = tuple(MetaPath(f"{target}{t}{target}", sp.csr_matrix(b @ b.T), (Context(t, b),)) for t, b in shared.items())
    own = (files.sparse(f"{target}_feat"),)
    sizes = {t: b.shape[1] for t, b in shared.items()}
    return HeteroGraph(own, dict(features), sizes, paths, files.labels(), files.splits())


def _acm(files: GraphFiles) -> HeteroGraph:
    """What an author has written is the sum of the papers' words; the repository ships that sum."""
    graph = _star(files, "as", "p", {"a": None, "s": None})
    written = graph.paths[0].contexts[0].incidence.T @ normalize_rows(graph.target[0])
    return graph._replace(features={"a": sp.csr_matrix(written), "s": None})


def _imdb(files: GraphFiles) -> HeteroGraph:
    return _star(files, "adk", "m", {"a": None, "d": None, "k": None})


def _dblp(files: GraphFiles) -> HeteroGraph:
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


def _aminer(files: GraphFiles) -> HeteroGraph:
    """Targets have other features for each meta-path, and nothing else has any."""
    shared = {t: files.edges(f"nei_{t}") for t in "ar"}
    paths = tuple(MetaPath(f"p{t}p", sp.csr_matrix(b @ b.T), (Context(t, b),)) for t, b in shared.items())
    own = tuple(files.vectors(AMINER_FEATURES.format(path=path.name)) for path in paths)
    sizes = {t: b.shape[1] for t, b in shared.items()}
    return HeteroGraph(own, dict.fromkeys(shared), sizes, paths, files.labels(), files.splits())
