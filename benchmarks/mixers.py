"""Mixers side by side: `python -m benchmarks.mixers` (about ten minutes of one core; `--quick` for a first look).

1. Images/s at 224², batch 64 and 256: every policy that needs only the pictures' shape, once per batch and once per
   example, and timm's and torchvision's on the same pictures, soft labels of 1000 classes included on both sides.
2. What mixing adds to a training step of a ViT-Ti/16 and a ResNet-18, in percent: steps with and without, in turn, in
   one program; and the mix alone, as a share of the step, which a noisy machine blurs less.
3. The policies that look or optimise, in multiples of a forward pass.
4. PuzzleMix's labelling problem: our min-cut of a whole batch against host solvers, energies compared.

Everything runs on one core, both sides of a comparison in turn within one run; ratios are medians of the turns' ratios.
Times are CPU seconds, which is what a clock would show if nothing else ran. Both processes keep the memory they free,
so that a call pays for mixing and not for new pages from the kernel, which otherwise cost several times more than the
arithmetic and pull every ratio towards one (`--fresh-pages` to see it).
The original toolbox is no installable package, so its own functions are not here. Writes JSON and tables under
benchmarks/results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mixer_rows as rows
from benchmarks import peer_environment
from mixcon.mixers.graphcut import convex_label_mincut
from mixcon.mixers.puzzle import puzzle_costs

RESULTS = Path(__file__).parent / "results"
NETWORKS = ["ViT-Ti/16", "ResNet-18"]
PARTS = ["throughput", "steps", "forwards", "solvers"]
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}  # read by glibc when a process starts
KEYS = itertools.count()
Timed = Callable[[], float]  # makes one call and returns its seconds


class Peers:
    """The other libraries, in their own process, one request at a time."""

    def __init__(self) -> None:
        command = [peer_environment.ensure(), Path(__file__).with_name("mixer_peers.py")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def seconds(self, row: str, op: str = "time") -> float:
        return self.ask(op=op, row=row)["seconds"]


def seconds(function: Callable[..., Any], *inputs: Any) -> float:
    start = time.process_time()
    jax.block_until_ready(function(*inputs))
    return time.process_time() - start


def timed(function: Callable[..., Any], d: rows.Data) -> Timed:
    """A function of (key, data), compiled; every call has a new key."""
    run = jax.jit(function)
    keys = list(jax.random.split(jax.random.key(1), 64))
    return lambda: seconds(run, keys[next(KEYS) % 64], d)


def in_turn(calls: dict[str, Timed], turns: int) -> dict[str, list[float]]:
    """Seconds of every call, `turns` times round; the first round compiles and is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, turns):
        for name, call in calls.items():
            spent = call()
            if turn >= 0:
                times[name].append(spent)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def throughput(peers: Peers | None, batch: int, turns: int, names: list[str]) -> dict[str, Any]:
    """Part 1 at one batch size, for the policies named."""
    d = rows.data(batch)
    ours = {f"{name}, per {per}": rows.cheap(name, per=per) for name in names for per in ("batch", "example")}
    same_draws = {
        f"timm {name}, {mode}": rows.cheap(name, per=per, partner="reverse")
        for name in ("mixup", "cutmix")
        for mode, per in (("batch", "batch"), ("pair", "pair"), ("elem", "example"))
    } | {
        "torchvision MixUp": rows.cheap("mixup", partner="roll"),
        "torchvision CutMix": rows.cheap("cutmix", partner="roll"),
    }
    calls = {name: timed(function, d) for name, function in ours.items()}
    same_draws = {peer: mix for peer, mix in same_draws.items() if any(n in peer.lower() for n in names)}
    if peers is not None:
        peers.ask(op="load", batch=batch, size=rows.SIZE)
        for name, function in same_draws.items():
            calls |= {f"ours for {name}": timed(function, d), name: partial(peers.seconds, name)}
    times = in_turn(calls, turns)
    policies = [
        {
            "policy": name,
            "per_batch": batch / statistics.median(times[f"{name}, per batch"]),
            "per_example": batch / statistics.median(times[f"{name}, per example"]),
            "example_over_batch": ratio(times[f"{name}, per example"], times[f"{name}, per batch"]),
        }
        for name in names
    ]
    against = [
        {
            "peer": name,
            "ours": batch / statistics.median(times[f"ours for {name}"]),
            "theirs": batch / statistics.median(times[name]),
            "faster": ratio(times[name], times[f"ours for {name}"]),
        }
        for name in (same_draws if peers else ())
    ]
    return {"batch": batch, "policies": policies, "against": against}


