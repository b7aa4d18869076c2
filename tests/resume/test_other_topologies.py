"""A run goes on with another number of devices or processes: the same values, the same order, the same curve."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import ended, free_port, losses
from run_files import Watched, forget_steps_after, stored
from tiny import child_environment, tiny_config

from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints

STEPS, CUT = 12, 4
LONG = (f"--config.steps={STEPS}", "--config.checkpoint.keep=20", "--config.ema=0.9")
TOLERANCE = 1e-4  # of each loss, relative: sums over the batch are taken in another order


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Recorder:
    """Trains, and writes down which examples each step is given."""

    def __init__(self):
        self.order, self.build = [], loop.build

    def __call__(self, workdir, *overrides):
        self.order.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build", self.watched)
            loop.train(tiny_config(*LONG, *overrides), workdir, progress=False)
        return list(self.order)

    def watched(self, config, workdir):
        experiment = self.build(config, workdir)
        return experiment._replace(batches=lambda: Watched(experiment.batches(), self.order))


@pytest.fixture(scope="module")
def record():
    return Recorder()


@pytest.fixture(scope="module")
def single(record, tmp_path_factory):
    """A run on one device: its folder and the order of its examples."""
    workdir = tmp_path_factory.mktemp("single")
    return workdir, record(workdir)


def cut(run, target):
    """A copy that ends at step `CUT`."""
    shutil.copytree(run, target)
    forget_steps_after(target, CUT)
    return target


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "split"])
def test_values_are_the_same_on_any_number_of_devices(single, devices, fsdp, monkeypatch):
    monkeypatch.setattr(meshes, "FSDP_MIN_SIZE", 64)
    config = tiny_config(*LONG, f"--config.mesh.data={devices}", f"--config.sharding.fsdp={fsdp}")
    mesh = meshes.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        like = loop.with_sharding(*loop.state_layout(loop.build(config, single[0]), config, mesh))
        found = Checkpoints(single[0], read_only=True).restore(like, step=STEPS)
    kept = stored(single[0], STEPS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found.state):
        name = "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
        np.testing.assert_array_equal(leaf, kept[name], err_msg=name)
        assert len(leaf.sharding.device_set) == devices
    kernel = found.state.params["image"]["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (devices == 1 or not fsdp)


@pytest.mark.parametrize(
    "devices", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8]
)
def test_a_run_of_one_device_goes_on_with_more(record, single, devices, tmp_path, capsys):
    workdir = cut(single[0], tmp_path / "more")
    assert record(workdir, f"--config.mesh.data={devices}") == single[1][CUT:]
    np.testing.assert_allclose(losses(workdir), losses(single[0]), rtol=TOLERANCE)
    assert losses(workdir)[:CUT] == losses(single[0])[:CUT]
    said = capsys.readouterr().err  # names the commit, too, if one was made between the two runs
    assert "bits may differ" in said
    assert f"mesh.data: now {devices}, checkpoint 1" in said


@pytest.mark.slow
def test_a_run_of_eight_devices_goes_on_with_one(record, single, tmp_path):
    order = record(tmp_path / "eight", "--config.mesh.data=8", "--config.sharding.fsdp=True", "--config.steps=12")
    assert order == single[1]
    workdir = cut(tmp_path / "eight", tmp_path / "one")
    # How parameters are split is part of the config; whoever goes on elsewhere says so.
    config = tiny_config(*LONG)
    loop.train(config, workdir, progress=False, allow_config_change=True)
    np.testing.assert_allclose(losses(workdir), losses(single[0]), rtol=TOLERANCE)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(single, tmp_path):
    workdir, script = cut(single[0], tmp_path / "two"), pathlib.Path(__file__).with_name("going_on.py")
    overrides = (*LONG, "--config.mesh.data=4")
    command = [sys.executable, str(script), str(workdir)]
    coordinator = f"127.0.0.1:{free_port()}"
    group = [
        subprocess.Popen(
            [*command, str(tmp_path / f"{i}.json"), coordinator, "2", str(i), *overrides],
            env=child_environment(devices=2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for code, said in ended(group):
        assert code == 0, said
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert [a + b for a, b in zip(*(each["order"] for each in found), strict=True)] == single[1][CUT:]
    for each in found:
        assert each["compared"].keys() == stored(single[0], STEPS).keys()
        assert all(each["compared"].values()), each["compared"]
    np.testing.assert_allclose(losses(workdir), losses(single[0]), rtol=TOLERANCE)
