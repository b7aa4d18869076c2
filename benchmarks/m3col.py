"""A ROSMAP step of M3CoL beside the same step in PyTorch: one core, blocks of steps in turn, both phases.

    MIXCON_DATA=... python -m benchmarks.m3col            # writes benchmarks/results/m3col.json and m3col.md

The step is what `mixcon train` runs (draws, losses, gradient, Adam, guard); the peer is the network of the paper with
its losses and optimiser, written plainly. Before anything is timed, both must give the same loss for the same weights.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from mixcon import config as configs
from mixcon.objectives import multimodal_pairs
from mixcon.train import loop
from mixcon.train import mesh as meshes

RESULTS = pathlib.Path(__file__).parent / "results"
NAMES, PAIRS = ("mrna", "methylation", "mirna"), multimodal_pairs(3)
PHASES = {"mixed, then M3Co": 0, "soft CLIP": 300}  # -> step at which it is the loss


class Peer(torch.nn.Module):
    """Three encoders, three heads and one over all of them."""

    def __init__(self, width: int, features: int = 200, classes: int = 2):
        super().__init__()

        def two(a: int, b: int, c: int) -> torch.nn.Sequential:
            return torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.ReLU(), torch.nn.Linear(b, c))

        self.encoders = torch.nn.ModuleList(two(features, width, width) for _ in NAMES)
        self.heads = torch.nn.ModuleList(two(width, width, classes) for _ in NAMES)
        self.fusion = two(3 * width, width, classes)

    def load(self, params: Any) -> None:
        """The weights of the other side."""
        parts: list[tuple[Any, Any]] = [(self.encoders[m], params["encoders"][n]) for m, n in enumerate(NAMES)]
        parts += [(self.heads[m], params["heads"][n]) for m, n in enumerate(NAMES)] + [(self.fusion, params["fusion"])]
        with torch.no_grad():
            for module, part in parts:
                for place, layer in ((0, "0"), (2, "1")):
                    module[place].weight.copy_(torch.tensor(np.asarray(part["layers"][layer]["kernel"]).T))
                    module[place].bias.copy_(torch.tensor(np.asarray(part["layers"][layer]["bias"])))

    def loss(self, x: list[torch.Tensor], y: torch.Tensor, mixing: bool) -> torch.Tensor:
        z = [encoder(each) for encoder, each in zip(self.encoders, x, strict=True)]
        total = F.cross_entropy(self.fusion(torch.cat(z, 1)), y)
        total = total + sum(F.cross_entropy(head(each), y) for head, each in zip(self.heads, z, strict=True))
        if mixing:
            mixed = [mix(each) for each in z]
            contrast = sum(m3co(*mixed[a], z[b]) for a, b in PAIRS)
        else:
            contrast = sum(soft_clip(z[a], z[b]) for a, b in PAIRS)
        return total + 0.1 * contrast


def mix(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = len(z)
    perm, lam = torch.randperm(size), torch.distributions.Beta(0.15, 0.15).sample((size,))
    lam = torch.where(torch.rand(size) < 0.5, lam, torch.ones(()))
    return lam[:, None] * z + (1 - lam[:, None]) * z[perm], perm, lam


def m3co(mixed: torch.Tensor, perm: torch.Tensor, lam: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    logits = F.normalize(mixed, dim=1) @ F.normalize(partner, dim=1).T / 0.1
    target = torch.diag(lam)
    target[torch.arange(len(lam)), perm] += 1 - lam
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T)) / 2


def soft_clip(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p, q = F.normalize(pred, dim=1), F.normalize(target, dim=1)
    weight, logits = F.softmax(q @ q.T / 0.125, dim=1), p @ q.T / 0.125
    return (F.cross_entropy(logits, weight) + F.cross_entropy(logits.T, weight)) / 2


def measure(variant: str, rounds: int, block: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step on both sides, by phase."""
    config = configs.load(f"configs/m3col.py:{variant}")
    mesh = meshes.make_mesh(**config.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        experiment = loop.build(config, pathlib.Path(folder))
        _, places = loop.state_layout(experiment, config, mesh)
        state = loop.first_state(experiment, config, places)
        host = loop.device_part(next(experiment.batches()))
        batch = meshes.put_batch(host, meshes.batch_sharding(mesh))
        step = jax.jit(experiment.step, donate_argnums=0).lower(state, batch).compile()
        peer = Peer(config.heads.hidden)
        peer.load(jax.device_get(state.params))
        adam = torch.optim.Adam(peer.parameters(), lr=config.schedule.peak, weight_decay=1e-4)
        x, y = [torch.tensor(host[name]) for name in NAMES], torch.tensor(host["label"]).long()
        found = {}
        for phase, number in PHASES.items():
            box: list[Any] = [state._replace(step=jnp.int32(number))]

            def ours(box: list[Any] = box) -> None:
                box[0], metrics = step(box[0], batch)
                box.append(metrics["loss"])

            def theirs(mixing: bool = number == 0) -> None:
                adam.zero_grad()
                peer.loss(x, y, mixing).backward()
                adam.step()

            if number:  # nothing is drawn: the same weights must give the same loss
                peer.load(jax.device_get(box[0].params))
                expected = float(peer.loss(x, y, mixing=False).detach())
                ours()
                np.testing.assert_allclose(float(box.pop()), expected, rtol=1e-4)
            found[phase] = in_turn({"mixcon": ours, "PyTorch": theirs}, box, rounds, block)
            state = box[0]
    return found


def in_turn(sides: dict[str, Callable[[], None]], box: list[Any], rounds: int, block: int) -> dict[str, float]:
    """Median CPU seconds of a step of each side (the machine is shared: a wall clock would time the neighbours)."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):  # the first warms both up
        for name, one in sides.items():
            before = time.process_time()
            for _ in range(block):
                one()
            jax.block_until_ready(box)
            del box[1:]
            if turn:
                seconds[name].append((time.process_time() - before) / block)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return medians | {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["rosmap", "small"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax counts cores
    torch.set_num_threads(1)
    found = {variant: measure(variant, args.rounds, args.block) for variant in args.variants}
    versions = {"jax": jax.__version__, "torch": torch.__version__, "rounds": args.rounds, "block": args.block}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "m3col.json").write_text(json.dumps({"versions": versions, "seconds": found}, indent=1) + "\n")
    lines = [
        "A full-batch ROSMAP step (245 examples, three modalities) on one core, CPU seconds; blocks of "
        f"{args.block} steps in turn, {args.rounds} rounds; jax {jax.__version__}, torch {torch.__version__}.\n",
        "| width | phase | mixcon | PyTorch | ratio (range) |",
        "|---|---|---|---|---|",
    ]
    for variant, phases in found.items():
        for phase, s in phases.items():
            lines.append(
                f"| {1000 if variant == 'rosmap' else 256} | {phase} | {s['mixcon']:.4f} | {s['PyTorch']:.4f} | "
                f"{s['ratio']:.2f} ({s['ratio_min']:.2f}-{s['ratio_max']:.2f}) |"
            )
    (RESULTS / "m3col.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
