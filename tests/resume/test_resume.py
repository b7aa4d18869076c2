"""A run that was interrupted is, to the last bit, the run that was not."""

import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from run_files import assert_same_run, forget_steps_after
from tiny import OVERRIDES, child_environment, tiny_config

from mixcon.train import loop

STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def config(*overrides):
    found = tiny_config("--config.ema=0.9", "--config.checkpoint.keep=10", *overrides)
    with found.unlocked():
        found.gradient = dict(name="mixcon.train.gradients.grad_cache", parts=2)
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that nothing interrupts, with a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("reference")
    loop.train(config(), workdir, progress=False)
    return workdir


def test_two_runs_of_one_config_are_the_same(reference, tmp_path):
    loop.train(config(), tmp_path, progress=False)
    assert_same_run(tmp_path, reference, STEPS)


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5))])
def test_resuming_at_any_step_is_bit_identical(reference, tmp_path, step):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    forget_steps_after(workdir, step)
    loop.train(config(), workdir, progress=False)
    assert_same_run(workdir, reference, STEPS)


@pytest.mark.slow
def test_killed_processes_resume_to_the_bit(tmp_path):
    """SIGKILL at random moments, also in the middle of saving, until the run is through."""
    steps, rng = 12, random.Random(time.time_ns())
    overrides = [*OVERRIDES, f"--config.steps={steps}", "--config.ema=0.9"]
    command = [
        sys.executable,
        "-m",
        "mixcon",
        "train",
        "--config",
        "configs/clip.py:small",
        "--no-progress",
        *overrides,
    ]
    environment = child_environment()

    def start(workdir):
        return subprocess.Popen(
            [*command, "--workdir", str(workdir)], env=environment, stderr=subprocess.PIPE, text=True
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0, whole.stderr.read()
    killed, kills = tmp_path / "killed", 0
    while True:
        process = start(killed)
        seen = progress(killed)
        while process.poll() is None and progress(killed) <= seen + rng.randrange(3):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    said = process.stderr.read()
    assert process.returncode == 0, said
    assert kills >= 2
    assert_same_run(killed, tmp_path / "whole", steps)


def progress(workdir):
    """Metric lines written so far."""
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0
