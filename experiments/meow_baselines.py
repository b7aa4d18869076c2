"""What MEOW is compared with: features that nobody has trained, through the same probe and clustering."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np
import scipy.sparse as sp

from experiments.meow import probe_report
from mixcon import config as configs
from mixcon.data import metapaths
from mixcon.data.graphs import HeteroGraph
from mixcon.evals.node_probe import cluster_nmi_ari


def raw_features(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Baseline: the target's features, rows of sum one, in 64 singular directions, through the same evaluations."""
    return without_training(config, lambda graph, smooth: directions(rows_of_one(graph)))


def smoothed_features(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Baseline: the same features after two steps along the mean meta-path (Wu et al., SGC, 2019)."""
    return without_training(config, lambda graph, smooth: directions(smooth @ (smooth @ rows_of_one(graph))))


def smoothed_counts(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Baseline: the features as they are, in 64 singular directions, then the two steps."""
    return without_training(config, lambda graph, smooth: smooth @ (smooth @ directions(sum(graph.target))))


def rows_of_one(graph: HeteroGraph) -> sp.spmatrix:
    """Features of the targets, their mean where each path has its own."""
    return sum(map(metapaths.normalize_rows, graph.target)) / len(graph.target)


def directions(x: sp.spmatrix) -> np.ndarray:
    """Coordinates along the 64 largest singular directions."""
    from sklearn.decomposition import TruncatedSVD

    return TruncatedSVD(64, random_state=0).fit_transform(x)


def without_training(config: ml_collections.ConfigDict, features: Callable) -> dict[str, float]:
    """The evaluations of features that no one has trained, by the names that a run logs; of unit spread over all, as
    the probe's few steps do not fit small numbers."""
    graph: HeteroGraph = configs.call(config.graph)
    ties, neighbors = config.views.ties, config.views.neighbors
    near = [metapaths.pathsim_topk(p.counts, k, ties=ties) for p, k in zip(graph.paths, neighbors, strict=True)]
    x = features(graph, sum(map(metapaths.normalize_adjacency, near)) / len(near))
    x = x / x.std()
    clusters = cluster_nmi_ari(x, graph.labels, classes=graph.classes, runs=config.cluster_runs)
    report = {f"probe/{name}": value for name, value in probe_report(x, graph, config)}
    return {
        f"eval/{name}": value for name, value in (report | {f"clustering/{k}": v for k, v in clusters.items()}).items()
    }
