"""MEOW and AdaMEOW: contrast on heterogeneous graphs with weighted negatives (Yu et al. 2023, 2024).

`acm`, `imdb`, `dblp`, `aminer`: MEOW as published. `adameow_acm`, `adameow_imdb`, `adameow_dblp`, `adameow_aminer`:
AdaMEOW. `small`: MEOW on ACM for 40 epochs. `adameow_small`: AdaMEOW on 1,000 papers of it. ACM and IMDB are in the
package.
"""

import ml_collections

from mixcon.reproduce.study import Arm, Study, Table

# Section 3 of the paper's specification.
MEOW = {
    "acm": dict(
        peak=7e-4, patience=30, temperature=0.4, feature_drop=0.3, edge_drop=(0.3, 0.2), neighbors=(110, 700),
        clusters=(100, 300), probe_rate=0.03,
    ),
    "dblp": dict(
        peak=6e-4, patience=35, temperature=0.9, feature_drop=0.2, edge_drop=(0.2, 0.5, 0.6), neighbors=(25, 200, 40),
        clusters=(200, 700), probe_rate=0.01, seed=1,
    ),
    "aminer": dict(
        peak=7e-4, patience=25, temperature=0.9, feature_drop=0.2, edge_drop=(0.7, 0.4), neighbors=(5, 21),
        clusters=(500, 1200), probe_rate=0.1, probe_decay=8e-4, prototype_weight=0.1, seed=1,
    ),
    "imdb": dict(
        peak=1e-4, weight_decay=1e-3, patience=15, temperature=0.9, feature_drop=0.3, edge_drop=(0.1, 0.1, 0.1),
        neighbors=(70, 10, 70), clusters=(500, 700), probe_rate=0.01, seed=1,
    ),
}  # fmt: skip
ADAMEOW = {
    "acm": dict(
        peak=5e-5, weight_decay=1e-5, steps=1200, dropout=0.3, temperature=1.0, feature_drop=0.3,
        edge_drop=(0.2, 0.2), neighbors=(690, 690), probe_rate=0.03,
    ),
    "dblp": dict(
        peak=1e-4, weight_decay=1e-3, steps=1500, dropout=0.2, temperature=0.9, feature_drop=0.1,
        edge_drop=(0.3, 0.3, 0.3), neighbors=(25, 200, 40), probe_rate=0.01,
    ),
    "aminer": dict(
        peak=1e-4, weight_decay=1e-4, steps=3000, dropout=0.0, temperature=0.9, feature_drop=0.0, edge_drop=(0.0, 0.0),
        neighbors=(8, 31), probe_rate=0.3, probe_decay=1e-3, projection=16,
    ),
    "imdb": dict(
        peak=5e-4, weight_decay=5e-4, steps=1000, dropout=0.1, temperature=0.9, feature_drop=0.3,
        edge_drop=(0.1, 0.1, 0.1), neighbors=(70, 10, 70), probe_rate=0.01,
    ),
}  # fmt: skip
VARIANTS = (*MEOW, *(f"adameow_{graph}" for graph in ADAMEOW), "small", "adameow_small")


def get_config(arg: str = "acm") -> ml_collections.ConfigDict:
    """The config of a variant: a graph, `adameow_` and a graph, `small` or `adameow_small`."""
    if arg not in VARIANTS:
        raise ValueError(f"configs/meow.py has no variant {arg!r}; it has {', '.join(VARIANTS)}")
    method, graph = ("adameow", arg.removeprefix("adameow_")) if arg.startswith("adameow_") else ("meow", arg)
    small, graph = graph == "small", "acm" if graph == "small" else graph
    config = published(method, graph, **(MEOW if method == "meow" else ADAMEOW)[graph])
    if small:
        config.steps = 40 if method == "meow" else 300
        config.eval_every = 0
        config.checkpoint.every = config.steps
    if small and method == "adameow":
        config.graph.nodes = 1000
        config.views.neighbors = (170, 170)  # of a quarter of the papers
        config.schedule.peak = 5e-4  # a quarter of the steps, ten times as long
    return config


