"""The outer loop: what a run leaves, and what stops it."""

import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import OVERRIDES, child_environment, tiny_config

from mixcon.data import tokenizer
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train.checkpoint import Checkpoints

EXPLODING = ("--config.schedule.peak=1e25", "--config.schedule.warmup_steps=0")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def train(workdir, *overrides, **kwargs):
    return loop.train(tiny_config(*overrides), workdir, progress=False, **kwargs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of six steps."""
    workdir = tmp_path_factory.mktemp("run")
    train(workdir)
    return workdir


def test_a_run_leaves_config_versions_metrics_events_and_goodput(run):
    assert json.loads((run / "config.json").read_text())["batch_size"] == 16
    record = json.loads((run / "run.json").read_text())
    assert record["mesh"] == {"data": 1, "model": 1}
    assert record["versions"]["jax"] == jax.__version__
    steps = [line["step"] for line in lines(run)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert {"train/loss", "train/grad_norm", "train/logit_scale", "timing/examples_per_s"} <= lines(run)[0].keys()
    assert list((run / "events").glob("events.out.tfevents.*"))
    goodput = json.loads((run / "goodput.json").read_text())
    parts = sum(v for k, v in goodput.items() if k not in ("total", "loop_overhead"))
    assert parts == pytest.approx(goodput["total"], rel=0.01)


def test_starting_a_finished_run_again_does_nothing(run, capsys):
    before = lines(run)
    train(run)
    assert lines(run) == before
    assert "nothing to do" in capsys.readouterr().err


def test_another_config_is_refused_with_the_differences(run):
    with pytest.raises(InputError, match=r"made with another config \(batch_size: now 32, checkpoint 16\)"):
        train(run, "--config.batch_size=32")
    train(run, "--config.log_every=2")  # what does not change the computation is free to change


def test_a_longer_run_may_be_asked_for(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "longer")
    state = train(tmp_path / "longer", "--config.steps=7", allow_config_change=True)
    assert int(state.step) == 7


def test_a_batch_that_does_not_divide_is_refused_before_anything(tmp_path):
    with pytest.raises(InputError, match="batch_size=12 is not divisible by the data axis of 8; try 8 or 16"):
        train(tmp_path, "--config.batch_size=12", "--config.mesh.data=8")
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_newest_checkpoint_costs_one_step(run, tmp_path, capsys):
    import shutil

    workdir = tmp_path / "damaged"
    shutil.copytree(run, workdir)
    newest = workdir / "checkpoints" / "6"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:100])
    state = train(workdir)
    said = capsys.readouterr().err
    assert "checkpoint of step 6 was passed over" in said
    assert "resuming from the checkpoint of step 5" in said
    reference = loop_state(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), reference)


def test_a_step_put_aside_is_said_even_when_the_config_is_then_refused(run, tmp_path, capsys):
    import shutil

    shutil.copytree(run, tmp_path / "damaged")
    victim = next((tmp_path / "damaged" / "checkpoints" / "6").rglob("_METADATA"))
    victim.write_text("")
    with pytest.raises(InputError, match="step 5 was made with another config"):
        train(tmp_path / "damaged", "--config.batch_size=32")
    assert "checkpoint of step 6 was passed over" in capsys.readouterr().err


def test_another_vocabulary_is_not_served_by_what_a_refused_start_left(tmp_path):
    with pytest.raises(InputError, match="valid names: skip, stop"):
        train(tmp_path, "--config.tokenizer.vocab_size=280", "--config.nonfinite=ignore")
    with pytest.raises(InputError, match="valid names: skip, stop"):
        train(tmp_path, "--config.tokenizer.vocab_size=270", "--config.nonfinite=ignore")
    assert tokenizer.load(tmp_path / "tokenizer.json").vocab_size == 270


def test_an_evaluation_that_was_cut_off_is_made_up_for_at_the_next_start(tmp_path, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run_evals", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "--config.steps=2", "--config.eval_every=0")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    goodput = tmp_path / "goodput.json"
    assert not goodput.exists()
    calls = []
    monkeypatch.setattr(loop, "run_evals", lambda *_: calls.append(1) or {"eval/x": 0.5})
    for _ in range(2):  # made up for once
        train(tmp_path, "--config.steps=2", "--config.eval_every=0")
    assert [line.get("eval/x") for line in lines(tmp_path)] == [None, None, 0.5]
    assert calls == [1]
    assert not goodput.exists(), "a session without a step does not stand for the run"


def test_a_signal_in_the_middle_of_an_evaluation_is_answered_before_the_next_evaluator(tmp_path, monkeypatch):
    started, build = [], loop.build

    def evaluator(name):
        def evaluate(state):
            started.append(name)
            if len(started) == 1:
                signal.raise_signal(signal.SIGTERM)
            yield "x", 0.5

        return evaluate

    def with_two(config, workdir):
        return build(config, workdir)._replace(evals={name: evaluator(name) for name in ("first", "second")})

    monkeypatch.setattr(loop, "build", with_two)
    overrides = ("--config.steps=4", "--config.eval_every=2", "--config.checkpoint.every=4")
    train(tmp_path, *overrides)
    assert started == ["first"]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2], "stopped at the step of the evaluation, nothing logged"
    train(tmp_path, *overrides)
    assert started == ["first", *["first", "second"] * 2], "the evaluation of step 2 is made up for"
    assert [line["step"] for line in lines(tmp_path) if "eval/second/x" in line] == [2, 4]


def test_the_loop_is_no_experiment(tmp_path):
    with pytest.raises(InputError, match="is the loop, not an experiment"):
        train(tmp_path, "--config.experiment=mixcon.train.loop")


def loop_state(run):
    """Parameters of a run's newest checkpoint, on the host."""
    import orbax.checkpoint as ocp

    step = max(Checkpoints(run, read_only=True).steps())
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(run / "checkpoints" / str(step) / "state")["params"]


def test_a_loss_that_is_not_finite_stops_with_the_state_from_before_it(tmp_path):
    with pytest.raises(InputError, match=r"not finite at step \d+ .*checkpoint \d+"):
        train(tmp_path, *EXPLODING)
    params = loop_state(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_bad_steps_can_be_skipped_and_counted(tmp_path):
    state = train(tmp_path, *EXPLODING, "--config.nonfinite=skip")
    assert int(state.step) == 6
    assert int(state.health.skipped) > 0
    assert lines(tmp_path)[-1]["train/skipped_steps"] == int(state.health.skipped)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_two_runs_may_not_share_a_workdir(tmp_path):
    with loop.workdir_lock(tmp_path), pytest.raises(InputError, match="another run is using workdir"):
        train(tmp_path)


def test_a_full_disk_stops_the_run_and_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    save = Checkpoints.save

    def full(self, state, *args):
        if int(state.step) == 3:
            raise OSError(28, "No space left on device")
        save(self, state, *args)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(InputError, match=r"is full; the run stops. Checkpoints intact: \[1, 2\]"):
        train(tmp_path)


def test_a_disk_that_is_really_full(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = run_command(tmp_path / "run", "--config.steps=50", "--config.checkpoint.keep=100")
        said = done.communicate(timeout=200)[1]
        kept = Checkpoints(tmp_path / "run", read_only=True).steps()
        assert done.returncode == 2, said
        assert f"is full; the run stops. Checkpoints intact: {kept}." in said
        assert "Traceback" not in said
        assert kept
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def run_command(workdir, *overrides):
    """The same as a user would: a process of its own, on one device."""
    command = [sys.executable, "-m", "mixcon", "train", "--config", "configs/clip.py:small", "--workdir", str(workdir)]
    command += ["--no-progress", *OVERRIDES, *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=child_environment())


def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = run_command(tmp_path, "--config.steps=100000", "--config.checkpoint.every=100000")
    while not (tmp_path / "metrics.jsonl").exists() or not lines_seen(tmp_path):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "start the same command to go on" in said
    (step,) = Checkpoints(tmp_path, read_only=True).steps()
    assert step == lines(tmp_path)[-1]["step"] > 0


def lines_seen(workdir: pathlib.Path) -> bool:
    return workdir.joinpath("metrics.jsonl").stat().st_size > 0
