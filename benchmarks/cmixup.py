"""A whole C-Mixup run on Airfoil, from the shell to its last evaluation, beside the same run in PyTorch, in turn.

    MIXCON_DATA=... python -m benchmarks.cmixup            # writes benchmarks/results/cmixup.json and cmixup.md

Ours is `mixcon train --config configs/cmixup.py:airfoil` with its hundred evaluations and its checkpoint; the peer is
the same network, sampler, optimiser and evaluations, written plainly. Nothing is cached between runs: both start from
nothing, imports and compilation included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"
CONFIG = "configs/cmixup.py:airfoil"


def peer() -> None:
    """One run in PyTorch; prints the best validation RMSE."""
    import torch
    import torch.nn.functional as F

    from mixcon import config as configs

    config = configs.load(CONFIG)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sets = configs.partial(config.data.sets)(seed=0)
    (x, y), (valid_x, valid_y), (test_x, test_y) = (
        (torch.tensor(part.columns["x"]), torch.tensor(part.columns["y"])) for part in sets
    )
    labels, size = y.numpy(), config.batch_size
    near = np.exp(-np.square(labels - labels.T) / (2 * config.mixer.bandwidth**2))
    chance = near / near.sum(axis=1, keepdims=True)
    first = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 128), torch.nn.LeakyReLU(0.1))
    rest = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.LeakyReLU(0.1), torch.nn.Linear(128, 1))
    optimizer = torch.optim.Adam([*first.parameters(), *rest.parameters()], config.schedule.peak)
    best = float("inf")
    for _ in range(config.steps // (len(x) // size)):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            a = order[start : start + size]
            b = np.array([rng.choice(len(x), p=chance[i]) for i in a])
            lam = rng.beta(config.mixer.alpha, config.mixer.alpha)
            loss = F.mse_loss(rest(lam * first(x[a]) + (1 - lam) * first(x[b])), lam * y[a] + (1 - lam) * y[b])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            errors = [
                float((rest(first(u)) - v).square().mean().sqrt()) for u, v in ((valid_x, valid_y), (test_x, test_y))
            ]
        best = min(best, errors[0])
    print(best)


def timed(command: list[str]) -> dict[str, float]:
    """Seconds on the clock and of the processor of a child."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": time.perf_counter() - start, "cpu": spent}


def main() -> None:
    """Run in turn, write medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="one run of the peer, and nothing else")
    arguments = parser.parse_args()
    if arguments.peer:
        peer()
        return
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    rounds = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours = [sys.executable, "-m", "mixcon", "train", "--config", CONFIG, "--workdir", folder, "--no-progress"]
            rounds.append(
                {"mixcon": timed(ours), "PyTorch": timed([sys.executable, "-m", "benchmarks.cmixup", "--peer"])}
            )
    median = {
        name: {kind: statistics.median(each[name][kind] for each in rounds) for kind in ("wall", "cpu")}
        for name in rounds[0]
    }
    ratio = statistics.median(each["mixcon"]["cpu"] / each["PyTorch"]["cpu"] for each in rounds)
    lines = ["| a run on one core | processor, s | clock, s |", "|---|---|---|"]
    lines += [f"| {name} | {each['cpu']:.1f} | {each['wall']:.1f} |" for name, each in median.items()]
    lines.append(f"\nRatio of processor seconds, ours to PyTorch's: {ratio:.2f} (median of {len(rounds)} rounds).\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cmixup.json").write_text(json.dumps({"rounds": rounds, "median": median, "ratio": ratio}, indent=1))
    (RESULTS / "cmixup.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