def published(
    method: str,
    graph: str,
    *,
    peak: float,
    temperature: float,
    feature_drop: float,
    edge_drop: tuple[float, ...],
    neighbors: tuple[int, ...],
    probe_rate: float,
    probe_decay: float = 0.0,
    weight_decay: float = 0.0,
    dropout: float = 0.2,
    projection: int = 64,
    patience: int = 0,
    steps: int = 10_000,
    clusters: tuple[int, ...] = (),
    prototype_weight: float = 1.0,
    seed: int = 0,
) -> ml_collections.ConfigDict:
    """Full batch, Adam with the decay in the gradient."""
    config = ml_collections.ConfigDict()
    config.experiment = "experiments.meow"  # module with build(config, workdir)
    config.seed = seed  # of initialisation, dropout, and what the views drop
    config.method = method  # meow or adameow
    config.graph = dict(name="mixcon.data.graphs.load_graph", graph=graph)
    config.views = dict(
        neighbors=neighbors,  # of each node by PathSim, for each meta-path
        ties="argsort",  # as published: the order of the file, sorted by class, has a say; "random" leaves it out
        edge_drop=edge_drop,  # share of edges that the second fine view lacks, for each meta-path
        feature_drop=feature_drop,  # share of the targets' nonzero features that it lacks
        dense_above=0.1,  # share of nonzeros from which on a matrix is multiplied dense
    )
    config.model = dict(
        width=64,
        projection=projection,
        dropout=dropout,
        norm="matrix",  # one mean and variance over all nodes; "row": of each
        use_contexts=True,  # False: only which nodes are joined, not by whom
        one_draw=graph == "dblp",  # the masked view shares the contexts' dropout, as published for DBLP
    )
    config.temperature = temperature
    config.clusters = clusters  # of each clustering; none for adameow
    config.kmeans = dict(iters=20, restarts=5)
    config.weigh = True  # negatives by shared clusters; False: all alike, plain InfoNCE
    config.prototype_weight = prototype_weight
    config.density = "inner"  # what a prototype's temperature is made from; "l2" is a distance indeed
    config.include_positive = False  # in its own denominator
    config.symmetric = False
    config.pair_hidden = 16  # units of AdaMEOW's network
    config.embedding = "last_forward"  # dropout on, as published; "clean": a forward without
    config.probe = dict(learning_rate=probe_rate, weight_decay=probe_decay, steps=200, repeats=50)
    config.probe_labels = (20, 40, 60)  # of each class; a split for each is part of the data
    config.cluster_runs = 10
    config.batch_size = 1  # graph
    config.steps = steps
    config.patience = patience  # epochs without a lower training loss; 0 runs all steps
    config.ema = 0.0
    config.nonfinite = "stop"
    config.log_every = 10
    config.eval_every = 100 if method == "adameow" else 0
    config.checkpoint = dict(every=100, keep=1, keep_every=0)
    config.mesh = dict(data=1, model=1)  # one graph is one record: it is not split
    config.sharding = dict(fsdp=False, rules=())
    config.gradient = dict(name="mixcon.train.gradients.standard")
    config.schedule = dict(peak=peak, decay="constant")
    config.optimizer = dict(name="adam", weight_decay=weight_decay)
    config.data = dict(max_bad_share=0.0, threads=1, prefetch=1)
    return config


