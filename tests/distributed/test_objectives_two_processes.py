"""Two processes over Gloo, each with its own half of the data: the gradient of one process that has it all."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from compiler import xla_flags

HERE = pathlib.Path(__file__).parent
CONTRACTS = HERE.parent / "contracts"
NAMES = ["clip", "siglip", "nt_xent", "supcon: in, two views", "barlow_twins", "multi_similarity"]

WORKER = """
import json, sys
import jax, numpy as np
port, rank, world, names, contracts, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
sys.path.insert(0, contracts)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", world, rank)
from jax.sharding import NamedSharding, PartitionSpec
from objective_cases import CASES, example
from mixcon.train.mesh import make_mesh

mesh = make_mesh(data=-1)
rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
for case in CASES:
    if case.name not in json.loads(names):
        continue
    as_float = lambda x: np.asarray(x, np.float32 if np.asarray(x).dtype == np.float64 else None)
    features, data, shared = jax.tree.map(as_float, example(case))
    size = 16 // world
    half = lambda x: jax.make_array_from_process_local_data(rows, x[rank * size : (rank + 1) * size])
    features, data = jax.tree.map(half, (features, data))
    loss = lambda f, s, d: case.loss(f, d, s, impl="ring" if case.engine else "auto")
    place = (everywhere, ({k: rows for k in features}, {k: everywhere for k in shared}))
    with jax.set_mesh(mesh):
        value, (of_features, of_shared) = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=place)(
            features, shared, data
        )
    mine = lambda x: np.concatenate([np.asarray(s.data) for s in x.addressable_shards])
    found = {"loss": np.asarray(value), **{f"f_{k}": mine(g) for k, g in of_features.items()}}
    found |= {f"s_{k}": np.asarray(g.addressable_shards[0].data) for k, g in of_shared.items()}
    np.savez(f"{folder}/{CASES.index(case)}-{rank}.npz", **found)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("processes")
    port = str(free_port())
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices=2),
        "PYTHONPATH": str(HERE.parent.parent),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, port, str(rank), "2", json.dumps(NAMES), str(CONTRACTS), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_gradient_of_one(results: pathlib.Path, name: str) -> None:
    sys.path.insert(0, str(CONTRACTS))
    import jax
    from objective_cases import CASES, example

    number, case = next((i, c) for i, c in enumerate(CASES) if c.name == name)
    features, data, shared = jax.tree.map(
        lambda x: np.asarray(x, np.float32 if np.asarray(x).dtype == np.float64 else None), example(case)
    )
    pair = jax.jit(jax.value_and_grad(lambda f, s: case.loss(f, data, s, impl="dense"), (0, 1)))
    loss, (of_features, of_shared) = pair(jax.tree.map(jax.numpy.asarray, features), shared)
    halves = [np.load(results / f"{number}-{rank}.npz") for rank in range(2)]
    for half in halves:
        np.testing.assert_allclose(half["loss"], loss, rtol=1e-5)
        for k, g in of_shared.items():
            np.testing.assert_allclose(half[f"s_{k}"], g, rtol=2e-4, atol=1e-5)
    for k, g in of_features.items():
        both = np.concatenate([half[f"f_{k}"] for half in halves])
        np.testing.assert_allclose(both, g, rtol=2e-4, atol=1e-5)
