"""Two processes over Gloo, two devices each: the ring's gradient and top-k are those of one process that has it all."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from compiler import xla_flags

from mixcon import ops
from mixcon.ops import pairs

ROOT = pathlib.Path(__file__).parents[2]
WORKER = """
import sys
import jax, numpy as np
port, rank, folder, here = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
sys.path[:0] = [here, f"{here}/.."]
from test_ops_two_processes import compute, data
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
mine = lambda x: x[rank * len(x) // 2 : (rank + 1) * len(x) // 2]
args = [jax.make_array_from_process_local_data(rows, mine(x)) for x in data()]
with jax.set_mesh(mesh):
    out = jax.jit(compute, static_argnames="impl", out_shardings=everywhere)(*args, impl="ring")
np.savez(f"{folder}/{rank}.npz", *[np.asarray(x.addressable_shards[0].data) for x in jax.tree.leaves(out)])
"""


def data():
    rng = np.random.default_rng(0)
    q, k = (
        rng.normal(size=(12, 4)).astype(np.float32) * np.linspace(0.1, 2, 12, dtype=np.float32)[:, None] for _ in "qk"
    )
    return q, k, rng.permutation(12).astype(np.int32), rng.uniform(size=12).astype(np.float32)


def compute(q, k, partner, weight, impl):
    def loss(q, k, weight, scale):
        ce = ops.contrastive_cross_entropy(
            q, k, scale=scale, positives=pairs.mixed(partner, weight), symmetric=True, impl=impl, tile_size=2
        )
        return jnp.sum(ce.rows.loss * jnp.arange(1.0, 13.0)) + jnp.sum(ce.cols.loss * jnp.arange(12.0, 0.0, -1.0))

    return jax.value_and_grad(loss, (0, 1, 2, 3))(q, k, weight, 3.0), ops.top_k(q, k, 3, impl=impl, tile_size=2)


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", WORKER, port]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), str(pathlib.Path(__file__).parent)],
            cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags(devices=2)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors[-2000:]
    want = jax.tree.leaves(compute(*map(jnp.asarray, data()), impl="dense"))
    for rank in (0, 1):
        got = np.load(tmp_path / f"{rank}.npz")
        for name, b in zip(got.files, want, strict=True):
            np.testing.assert_allclose(got[name], b, rtol=2e-5, atol=2e-5 * float(np.max(np.abs(b))))
