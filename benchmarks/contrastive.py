"""Contrastive losses side by side: dense JAX, mixcon, optax, and what torch users run.

    python -m benchmarks.contrastive                 # all sizes, peers too (their environment is made when needed)
    python -m benchmarks.contrastive --quick         # minutes: two small sizes
    python -m benchmarks.contrastive --no-peers --sizes 8192 --dim 512

Every row is first held against float64 in value and gradient; a row that fails is reported and not timed. Rows of one
size are timed in turn (one call each, then again), so that a busy machine slows all of them alike: compare the numbers
of one size with each other, not with another run. Memory is what a step needs beyond its inputs: XLA's own analysis of
temporaries, and for torch the growth of the resident set. Writes JSON, a table and a picture under benchmarks/results.

On a GPU (jax.default_backend() == "gpu") the rows also run in bfloat16 and with TF32 products, Inf-CL and Cut
Cross-Entropy take part where installed, and the ledger of 8·B²·D operations is compared with the measured peak of a
matrix product.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the card is shared with the torch process

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peer_environment
from benchmarks.contrastive_rows import ROWS, Row, inputs, tangent, truth

RESULTS = Path(__file__).parent / "results"
GATE_SIZE, GATE_DIM = 192, 64
TASKS = {
    "clip": "symmetric CLIP loss",
    "mixed": "mixed targets, symmetric",
    "weighted": "targets from frozen features, symmetric",
    "siglip": "SigLIP",
    "nt_xent": "NT-Xent of B/2 examples in two views",
    "supcon": "SupCon, 8 samples a class",
}


class Jax:
    """The rows of this process, compiled for one size."""

    def __init__(self, dtype: str, precision: str | None):
        self.dtype, self.precision = dtype, precision
        self.compiled: dict[tuple[str, str, bool], Any] = {}

    def load(self, x: dict[str, np.ndarray]) -> None:
        cast = {"image": self.dtype, "text": self.dtype}
        self.inputs = {k: jnp.asarray(v, cast.get(k)) for k, v in x.items()}
        self.compiled.clear()

    def function(self, row: Row, backward: bool) -> Any:
        key = (row.task, row.name, backward)
        if key not in self.compiled:

            def step(features: Any, rest: Any) -> Any:
                if row.gradient is not None:
                    return row.gradient(features | rest)
                assert row.loss is not None
                if not backward:
                    return row.loss(features | rest)
                return jax.value_and_grad(lambda f: row.loss(f | rest))(features)

            with jax.default_matmul_precision(self.precision):
                self.compiled[key] = jax.jit(step).lower(*self.split()).compile()
        return self.compiled[key]

    def split(self) -> tuple[Any, Any]:
        features = {k: self.inputs[k] for k in ("image", "text")}
        return features, {k: v for k, v in self.inputs.items() if k not in features}

    def gate(self, row: Row) -> tuple[float, dict[str, np.ndarray]]:
        loss, gradients = self.function(row, True)(*self.split())
        return float(loss), {k: np.asarray(g, np.float64) for k, g in gradients.items()}

    def seconds(self, row: Row, backward: bool) -> float:
        function = self.function(row, backward)
        start = time.perf_counter()
        jax.block_until_ready(function(*self.split()))
        return time.perf_counter() - start

    def memory(self, row: Row) -> int:
        return int(self.function(row, True).memory_analysis().temp_size_in_bytes)


class Torch:
    """The peers, in their own process."""

    def __init__(self, threads: int, dtype: str):
        self.folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # idle threads must not take time from the others
        script = Path(__file__).with_name("torch_peers.py")
        command = [peer_environment.ensure(), script, str(threads), dtype]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        hello = self._read()
        self.rows, self.version = hello["rows"], hello["torch"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the torch process ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def load(self, x: dict[str, np.ndarray]) -> None:
        path = f"{self.folder.name}/inputs.npz"
        np.savez(path, **x)
        self.ask(op="load", path=path)

    def gate(self, row: Row) -> tuple[float, dict[str, np.ndarray]]:
        path = f"{self.folder.name}/gradients.npz"
        loss = self.ask(op="gate", row=row.name, path=path)["loss"]
        with np.load(path) as file:
            return loss, {k: file[k].astype(np.float64) for k in file.files}

    def seconds(self, row: Row, backward: bool) -> float:
        return self.ask(op="time", row=row.name, backward=backward)["seconds"]

    def memory(self, row: Row) -> int:
        return self.ask(op="memory", row=row.name)["bytes"]


def passes(side: Jax | Torch, row: Row, x: dict[str, np.ndarray], tolerance: float) -> float | None:
    """Largest error relative to the truth, or None when it is within the tolerance."""
    want, want_gradients = truth(row.task, x)
    loss, gradients = side.gate(row)
    errors = [abs(loss - want) / abs(want)]
    for name, g in want_gradients.items():
        rows = x[name].astype(np.float64)
        error = tangent(gradients[name] - g, rows)
        errors.append(np.abs(error).max() / np.abs(tangent(g, rows)).max())
    return None if max(errors) <= tolerance else max(errors)


def matmul_peak(dtype: str, precision: str | None) -> float:
    """Operations per second of a large product."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((size, size), dtype)
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a: a @ a).lower(a).compile()
    times = []
    for _ in range(6):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def measure(sides: dict[str, Jax | Torch], rows: list[Row], size: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """Every row of one size, in turn."""
    x = inputs(size, dim)
    for side in sides.values():
        side.load(x)
    chosen = [row for row in rows if size <= row.limit]
    times: dict[tuple[str, str, bool], list[float]] = {}
    for turn in range(-1, repeats):  # the first turn compiles and warms, and is thrown away
        for row in chosen:
            side = sides["jax" if row.loss or row.gradient else "torch"]
            for backward in (False, True) if row.gradient is None else (True,):
                spent = side.seconds(row, backward)
                if turn >= 0:
                    times.setdefault((row.task, row.name, backward), []).append(spent)
    out = []
    for row in chosen:
        side = sides["jax" if row.loss or row.gradient else "torch"]
        record: dict[str, Any] = {"task": row.task, "row": row.name, "B": size, "D": dim, "memory": side.memory(row)}
        for backward, name in ((False, "forward"), (True, "forward_backward")):
            spent = times.get((row.task, row.name, backward))
            if spent:
                record[name] = {"median": statistics.median(spent), "min": min(spent), "max": max(spent)}
        record["flops_per_second"] = 8 * size**2 * dim / record["forward_backward"]["median"]
        out.append(record)
    return out


def table(records: list[dict[str, Any]], peak: float) -> str:
    """The records as Markdown, one table for each size."""
    lines = []
    for size in sorted({r["B"] for r in records}):
        of_size = [r for r in records if r["B"] == size]
        lines += [f"\n### B = {size}, D = {of_size[0]['D']}\n"]
        lines += ["| task | row | forward | forward + backward | spread | × dense CLIP | memory | 8B²D, of peak |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
        base = next((r for r in of_size if r["task"] == "clip" and "dense" in r["row"]), None)
        for r in of_size:
            both, forward = r["forward_backward"], r.get("forward")
            ratio = f"{both['median'] / base['forward_backward']['median']:.2f}" if base else "-"
            lines.append(
                f"| {r['task']} | {r['row']} | {_ms(forward['median']) if forward else '-'} | {_ms(both['median'])} "
                f"| {_ms(both['min'])} - {_ms(both['max'])} | {ratio} | {r['memory'] / 2**20:.1f} MiB "
                f"| {100 * r['flops_per_second'] / peak:.0f} % |"
            )
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def picture(records: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of the CLIP rows against the batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = list(dict.fromkeys(r["row"] for r in records if r["task"] == "clip"))
    for name in names:
        mine = sorted((r for r in records if r["task"] == "clip" and r["row"] == name), key=lambda r: r["B"])
        sizes = [r["B"] for r in mine]
        left.plot(sizes, [r["forward_backward"]["median"] for r in mine], marker="o", label=name)
        right.plot(sizes, [max(r["memory"], 1) / 2**20 for r in mine], marker="o", label=name)
    for axis, label in ((left, "seconds, forward + backward"), (right, "MiB beyond the inputs")):
        axis.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        sizes = sorted({r["B"] for r in records})
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle("Symmetric CLIP loss")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="batches (default 512 2048 8192 32768)")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", help="only rows whose name contains this")
    parser.add_argument("--quick", action="store_true", help="B = 256 and 1024, three repeats")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="torch libraries too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    sizes = options.sizes or ([256, 1024] if options.quick else [512, 2048, 8192, 32768])
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    threads = len(os.sched_getaffinity(0))
    modes = [("float32", None)] + ([("float32", "tensorfloat32"), ("bfloat16", None)] if gpu else [])
    report: dict[str, Any] = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "threads": threads,
        "modes": [],
    }
    text = [f"# Contrastive losses\n\n{report['device']}, {threads} threads, jax {jax.__version__}"]
    for dtype, precision in modes:
        sides: dict[str, Jax | Torch] = {"jax": Jax(dtype, precision)}
        if options.peers:
            sides["torch"] = Torch(threads, dtype)
            report["torch"] = sides["torch"].version
        rows = [r for r in ROWS if r.task in options.tasks and (not options.rows or options.rows in r.name)]
        rows = [r for r in rows if r.loss or r.gradient or (options.peers and r.name in sides["torch"].rows)]
        x = inputs(GATE_SIZE, GATE_DIM)
        for side in sides.values():
            side.load(x)
        tolerance = 1e-4 if (dtype, precision) == ("float32", None) else 3e-2
        failed = {}
        for row in rows:
            error = passes(sides["jax" if row.loss or row.gradient else "torch"], row, x, tolerance)
            if error is not None:
                failed[f"{row.task}: {row.name}"] = error
        rows = [r for r in rows if f"{r.task}: {r.name}" not in failed]
        records = []
        peak = matmul_peak(dtype, precision)
        for size in sizes:
            # What grows with the square of the batch is left out where it would not fit.
            fits = [r for r in rows if size <= 16384 or "tiled" in r.name]
            fits = [r for r in fits if size <= 16384 or r.task == "clip"]
            print(f"B = {size}: {len(fits)} rows", file=sys.stderr)
            records += measure(sides, fits, size, options.dim, repeats if size <= 16384 else 1)
            peak = max(peak, matmul_peak(dtype, precision))  # a shared machine is not always as fast
        name = dtype if precision is None else precision
        report["modes"].append({"mode": name, "peak": peak, "failed_gate": failed, "records": records})
        text += [f"\n## {name}; a product reaches {peak / 1e9:.0f} GFLOP/s", table(records, peak)]
        text += [f"\nNot timed, gate failed: {failed}"] if failed else []
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "_quick" if options.quick else ""
    (options.out / f"contrastive{suffix}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"contrastive{suffix}.md").write_text("\n".join(text) + "\n")
    picture(report["modes"][0]["records"], options.out / f"contrastive{suffix}.png")
    print("\n".join(text))


if __name__ == "__main__":
    main()