def steps(name: str, batch: int, turns: int, names: list[str]) -> dict[str, Any]:
    """Part 2 for one network: a step without mixing comes before every step with it."""
    d = rows.data(batch)
    kinds = [(policy, per) for policy in names for per in ("batch", "example")]
    network = rows.network(name, [partial(rows.CHEAP[policy], per=per) for policy, per in kinds])
    keys = list(jax.random.split(jax.random.key(2), 64))

    def step(which: int) -> float:
        return seconds(network.step, network.params, network.extra, keys[next(KEYS) % 64], d, jnp.int32(which))

    calls: dict[str, Timed] = {}
    for i, (policy, per) in enumerate(kinds, 1):
        calls |= {f"plain {i}": partial(step, 0), f"mixed {i}": partial(step, i)}
        calls[f"alone {i}"] = timed(rows.cheap(policy, per=per), d)
    times = in_turn(calls, turns)
    plain = statistics.median(t for key, spent in times.items() if key.startswith("plain") for t in spent)
    return {
        "network": name,
        "batch": batch,
        "step_seconds": plain,
        "policies": [
            {
                "policy": policy,
                "per": per,
                "added_percent": 100 * (ratio(times[f"mixed {i}"], times[f"plain {i}"]) - 1),
                "alone_percent": 100 * statistics.median(times[f"alone {i}"]) / plain,
            }
            for i, (policy, per) in enumerate(kinds, 1)
        ],
    }


def forwards(batch: int, turns: int) -> dict[str, Any]:
    """Part 3: in multiples of a forward pass of a ResNet-18."""
    d = rows.data(batch)
    network = rows.network("ResNet-18", [])
    calls: dict[str, Timed] = {"forward": lambda: seconds(network.forward, network.params, network.extra, d)}
    calls |= {name: timed(function, d) for name, function in (rows.looking() | rows.learned()).items()}
    times = in_turn(calls, turns)
    base = times.pop("forward")
    policies = [
        {"policy": name, "forwards": ratio(spent, base), "images_per_second": batch / statistics.median(spent)}
        for name, spent in times.items()
    ]
    return {"batch": batch, "forward_seconds": statistics.median(base), "policies": policies}


def solvers(peers: Peers, batch: int, turns: int) -> list[dict[str, Any]]:
    """Part 4: labellings of a batch at each number of blocks."""
    d = rows.data(batch, size=64)
    partner = jnp.arange(batch)[::-1]
    solve, found = jax.jit(convex_label_mincut), []
    for blocks in (2, 4, 8, 16):
        costs = puzzle_costs(d["x"], d["percent"], partner, jnp.float32(0.5), blocks=blocks)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/costs.npz"
            np.savez(path, **{k: np.asarray(v) for k, v in costs._asdict().items()})
            peers.ask(op="costs", path=path)
        names = peers.hello["solvers"]
        calls = {"ours": partial(seconds, solve, *costs)} | {n: partial(peers.seconds, n, "solve") for n in names}
        times = in_turn(calls, turns)
        record: dict[str, Any] = {"blocks": blocks, "batch": batch, "ours_ms": 1e3 * statistics.median(times["ours"])}
        mine = energies(np.asarray(solve(*costs)), *(np.asarray(c) for c in costs))
        for name in names:
            theirs = peers.ask(op="solve", row=name)["energy"]
            record[name] = {
                "faster": ratio(times[name], times["ours"]),
                "ms": 1e3 * statistics.median(times[name]),
                "theirs_worse": sum(t > o for t, o in zip(theirs, mine, strict=True)),
                "ours_worse": sum(t < o for t, o in zip(theirs, mine, strict=True)),
            }
        found.append(record)
    return found


