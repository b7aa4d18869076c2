"""The other side of the benchmark: runs the peers' own losses under torch, one request (a JSON line) at a time.

Started by `benchmarks.contrastive` with the peers' Python. Requests:
  {"op": "load", "path": npz}                        inputs of this size
  {"op": "gate", "row": name, "path": npz}           → {"loss"}, gradients into path
  {"op": "time", "row": name, "backward": bool}      → {"seconds"}
  {"op": "memory", "row": name}                      → {"bytes"}: resident beyond what was before, forward + backward
"""

import ctypes
import importlib
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def bare_package(name: str) -> types.ModuleType:
    """A package whose submodules can be imported without running its `__init__` (which wants torchvision)."""
    parent, _, child = name.rpartition(".")
    paths = None if not parent else sys.modules[parent].__path__
    spec = importlib.machinery.PathFinder.find_spec(name, paths)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(name)
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def open_clip_losses() -> Any:
    bare_package("open_clip")
    return importlib.import_module("open_clip.loss")


def lightly_ntxent() -> Any:
    for name in ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules"):
        bare_package(name)
    # The memory bank, which is off here, imports helpers for vision models by name only.
    sys.modules["lightly.models"].utils = types.ModuleType("lightly.models.utils")  # type: ignore[attr-defined]
    return importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss


Inputs = dict[str, torch.Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows() -> dict[str, Callable[[Inputs], torch.Tensor]]:
    """Every peer that can be imported here: name → loss of the inputs."""
    found: dict[str, Callable[[Inputs], torch.Tensor]] = {}
    try:
        open_clip = open_clip_losses()
        clip, siglip = open_clip.ClipLoss(), open_clip.SigLipLoss()
        found["open_clip ClipLoss"] = lambda x: clip(x["image"], x["text"], x["scale"])
        found["open_clip SigLipLoss"] = lambda x: siglip(x["image"], x["text"], x["scale"], x["bias"])
    except ImportError as error:
        print(f"open_clip: {error}", file=sys.stderr)
    try:
        nt_xent = lightly_ntxent()
        found["lightly NTXentLoss"] = lambda x: nt_xent(temperature=1 / float(x["scale"]))(*x["image"].chunk(2))
    except ImportError as error:
        print(f"lightly: {error}", file=sys.stderr)
    try:
        from pytorch_metric_learning import losses

        found["pytorch-metric-learning NTXentLoss"] = lambda x: losses.NTXentLoss(1 / float(x["scale"]))(
            x["image"], x["views"]
        )
        found["pytorch-metric-learning SupConLoss"] = lambda x: losses.SupConLoss(1 / float(x["scale"]))(
            x["image"], x["labels"]
        )
    except ImportError as error:
        print(f"pytorch-metric-learning: {error}", file=sys.stderr)
    try:  # GPU only: the fused kernel of Inf-CL
        from inf_cl import cal_inf_loss

        found["Inf-CL"] = lambda x: cal_inf_loss(x["image"], x["text"], scale=x["scale"])
    except ImportError:
        pass
    try:  # GPU only: Cut Cross-Entropy, called once for each direction
        from cut_cross_entropy import linear_cross_entropy

        def twice(x: Inputs) -> torch.Tensor:
            target = torch.arange(len(x["image"]), device=x["image"].device)
            one = linear_cross_entropy(x["image"] * x["scale"], x["text"], target)
            return (one + linear_cross_entropy(x["text"] * x["scale"], x["image"], target)) / 2

        found["CCE, both directions"] = twice
    except ImportError:
        pass
    return found


def resident(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    dtype = getattr(torch, sys.argv[2])
    losses = rows()
    inputs: Inputs = {}
    print(json.dumps({"rows": list(losses), "torch": torch.__version__}), flush=True)

    def run(name: str, backward: bool) -> torch.Tensor:
        for x in inputs.values():
            x.grad = None
        if not backward:
            with torch.no_grad():
                return losses[name](inputs)
        loss = losses[name](inputs)
        loss.backward()
        return loss

    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["op"] == "load":
            with np.load(request["path"]) as file:
                inputs = {k: torch.from_numpy(file[k]).to(DEVICE) for k in file.files}
            for name in ("image", "text"):
                inputs[name] = inputs[name].to(dtype).requires_grad_()
        elif request["op"] == "gate":
            answer["loss"] = run(request["row"], True).item()
            grads = {k: inputs[k].grad for k in ("image", "text")}
            np.savez(request["path"], **{k: g.float().cpu().numpy() for k, g in grads.items() if g is not None})
        elif request["op"] == "time":
            synchronize()
            start = time.perf_counter()
            run(request["row"], request["backward"])
            synchronize()
            answer["seconds"] = time.perf_counter() - start
        elif request["op"] == "memory":
            if DEVICE == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                run(request["row"], True)
                answer["bytes"] = torch.cuda.max_memory_allocated() - before
            else:
                ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls left
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
                before = resident("VmRSS")
                run(request["row"], True)
                answer["bytes"] = resident("VmHWM") - before
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
