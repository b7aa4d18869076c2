"""What the contrastive loss needs on a TPU pod, from the compiler and without a TPU.

    python benchmarks/pod_memory.py            # makes .venv-tpu (jax[tpu], same version) beside the project when needed

Compiles the symmetric loss, forward and backward, ahead of time for named topologies: the ring of `mixcon.ops`, and the
usual dense form, in which every chip keeps its [b, B] share of the logits. Reports temporary bytes per chip, and the
collectives of one step with their bytes; checks that no buffer of the ring has B·b elements (B the global batch, b a
chip's share). Writes JSON and prints a table.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (32_768, 262_144, 1_048_576)
CASES = {  # topology -> widths: every width on one pod, the middle one on the others
    "v5e:16x16": (1024, 512, 768, 1152),
    "v6e:16x16": (1024,),
    "v5p:4x4x4": (1024,),
    "v4:4x4x4": (1024,),
}


# --- compiling (in the environment with libtpu) ----------------------------------------------------------------------


def compile_all(cases: dict[str, tuple[int, ...]], batches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One row for each topology, batch, width and method."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from mixcon import ops
    from mixcon.plan.program import read_program

    def ring(q: Any, k: Any, scale: Any) -> Any:
        ce = ops.contrastive_cross_entropy(q, k, scale=scale, symmetric=True, impl="ring", tile_size=2048)
        assert ce.cols is not None
        return (ce.rows.loss.mean() + ce.cols.loss.mean()) / 2

    def dense(q: Any, k: Any, scale: Any) -> Any:
        logits = scale * jnp.dot(q, k.T, preferred_element_type=jnp.float32)
        own = jnp.diagonal(logits)
        losses = jax.nn.logsumexp(logits, 1) + jax.nn.logsumexp(logits, 0) - 2 * own
        return losses.mean() / 2

    for name, widths in cases.items():
        try:
            devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except Exception as error:  # the installed libtpu does not know this one
            print(f"{name}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            continue
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        for width in widths:
            for batch in batches:
                for method, loss in (("ring", ring), ("dense", dense)):
                    features = jax.ShapeDtypeStruct((batch, width), jnp.bfloat16, sharding=split)
                    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
                    row: dict[str, Any] = {
                        "topology": name, "chip": devices[0].device_kind, "devices": len(devices),
                        "batch": batch, "width": width, "method": method,
                    }  # fmt: skip
                    begin = time.perf_counter()
                    try:
                        with jax.set_mesh(mesh):
                            step = jax.jit(
                                jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(whole, (split, split, whole))
                            )
                            compiled = step.lower(features, features, scale).compile()
                    except jax.errors.JaxRuntimeError as error:
                        needed = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", str(error))
                        if needed is None:
                            raise
                        row["temp_bytes"] = float(needed.group(1)) * 2 ** (10 * (1 + "KMGT".index(needed.group(2))))
                        row["fits"] = False
                    else:
                        program = read_program(compiled.as_text() or "")
                        memory: Any = compiled.memory_analysis()
                        row["temp_bytes"] = memory.temp_size_in_bytes
                        row["fits"] = True
                        row |= dataclasses.asdict(program)
                        cost = compiled.cost_analysis() or {}
                        # The compiler's own estimate does not multiply out loops: only meaningful for the dense form.
                        row["optimal_seconds"] = cost.get("optimal_seconds") if method == "dense" else None
                    row["compile_seconds"] = round(time.perf_counter() - begin, 1)
                    print(
                        f"compiled {name} B={batch} D={width} {method} in {row['compile_seconds']} s", file=sys.stderr
                    )
                    yield row


# --- the report ------------------------------------------------------------------------------------------------------


def check(rows: list[dict[str, Any]]) -> None:
    """The promises: no buffer of B·b elements in the ring, and a million pairs in under 2 GB on v5e 16x16."""
    for row in rows:
        if row["method"] != "ring":
            continue
        forbidden = row["batch"] * row["batch"] // row["devices"]
        # At a small share a tile is all of [b, b]: what must not exist is a device's rows against every key.
        assert row["largest"] < forbidden, f"a buffer of {row['largest']} elements, B·b = {forbidden}: {row}"
        if (row["topology"], row["batch"]) == ("v5e:16x16", 1_048_576):
            assert row["temp_bytes"] < 2e9, f"{row['temp_bytes'] / 1e9:.2f} GB of temporaries: {row}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| topology | chips | B | D | method | temporaries per chip | largest array, elements | collectives per step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        moved = ", ".join(
            f"{int(c['count'])} {kind} {c['bytes'] / 2**20:.1f} MiB" for kind, c in row.get("collectives", {}).items()
        )
        memory = f"{row['temp_bytes'] / 2**20:,.1f} MiB" + ("" if row["fits"] else " (does not fit)")
        case = f"| {row['topology']} | {row['devices']} | {row['batch']:,} | {row['width']} | {row['method']} "
        lines.append(f"{case}| {memory} | {row.get('largest', 0):,} | {moved} |")
    return "\n".join(lines)


def tpu_python(folder: Path) -> Path:
    """A python with libtpu for the jax that runs this script; made on first use."""
    import jax

    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with jax[tpu]=={jax.__version__}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"jax[tpu]=={jax.__version__}"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", action="append", help="e.g. v5e:16x16; default: " + ", ".join(CASES))
    parser.add_argument("--batch", action="append", type=int, help=f"global batch; default: {BATCHES}")
    parser.add_argument("--width", action="append", type=int, help="feature size; default depends on the topology")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "pod_memory.json")
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv-tpu", help="where jax[tpu] is, or shall be installed"
    )
    parser.add_argument("--here", action="store_true", help="compile in this interpreter, which has libtpu")
    args = parser.parse_args()
    if not args.here:
        env = os.environ | {
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so its lock need not be held
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [str(tpu_python(args.venv)), __file__, *sys.argv[1:], "--here"]
        sys.exit(subprocess.run(command, env=env, check=False).returncode)
    cases = {name: tuple(args.width or CASES.get(name, (1024,))) for name in args.topology or CASES}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in compile_all(cases, tuple(args.batch or BATCHES)):
        rows.append(row)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")  # at once: the dense form can take minutes to compile
    if not rows:
        sys.exit("nothing was compiled: see the messages above")
    print(table(rows))
    check(rows)
    print("no array of B·b elements in the ring; every v5e:16x16 case of a million pairs is under 2 GB of temporaries")


if __name__ == "__main__":
    main()
