"""A process that dies takes the others down in words, and the same command goes on as if nothing had happened."""

import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from processes import child_environment, ended, free_port, losses, started, train, wait_for
from run_files import assert_same_run
from tiny import tiny_config

from mixcon.train import loop
from mixcon.train.checkpoint import Checkpoints
from mixcon.train.distributed import EXIT_LOST

STEPS = 24
RUN = (f"--config.steps={STEPS}", "--config.checkpoint.every=2")
BOUND = 20  # seconds from a death to the end of the last survivor; on an idle machine it is less than one

BODY = """
import os, signal, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # as the command does, before JAX is imported
import jax, numpy as np
from jax.experimental import multihost_utils
from mixcon import cli
from mixcon.errors import InputError
from mixcon.train import distributed, guards, loop

process, what = int(sys.argv.pop()), sys.argv.pop()
distributed.GRACE = 1.0

def body(*_, **__):
    if hasattr(signal, what):
        return asked_to_stop()
    for step in range(10_000):
        total = multihost_utils.process_allgather(np.asarray(step))
        print("step", step, flush=True)
        if step == 3 and (what == "both" or process == 1 and what != "nobody"):
            raise InputError(f"the data of process {process} is bad") if what != "unexpected" else KeyError("oh")
        if step == 5 and what == "nobody":
            return
        time.sleep(0.01)

def asked_to_stop():
    with guards.stop_signals() as stop:
        for step in range(10_000):
            multihost_utils.process_allgather(np.asarray(step))
            if process == 1 and step == 5:
                signal.raise_signal(getattr(signal, what))
            if stop(step):
                print("stopped at", step, file=sys.stderr)
                return
            time.sleep(0.01)

loop.train = body
cli.main()
"""


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def bodies(what, processes=2):
    """What processes say that join through the real command, and whose training is a loop of collectives."""
    place = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}"]
    command = [sys.executable, "-c", BODY, "train", "--config", "configs/clip.py:small", "--workdir=never", *place]
    group = [
        subprocess.Popen(
            [*command, f"--process={i}", what, str(i)], env=child_environment(),
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        return ended(group)
    finally:
        for process in group:
            process.kill()


def test_an_error_of_one_process_ends_the_other_in_words():
    (survivor, said), (failed, its_words) = bodies("one")
    assert (survivor, failed) == (EXIT_LOST, 2)
    assert its_words == "mixcon: error: the data of process 1 is bad\n"
    assert re.fullmatch(r"mixcon: process 1 of 2 stopped by an error, so process 0 ends too; .*\n", said)


@pytest.mark.slow
def test_an_error_that_all_meet_is_said_by_each_in_its_own_words():
    assert bodies("both") == [(2, f"mixcon: error: the data of process {i} is bad\n") for i in (0, 1)]


@pytest.mark.slow
def test_an_unexpected_error_of_one_process_ends_the_other_too():
    (survivor, said), (failed, its_words) = bodies("unexpected")
    assert (survivor, failed) == (EXIT_LOST, 1)
    assert "unexpected error: KeyError" in its_words
    assert "process 1 of 2 stopped by an error" in said


@pytest.mark.slow
def test_processes_that_end_in_order_say_nothing():
    assert bodies("nobody", processes=3) == [(0, "")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_stops_all_at_the_same_step(name):
    (first, said), (second, repeated) = bodies(name)
    assert (first, second) == (0, 0), said + repeated
    assert said == repeated
    assert re.fullmatch(r"stopped at \d+\n", said)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of two processes to which nothing happens."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert [code for code, _ in train(workdir, *RUN, processes=2)] == [0, 0]
    assert len(losses(workdir)) == STEPS
    return workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    loop.train(tiny_config(*RUN), workdir, progress=False)
    return losses(workdir)


def kill(workdir, victim, *, processes, devices=1):
    """Train, kill one process in the middle, and look at how the others end."""
    with started(workdir, *RUN, processes=processes, devices=devices) as group:
        wait_for(workdir, 7, group)
        group[victim].kill()
        start = time.monotonic()
        said = ended(group)
    assert time.monotonic() - start < BOUND
    assert len(losses(workdir)) < STEPS, "it was killed in the middle"
    for process, (code, text) in enumerate(said):
        if process != victim:
            assert code == EXIT_LOST, text
            died = f"process {victim} of {processes} has died, so process {process} ends too"
            then = "the same command, started again on all of them, goes on from the last complete checkpoint"
            assert [line for line in text.splitlines() if line.startswith("mixcon")] == [f"mixcon: {died}; {then}"]
            assert "Traceback" not in text
            assert "stack trace" not in text


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_bits_of_an_undisturbed_run(tmp_path, undisturbed):
    kill(tmp_path, 1, processes=2)
    again = train(tmp_path, *RUN, processes=2)
    assert [code for code, _ in again] == [0, 0], again
    assert "resuming from the checkpoint of step" in again[0][1]
    assert_same_run(tmp_path, undisturbed, STEPS)


@pytest.mark.slow
def test_four_processes_then_two_with_two_devices_each_then_one(tmp_path, alone):
    kill(tmp_path, 0, processes=4)
    with started(tmp_path, *RUN[:1], "--config.checkpoint.every=1000", processes=2, devices=2) as group:
        wait_for(tmp_path, len(losses(tmp_path)) + 1, group)
        group[1].send_signal(signal.SIGTERM)
        said = ended(group)
    assert [code for code, _ in said] == [0, 0], said
    step = Checkpoints(tmp_path, read_only=True).steps()[-1]
    assert f"stopping at step {step} as asked by a signal" in said[0][1] or step == STEPS
    assert len(losses(tmp_path)) == step, "all of them saved after the same step"
    loop.train(tiny_config(*RUN), tmp_path, progress=False)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)
