"""Nodes of a heterogeneous graph, contrasted between two views, with weighted negatives: MEOW and AdaMEOW."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.sparse as sp

from mixcon import config as configs
from mixcon import objectives
from mixcon.data import metapaths
from mixcon.data.graphs import HeteroGraph
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.evals.node_probe import cluster_nmi_ari, linear_probe_f1_auc
from mixcon.models import Model, functional
from mixcon.models.graph import GraphEncoding, GraphViews, meta_path_context_encoder
from mixcon.ops.kmeans import check_clusters, cluster_density, spherical_kmeans
from mixcon.ops.linear_map import linear_map
from mixcon.train.assemble import assemble
from mixcon.train.gradients import refuse_parts
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """The graph's matrices beside a source of one record, the whole graph."""
    del workdir
    refuse_parts(config.gradient.name, ("standard",), "a graph is one record")
    graph: HeteroGraph = configs.call(config.graph)
    views = graph_views(graph, **config.views, seed=config.seed)
    paths = [[context.node_type for context in path.contexts] for path in graph.paths]
    model = functional(meta_path_context_encoder(views, paths, sizes=graph.sizes, **config.model))
    loss, count = contrast(config), len(graph.labels)
    for k in config.clusters:
        check_clusters(k, count)
    if config.embedding not in ("last_forward", "clean"):
        raise InputError(f"embedding={config.embedding!r} is unknown; choose last_forward or clean.")

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        model_key, pair_key = jax.random.split(key)
        params, extra = model.init(model_key)
        if config.method == "adameow":
            params["pair"] = objectives.pair_mlp(pair_key, config.model.projection, config.pair_hidden)._asdict()
        return params, extra, {"embedding": jnp.zeros((count, config.model.width))}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[GraphEncoding, dict]:
        own = {name: value for name, value in params.items() if name != "pair"}
        return model.apply(own, extra, batch["graph"], key=key, train=train)

    def objective(
        params: dict, state: dict, reps: GraphEncoding, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple:
        value, metrics = loss(params, reps)
        return value, metrics, {"embedding": jax.lax.stop_gradient(reps.embedding)}

    return assemble(
        config,
        init=init,
        task=Task(lambda batch, *, key, step: batch, encode, objective),
        source=Arrays({"graph_id": np.zeros(1, np.int32)}),
        fixed={"graph": views},
        evals=evaluators(config, graph, embedder(config, model, views)),
    )


def graph_views(
    graph: HeteroGraph,
    *,
    neighbors: tuple[int, ...],
    edge_drop: tuple[float, ...],
    feature_drop: float,
    ties: metapaths.Ties,
    dense_above: float,
    seed: int,
) -> GraphViews:
    """Neighbours, degrees and what is dropped are settled here, once, on the host."""
    if not len(neighbors) == len(edge_drop) == len(graph.paths):
        names = [path.name for path in graph.paths]
        raise InputError(f"neighbors={neighbors} and edge_drop={edge_drop} need one entry for each of {names}.")

    def lay(matrix: sp.spmatrix) -> object:
        return linear_map(matrix, dense_above=dense_above)

    target = [metapaths.normalize_rows(x) for x in graph.target]
    near = [metapaths.pathsim_topk(path.counts, k, ties=ties) for path, k in zip(graph.paths, neighbors, strict=True)]
    thinned = [metapaths.drop_edges(a, p, seed=seed) for a, p in zip(near, edge_drop, strict=True)]
    contexts = [[metapaths.normalize_rows(c.incidence) for c in path.contexts] for path in graph.paths]
    return GraphViews(
        target=tuple(map(lay, target)),
        masked=tuple(lay(metapaths.mask_features(x, feature_drop, seed=seed)) for x in target),
        features={t: None if x is None else lay(metapaths.normalize_rows(x)) for t, x in graph.features.items()},
        contexts=tuple(tuple(map(lay, each)) for each in contexts),
        adjacency=tuple(lay(metapaths.normalize_adjacency(a)) for a in near),
        masked_adjacency=tuple(lay(metapaths.normalize_adjacency(a)) for a in thinned),
    )


def contrast(config: ml_collections.ConfigDict) -> Callable[[dict, GraphEncoding], tuple[jax.Array, dict]]:
    """The loss by name: `meow` weighs negatives by shared clusters, `adameow` by a network."""
    if config.method not in ("meow", "adameow"):
        raise InputError(f"method={config.method!r} is unknown; choose meow or adameow.")
    temperature = config.temperature

    def adameow(params: dict, reps: GraphEncoding) -> tuple[jax.Array, dict]:
        network = objectives.PairMlp(**params["pair"])
        return objectives.adaptive_weighted_info_nce(reps.fine, reps.coarse, network, temperature=temperature), {}

    def meow(params: dict, reps: GraphEncoding) -> tuple[jax.Array, dict]:
        fine = jax.lax.stop_gradient(reps.fine)
        found = [  # the original's seed of a clustering is its number, at every step
            spherical_kmeans(fine, k, iters=config.kmeans.iters, restarts=config.kmeans.restarts, key=jax.random.key(i))
            for i, k in enumerate(config.clusters)
        ]
        own = jnp.stack([each.assignments for each in found])
        options = {"temperature": temperature, "symmetric": config.symmetric}
        if config.weigh:
            info = objectives.cluster_weighted_info_nce(
                reps.coarse, reps.fine, own, include_positive=config.include_positive, **options
            )
        else:
            info = objectives.info_nce(reps.coarse, reps.fine, **options)
        if not config.prototype_weight:
            return info, {"info_nce": info}
        proto = objectives.prototype_nce(
            reps.coarse,
            [objectives.l2_normalize(each.centroids) for each in found],
            [
                cluster_density(
                    fine, each.centroids, each.assignments, temperature=temperature, distance=config.density
                )
                for each in found
            ],
            own,
        )
        return info + config.prototype_weight * proto, {"info_nce": info, "prototype_nce": proto}

    return meow if config.method == "meow" else adameow


def embedder(config: ml_collections.ConfigDict, model: Model, views: GraphViews) -> Callable[[TrainState], np.ndarray]:
    """Embeddings of a state: those of the last training forward, dropout on, or of a forward without."""

    def clean(state: TrainState) -> np.ndarray:
        params = {name: value for name, value in state.averaged.items() if name != "pair"}
        encode = jax.jit(lambda params, extra, views: model.apply(params, extra, views)[0].embedding)
        return np.asarray(jax.device_get(encode(params, state.extra, jax.device_put(views))))

    def last_forward(state: TrainState) -> np.ndarray:
        return np.asarray(jax.device_get(state.objective["embedding"]))

    return clean if config.embedding == "clean" else last_forward


def evaluators(
    config: ml_collections.ConfigDict, graph: HeteroGraph, embed: Callable[[TrainState], np.ndarray]
) -> dict[str, Evaluator]:
    """The probe at 20, 40 and 60 labels of each class, and k-means against the classes."""

    def probe(state: TrainState):
        yield from probe_report(embed(state), graph, config)

    def clustering(state: TrainState):
        found = cluster_nmi_ari(embed(state), graph.labels, classes=graph.classes, runs=config.cluster_runs)
        yield from found.items()

    return {"probe": probe, "clustering": clustering}


def probe_report(x: np.ndarray, graph: HeteroGraph, config: ml_collections.ConfigDict):
    """`20/macro_f1` and the like."""
    for per_class in config.probe_labels:
        split = graph.splits[per_class]
        found = linear_probe_f1_auc(x, graph.labels, **split._asdict(), classes=graph.classes, **config.probe)
        yield from ((f"{per_class}/{name}", value) for name, value in found.items())
