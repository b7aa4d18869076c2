"""One epoch of MEOW on ACM, k-means included, beside the same epoch in dense PyTorch with faiss.

`python -m benchmarks.meow [--peer-python PYTHON] [--epochs N]` writes `benchmarks/results/meow.json` and `.md`. Both
sides run on one core, epoch by epoch in turn, from the same weights; before anything is timed, both encode the graph
without dropout and must agree. The peer (`benchmarks/meow_peer.py`) needs torch and faiss-cpu.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"

import jax
import numpy as np
import scipy.sparse as sp

from mixcon import config as configs
from mixcon.data import metapaths
from mixcon.models import flatten
from mixcon.train import loop
from mixcon.train.state import init_state

RESULTS = pathlib.Path(__file__).parent / "results"
NAMES = {  # the peer's parameter -> ours, and whether it is turned
    **{f"enter.{i}.{there}": (f"{ours}/{here}", here == "kernel")
       for i, ours in enumerate(("target/0", "others/a", "others/s"))
       for there, here in (("weight", "kernel"), ("bias", "bias"))},
    **{f"context.{i}.weight": (f"contexts/{i}/0/kernel", True) for i in (0, 1)},
    "encoder.first": ("gcn/first/kernel", False),
    "encoder.second": ("gcn/second/kernel", False),
    "encoder.act.weight": ("gcn/slope", False),
    "attention.weight": ("attention/fc/kernel", True),
    "attention.bias": ("attention/fc/bias", False),
    "query": ("attention/query", False),
    "projection.weight": ("projection/kernel", True),
    "projection.bias": ("projection/bias", False),
}  # fmt: skip


def dense_arrays(config, params) -> dict[str, np.ndarray]:
    """The same graph, drops and weights as plain matrices."""
    graph, views = configs.call(config.graph), config.views
    near = [
        metapaths.pathsim_topk(path.counts, k, ties=views.ties)
        for path, k in zip(graph.paths, views.neighbors, strict=True)
    ]
    thin = [metapaths.drop_edges(a, p, seed=config.seed) for a, p in zip(near, views.edge_drop, strict=True)]
    x = metapaths.normalize_rows(graph.target[0])
    subjects = sp.identity(graph.sizes["s"], format="csr")
    matrices = {
        "features0": x,
        "features1": metapaths.normalize_rows(graph.features["a"]),
        "features2": subjects,
        "masked": metapaths.mask_features(x, views.feature_drop, seed=config.seed),
        **{f"incidence{i}": path.contexts[0].incidence for i, path in enumerate(graph.paths)},
        **{f"adjacency{i}": metapaths.normalize_adjacency(a) for i, a in enumerate(near)},
        **{f"masked_adjacency{i}": metapaths.normalize_adjacency(a) for i, a in enumerate(thin)},
    }
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    weights = {f"w/{there}": flat[here].T if turned else flat[here] for there, (here, turned) in NAMES.items()}
    weights["w/encoder.act.weight"] = weights["w/encoder.act.weight"].reshape(1)
    return {name: m.toarray().astype(np.float32) for name, m in matrices.items()} | weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--epochs", type=int, default=9)
    given = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    config = configs.load("configs/meow.py:acm")
    mesh = loop.meshes.make_mesh(data=1)
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        experiment = loop.build(config, pathlib.Path(folder))
        state = jax.jit(lambda: init_state(experiment, config.seed, ema=False))()
        inputs = pathlib.Path(folder) / "inputs.npz"
        np.savez(inputs, **dense_arrays(config, jax.device_get(state.params)))
        peer = subprocess.Popen(
            [given.peer_python, str(pathlib.Path(__file__).with_name("meow_peer.py")), str(inputs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

        def ask(**request) -> dict:
            peer.stdin.write(json.dumps(request) + "\n")
            peer.stdin.flush()
            return json.loads(peer.stdout.readline())

        first = peer.stdout.readline()
        if not first:
            raise SystemExit(f"{given.peer_python} cannot run the peer: pip install torch faiss-cpu there")
        versions = json.loads(first)
        batch = {k: jax.device_put(v) for k, v in experiment.fixed.items()}
        agreement = compare(config, experiment, state, batch, ask, folder)
        step = jax.jit(experiment.step, donate_argnums=0)
        runs = {"mixcon": [], "PyTorch + faiss": []}
        for epoch in range(given.epochs + 1):
            wall, processor = time.perf_counter(), time.process_time()
            state, metrics = jax.block_until_ready(step(state, batch))
            ours = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor}
            theirs = ask(op="epoch")
            if epoch:  # the first compiles
                runs["mixcon"].append(ours | {"loss": float(metrics["loss"])})
                runs["PyTorch + faiss"].append(theirs)
        peer.stdin.close()
        peer.wait()
    report(runs, {"jax": jax.__version__, **versions}, agreement)


def compare(config, experiment, state, batch, ask, folder) -> float:
    """Largest difference of the projected views without dropout; both sides must be the same network."""
    from mixcon.models import functional
    from mixcon.models.graph import meta_path_context_encoder

    sizes = configs.call(config.graph).sizes
    views = experiment.fixed["graph"]
    model = functional(meta_path_context_encoder(views, [["a"], ["s"]], sizes=sizes, **config.model))
    out = jax.jit(lambda params, views: model.apply(params, {}, views)[0])(state.params, batch["graph"])
    path = pathlib.Path(folder) / "peer.npz"
    ask(op="encode", path=str(path))
    with np.load(path) as file:
        difference = max(float(abs(np.asarray(getattr(out, name)) - file[name]).max()) for name in file.files)
    if difference > 1e-3:
        raise SystemExit(f"the two sides differ by {difference}: nothing is timed")
    return difference


def report(runs: dict, versions: dict, agreement: float) -> None:
    """Medians, as JSON and as a table."""
    median = {name: {k: statistics.median(r[k] for r in each) for k in ("wall", "cpu")} for name, each in runs.items()}
    ratio = {k: median["PyTorch + faiss"][k] / median["mixcon"][k] for k in ("wall", "cpu")}
    found = {
        "what": "one epoch of MEOW on ACM: forward, k-means (100 and 300 clusters), loss, backward, Adam; one core",
        "machine": platform.machine(), "versions": versions, "largest_difference_of_the_views": agreement,
        "median_seconds": median, "ratio": ratio, "runs": runs,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "meow.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = [f"| {name} | {m['wall']:.2f} | {m['cpu']:.2f} |" for name, m in median.items()]
    table = "\n".join(
        ["| one epoch of MEOW on ACM, one core | wall, s | processor, s |", "|---|---|---|", *rows,
         f"| ratio | {ratio['wall']:.1f} | {ratio['cpu']:.1f} |"]
    )  # fmt: skip
    (RESULTS / "meow.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