def energies(labels: np.ndarray, unary: np.ndarray, vertical: np.ndarray, horizontal: np.ndarray) -> list[int]:
    """(L-1)² times the energy of each labelling, in integers of any size."""
    span = unary.shape[-1] - 1
    total = np.take_along_axis(unary.astype(np.int64), labels[..., None], axis=-1).sum(axis=(1, 2, 3)) * span**2
    for weight, axis in ((vertical, 1), (horizontal, 2)):
        total = total + (weight.astype(np.int64) * np.square(np.diff(labels, axis=axis))).sum(axis=(1, 2))
    return total.tolist()


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# Mixers at {rows.SIZE}²", f"\n{report['device']}, one core, jax {report['jax']}, float32."]
    for part in report.get("throughput", ()):
        lines += [f"\n## Images per second, batch {part['batch']}\n"]
        lines += ["| policy | per batch | per example | example / batch, time |", "|---|---:|---:|---:|"]
        lines += [
            f"| {r['policy']} | {r['per_batch']:.0f} | {r['per_example']:.0f} | {r['example_over_batch']:.2f} |"
            for r in part["policies"]
        ]
        if part["against"]:
            lines += ["\n| against | ours | theirs | ours faster by |", "|---|---:|---:|---:|"]
            lines += [
                f"| {r['peer']} | {r['ours']:.0f} | {r['theirs']:.0f} | {r['faster']:.2f}× |" for r in part["against"]
            ]
    for part in report.get("steps", ()):
        lines += [f"\n## A training step of {part['network']}, batch {part['batch']}: {part['step_seconds']:.2f} s\n"]
        lines += ["| policy | draws | added, % | mix alone, % of the step |", "|---|---|---:|---:|"]
        lines += [
            f"| {r['policy']} | per {r['per']} | {r['added_percent']:+.1f} | {r['alone_percent']:.2f} |"
            for r in part["policies"]
        ]
    if "forwards" in report:
        part = report["forwards"]
        lines += [f"\n## Policies that look or learn, batch {part['batch']}\n"]
        lines += ["| policy | forward passes of a ResNet-18 | images/s |", "|---|---:|---:|"]
        lines += [f"| {r['policy']} | {r['forwards']:.3f} | {r['images_per_second']:.0f} |" for r in part["policies"]]
    if report.get("solvers"):
        names = [n for n in report["solvers"][0] if isinstance(report["solvers"][0][n], dict)]
        lines += ["\n## PuzzleMix's labelling, three labels\n", f"| blocks | ours | {' | '.join(names)} |"]
        lines += ["|---|---:" + "|---:" * len(names) + "|"]
        for r in report["solvers"]:
            cells = [
                f"{r[n]['ms']:.1f} ms, ours {r[n]['faster']:.2f}× as fast, worse energy in {r[n]['theirs_worse']}, "
                f"better in {r[n]['ours_worse']} of {r['batch']}"
                for n in names
            ]
            lines += [f"| {r['blocks']}² | {r['ours_ms']:.1f} ms | {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts its threads
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="batch 64 only, three turns")
    parser.add_argument("--turns", type=int, default=9, help="of the calls; steps are timed half as often")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="of the calls")
    parser.add_argument(
        "--policies", nargs="+", choices=list(rows.CHEAP), default=list(rows.CHEAP), help="of parts 1 and 2"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--step-batch", type=int, default=8, help="of a training step")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--fresh-pages", action="store_true", help="with the system's default allocator")
    options = parser.parse_args()
    if not options.fresh_pages and any(os.environ.get(k) != v for k, v in KEPT.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.mixers", *sys.argv[1:]], os.environ | KEPT)
    turns = 3 if options.quick else options.turns
    options.out.mkdir(parents=True, exist_ok=True)
    peers = Peers() if options.peers and {"throughput", "solvers"} & set(options.parts) else None
    name = "mixers" + "_fresh_pages" * options.fresh_pages + "_quick" * options.quick
    path = options.out / f"{name}.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    report |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "machine": platform.machine()}
    batches = [64] if options.quick else options.batches
    parts: dict[str, Callable[[], Any]] = {
        "throughput": lambda: [throughput(peers, b, turns, options.policies) for b in batches],
        "steps": lambda: [steps(n, options.step_batch, max(turns // 2, 1), options.policies) for n in options.networks],
        "forwards": lambda: forwards(16, turns),
        "solvers": lambda: solvers(peers, 64, turns) if peers else [],
    }
    for name in options.parts:
        report[name] = parts[name]()
        path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(tables(report))
    print(tables(report))


if __name__ == "__main__":
    main()
