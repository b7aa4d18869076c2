"""The other side of `benchmarks.mixers`: timm, torchvision and host graph cuts, one request (a JSON line) at a time.

Started with the peers' Python. Requests:
  {"op": "load", "batch": B, "size": H}     random images [B, 3, H, H] and labels
  {"op": "time", "row": name}               → {"seconds"} of one call, images and soft labels
  {"op": "costs", "path": npz}              unary, vertical, horizontal costs of labellings
  {"op": "solve", "row": name}              → {"seconds", "energy"} of all of them, one after another
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch_peers import bare_package

CLASSES = 1000
Mixer = Callable[[torch.Tensor, torch.Tensor], Any]


def mixers() -> dict[str, Mixer]:
    """Every peer by name. timm works in place, as in its loader."""
    for name in ("timm", "timm.data"):
        bare_package(name)
    timm = importlib.import_module("timm.data.mixup")
    library = torch.library.Library("torchvision", "DEF")  # its operators, which a torch for CPUs cannot load
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    v2 = importlib.import_module("torchvision.transforms.v2")
    rows: dict[str, Mixer] = {}
    for mode in ("batch", "pair", "elem"):
        rows[f"timm mixup, {mode}"] = timm.Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, mode=mode, num_classes=CLASSES)
        rows[f"timm cutmix, {mode}"] = timm.Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode=mode, num_classes=CLASSES)
    rows["torchvision MixUp"] = v2.MixUp(alpha=1.0, num_classes=CLASSES)
    rows["torchvision CutMix"] = v2.CutMix(alpha=1.0, num_classes=CLASSES)
    return rows


def swap(unary: np.ndarray, vertical: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
    """Labels by αβ-swap moves (Boykov and Kolmogorov's max-flow inside), as PuzzleMix's authors do; costs × (L-1)²."""
    import gco

    labels = np.arange(unary.shape[-1], dtype=np.int32)
    pair = np.square(labels[:, None] - labels[None]).astype(np.int32)
    found = gco.cut_grid_graph(unary * (len(labels) - 1) ** 2, pair, vertical, horizontal, algorithm="swap")
    return found.reshape(unary.shape[:2])


def exact(unary: np.ndarray, vertical: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
    """Labels by one minimum cut over the bits t_i = [l ≥ i] (Boykov and Kolmogorov's max-flow)."""
    import maxflow

    rows, cols, labels = unary.shape
    levels = labels - 1
    incident = np.pad(vertical, ((0, 1), (0, 0))) + np.pad(vertical, ((1, 0), (0, 0)))
    incident = incident + np.pad(horizontal, ((0, 0), (0, 1))) + np.pad(horizontal, ((0, 0), (1, 0)))
    label = np.arange(labels)
    step = np.diff(unary * levels**2 + incident[..., None] * (label * label - levels * label), axis=-1)
    graph = maxflow.GraphInt(rows * cols * levels, 4 * rows * cols * levels**2)
    node = graph.add_grid_nodes((rows, cols, levels))
    graph.add_grid_tedges(node, np.maximum(step, 0), np.maximum(-step, 0))
    for weight, a, b in ((vertical, node[:-1], node[1:]), (horizontal, node[:, :-1], node[:, 1:])):
        for i in range(levels):
            for j in range(levels):
                graph.add_edges(a[..., i].ravel(), b[..., j].ravel(), weight.ravel(), weight.ravel())
    for i in range(levels - 1):
        forbidden = np.full(rows * cols, 1 << 28)
        graph.add_edges(node[..., i].ravel(), node[..., i + 1].ravel(), forbidden, 0 * forbidden)
    graph.maxflow()
    return graph.get_grid_segments(node).sum(axis=-1)


SOLVERS = {"gco, αβ-swap": swap, "PyMaxflow, exact": exact}


def energy(labels: np.ndarray, unary: np.ndarray, vertical: np.ndarray, horizontal: np.ndarray) -> int:
    """(L-1)² times the energy, an integer."""
    span = unary.shape[-1] - 1
    total = int(np.take_along_axis(unary, labels[..., None].astype(int), axis=-1).sum()) * span**2
    seams = (vertical * np.square(np.diff(labels, axis=0))).sum() + (horizontal * np.square(np.diff(labels))).sum()
    return total + int(seams)


def answer(request: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """One request."""
    match request["op"]:
        case "load":
            generator = torch.Generator().manual_seed(0)
            shape = (request["batch"], 3, request["size"], request["size"])
            state["x"] = torch.rand(shape, generator=generator)
            state["y"] = torch.randint(CLASSES, shape[:1], generator=generator)
            return {}
        case "time":
            start = time.process_time()
            state["mixers"][request["row"]](state["x"], state["y"])
            return {"seconds": time.process_time() - start}
        case "costs":
            with np.load(request["path"]) as file:
                state["costs"] = [np.ascontiguousarray(file[k]) for k in ("unary", "vertical", "horizontal")]
            return {}
        case "solve":
            start = time.process_time()
            found = [SOLVERS[request["row"]](*one) for one in zip(*state["costs"], strict=True)]
            seconds = time.process_time() - start
            each = zip(found, *state["costs"], strict=True)
            return {"seconds": seconds, "energy": [energy(*one) for one in each]}
    raise ValueError(request)


def main() -> None:
    torch.set_num_threads(1)
    state: dict[str, Any] = {"mixers": mixers()}
    hello = {"rows": list(state["mixers"]), "solvers": list(SOLVERS), "torch": torch.__version__}
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), state)), flush=True)


if __name__ == "__main__":
    main()