def get_study() -> Study:
    """ACM and IMDB by the paper's probe, and AdaMEOW on a part of ACM."""
    columns = {
        f"{short} {labels}": f"eval/probe/{labels}/{name}"
        for labels in (20, 40, 60)
        for short, name in (("Ma-F1", "macro_f1"), ("Mi-F1", "micro_f1"), ("AUC", "auc"))
    } | {"NMI": "eval/clustering/nmi", "ARI": "eval/clustering/ari"}

    def table(title: str, arms: dict[str, Arm], **words: object) -> Table:
        config = next(iter(arms.values())).config
        overrides = next(iter(arms.values())).overrides
        untrained = {
            "raw features": Arm(config, overrides, measure="experiments.meow_baselines.raw_features", seeds=1),
            "SGC": Arm(config, overrides, measure="experiments.meow_baselines.smoothed_features", seeds=1),
            "SGC of counts": Arm(config, overrides, measure="experiments.meow_baselines.smoothed_counts", seeds=1),
        }
        return Table(title, untrained | arms, columns, seeds=3, scale=dict.fromkeys(columns, 100), **words)

    def figures(*nine: float) -> dict[str, float]:
        names = [f"{short} {labels}" for short in ("Ma-F1", "Mi-F1", "AUC") for labels in (20, 40, 60)]
        return dict(zip(names, nine, strict=True))

    long = ("patience=0", "steps=113")  # as many epochs as the original's patience took in the specification's run
    part = ("graph.nodes=1000", "views.neighbors=(170,170)")
    return Study(
        "MEOW (Yu et al., SDM 2023) and AdaMEOW (TKDE 2024)",
        {
            "acm": table(
                "ACM, 4,019 papers",
                {
                    "MEOW": Arm("acm"),
                    "MEOW, 113 epochs": Arm("acm", long),
                    "MEOW, 113 epochs, ties at random": Arm("acm", (*long, "views.ties=random")),
                    "no prototypes, 113": Arm("acm", (*long, "prototype_weight=0.0")),
                    "equal weights, 113": Arm("acm", (*long, "weigh=False")),
                    "no contexts, 113": Arm("acm", (*long, "model.use_contexts=False")),
                },
                paper={"MEOW": figures(91.93, 91.35, 92.10, 91.82, 91.33, 91.99, 98.43, 97.94, 98.40)},
                claim="About 92 Macro-F1 at 20 to 60 labels of each class, from memory, unverified; the original code, "
                "run once for the specification, gave 91.1 / 90.5 / 91.7 and NMI 52.7, ARI 52.7.",
                found="Reproduced, if one trains as long as the original did: over three seeds of 113 epochs Macro-F1 "
                "is about 91 / 90 / 92 and AUC 98, four to seven points above the strongest baseline without "
                "training. The stopping epoch decides: with the published patience the seeds stop after 66, 236 and "
                "69 epochs, at 86 / 85 / 89, 90 / 89 / 91 and 88 / 88 / 88. NMI and ARI move by 20 points and more "
                "between seeds and epochs. Baselines agree with the specification's (raw 55.0 / 60.0 / 71.7, SGC 78.6 "
                "/ 80.3 / 82.8) once features have unit spread; smoothing counts instead of rows of sum one is a "
                "stronger one. Ablations, over two seeds: contexts are worth two to three points; clusters are worth "
                "nothing, neither as weights of the negatives nor as prototypes. The order of ties matters: on PSP "
                "all similarities of a subject are equal, and the original's unstable sort of a file sorted by class "
                "takes, for the largest subject (1,301 papers of class 0, 538 of class 2), 693 of class 0 and 6 of "
                "class 2. With ties in random order Macro-F1 is about 2 points lower (89.3 / 87.4 / 89.7): that much "
                "of the published figure comes from the order of the file.",
            ),
            "imdb": table(
                "IMDB, 4,275 movies",
                {"MEOW": Arm("imdb"), "MEOW, 300 epochs": Arm("imdb", ("patience=0", "steps=300", "eval_every=100"))},
                claim="Published on IMDB, figures not available here; above smoothed features to be shown.",
                found="Shown, on two seeds, if it trains for longer than published: after 300 epochs 54 / 52 / 58 and "
                "59 / 56 / 57 Macro-F1 against 48 / 49 / 56 for smoothed features. The published patience (15) stops "
                "after 19 epochs, hardly trained, at 35 / 38 / 40.",
            ),
            "dblp": table(
                "DBLP, 4,057 authors, rebuilt from its text files",
                {"MEOW": Arm("dblp"), "MEOW, 100 epochs": Arm("dblp", ("patience=0", "steps=100"))},
                claim="Published on DBLP, figures not available here; above smoothed features to be shown.",
                found="Above smoothed features, on one seed: 91 / 90 / 92 Macro-F1 where the published patience stops "
                "(108 epochs), 92 / 92 / 93 after 100, against 85 / 86 / 90 for smoothed counts; NMI 74 to 75 against "
                "50.",
            ),
            "adameow": table(
                "ACM, the labelled and other papers, 1,000 in all",
                {"MEOW": Arm("acm", part), "AdaMEOW": Arm("adameow_small")},
                claim="Learned weights do better than weights from clusters.",
                found="Not shown here: over three seeds learned weights give 81 / 81 / 79 Macro-F1, weights from "
                "clusters 83 / 83 / 83, smoothed counts 82 / 78 / 81. The learned weights have 300 steps at ten times "
                "the published rate, a quarter of what is published.",
            ),
        },
    )
