"""Cut after any step, a run goes on as if it had not been cut: every array, the order of examples, every metric."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from experiment_cases import CASES, FURTHER
from run_files import Watched, assert_same_run, forget_steps_after

from mixcon import config as configs
from mixcon.train import loop

STEPS = 6
COMMON = ("mesh.data=1", f"steps={STEPS}", "log_every=1", "checkpoint.every=1", "checkpoint.keep=10")
# A teacher in `extra`, a queue in the objective's state, mixing drawn in the step, momentum; and an average of it all.
EVERYTHING = "mochi:small"
# Of each paper its form `small`, or what stands for it in the battery.
RESUMED = [
    case
    for case in CASES
    if case.endswith(":small") or (case not in FURTHER and f"{case.partition(':')[0]}:small" not in CASES)
]
BUILD = loop.build


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config_of(case, *more):
    """A case of the battery, as its config."""
    name, variant = case.split(":")
    return configs.load(f"configs/{name}.py:{variant}", [f"--config.{each}" for each in (*COMMON, *CASES[case], *more)])


class Trainer:
    """Runs one case again and again; the experiment is put together once, so that its step is traced once."""

    def __init__(self, case, folder):
        self.config = config_of(case, "eval_every=-1", *(["ema=0.9"] if case == EVERYTHING else []))
        self.whole, self.seen = folder / "whole", []
        self.experiment = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build", self.build)
            self.state = loop.train(self.config, self.whole, progress=False)
        self.order = list(self.seen)

    def build(self, config, workdir):
        if self.experiment is None:
            if workdir != self.whole:  # a run that this one goes on from: its examples do not count
                return BUILD(config, workdir)
            self.experiment = BUILD(config, workdir)
        return self.experiment._replace(batches=lambda: Watched(self.experiment.batches(), self.seen))

    def cut(self, step, workdir, monkeypatch):
        """From a copy of the run that ends at a step, on to the last."""
        shutil.copytree(self.whole, workdir)
        forget_steps_after(workdir, step)
        self.seen.clear()
        monkeypatch.setattr(loop, "build", self.build)
        loop.train(self.config, workdir, progress=False)
        assert self.seen == self.order[step:], "the examples of the steps that are left, in their order"
        assert_same_run(workdir, self.whole, STEPS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return Trainer(EVERYTHING, tmp_path_factory.mktemp("everything"))


def test_the_run_has_every_kind_of_state(everything):
    state = everything.state
    for part in ("params", "extra", "opt_state", "objective", "ema"):
        assert any(np.size(x) > 1 for x in jax.tree.leaves(getattr(state, part))), part
    assert len(everything.order) == STEPS
    assert len({tuple(row) for row in everything.order}) == STEPS


@pytest.mark.parametrize("step", range(1, STEPS))
def test_cut_after_any_step(everything, step, tmp_path, monkeypatch):
    everything.cut(step, tmp_path / "cut", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in RESUMED if case != EVERYTHING])
def test_cut_after_any_step_of_any_experiment(case, tmp_path, monkeypatch):
    trainer = Trainer(case, tmp_path)
    for step in range(1, STEPS):
        trainer.cut(step, tmp_path / str(step), monkeypatch)


def session(case, workdir):
    """A training process of its own."""
    loop.train(config_of(case, "eval_every=3"), workdir, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_killed_at_random_moments(case, tmp_path, monkeypatch):
    """SIGKILL again and again, until the run is through; it is the run that nobody killed."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    processes, seed = multiprocessing.get_context("forkserver"), time.time_ns()
    print(f"moments drawn from {seed}")
    rng = random.Random(seed)
    processes.set_forkserver_preload(["mixcon.train.loop", "experiments.clip", "tensorboardX"])  # imported once

    def start(workdir):
        process = processes.Process(target=session, args=(case, workdir))
        process.start()
        return process

    whole, killed, kills, tries = start(tmp_path / "whole"), tmp_path / "killed", 0, 0
    whole.join(240)
    assert whole.exitcode == 0
    while True:
        old, goal, process = log_of(killed), rng.randrange(1, 3), start(killed)
        started = lines_of(killed)
        while process.is_alive() and (log_of(killed) == old or lines_of(killed) < min(started, STEPS - 2) + goal):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05 / 2**tries)
        if process.is_alive() and kills < 2:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(240)
        if process.exitcode == 0 and (kills or tries == 8):
            break
        if process.exitcode == 0:  # its steps take less than the wait: once more from the start, sooner
            shutil.rmtree(killed)
            tries += 1
            continue
        assert process.exitcode == -signal.SIGKILL
    assert kills
    assert_same_run(killed, tmp_path / "whole", STEPS)


def log_of(workdir):
    """Which file of metrics there is; each session begins with a new one."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def lines_of(workdir):
    """Metric lines written so far."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
