"""The same losses on every mesh, and on several processes."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import OVERRIDES, child_environment, tiny_config

from mixcon.train import loop
from mixcon.train import mesh as meshes

STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def losses(workdir):
    return [json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


LONG = (f"--config.steps={STEPS}", "--config.checkpoint.every=1000")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Losses on one device."""
    workdir = tmp_path_factory.mktemp("single")
    loop.train(tiny_config(*LONG), workdir, progress=False)
    found = losses(workdir)
    assert len(found) == STEPS
    assert found[-1] < found[0]
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("--config.mesh.data=8",),
        ("--config.mesh.data=4", "--config.mesh.model=2"),
        ("--config.mesh.data=8", "--config.sharding.fsdp=True"),
    ],
    ids=["8x1", "4x2", "fsdp"],
)
def test_losses_are_those_of_one_device(single, tmp_path, overrides, monkeypatch):
    monkeypatch.setattr(meshes, "FSDP_MIN_SIZE", 64)
    state = loop.train(tiny_config(*LONG, *overrides), tmp_path, progress=False)
    np.testing.assert_allclose(losses(tmp_path), single, rtol=1e-4)
    kernel = state.params["image"]["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    whole = "--config.mesh.data=8" in overrides and len(overrides) == 1
    assert kernel.sharding.is_fully_replicated == whole


@pytest.mark.slow
def test_two_processes_with_two_devices_each_agree(single, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mixcon", "train", "--config", "configs/clip.py:small", "--workdir", str(tmp_path),
               "--no-progress", *OVERRIDES, *LONG, "--config.mesh.data=4", f"--coordinator=127.0.0.1:{port}",
               "--processes=2"]  # fmt: skip
    environment = child_environment(devices=2)
    workers = [
        subprocess.Popen([*command, f"--process={i}"], env=environment, stderr=subprocess.PIPE, text=True)
        for i in (0, 1)
    ]
    said = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    np.testing.assert_allclose(losses(tmp_path), single, rtol=1e-4)
    # and what they saved is read by one process
    state = loop.train(tiny_config(*LONG), tmp_path, progress=False)
    assert int(state.step) == STEPS
