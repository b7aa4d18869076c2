"""What belongs to every batch, and a run that ends when its loss no longer improves."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from run_files import assert_same_run, forget_steps_after, measured

from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train.assemble import assemble
from mixcon.train.state import Task

#         best at step 3; three steps without a lower one end the run after step 6
LOSSES = np.array([5.0, 4.0, 3.0, 3.0, 4.0, 3.5, 1.0, 0.5, 0.1], np.float32)


def build(config, workdir):
    """A weight that takes one step down at a time, and a loss that is read from a table."""

    def encode(params, extra, batch, *, key, train):
        return {"loss": batch["graph"]["table"] + 0 * params["w"]}, extra

    def objective(params, state, reps, batch, *, key, step):
        return reps["loss"][step] + params["w"] - jax.lax.stop_gradient(params["w"]), {}, {"seen": state["seen"] + 1}

    def evaluate(state):
        yield "w", float(state.params["w"])

    return assemble(
        config,
        init=lambda key: ({"w": jnp.zeros(())}, {}, {"seen": jnp.zeros((), jnp.int32)}),
        task=Task(lambda batch, *, key, step: batch, encode, objective),
        source=Arrays({"x": np.zeros(4, np.float32)}),
        evals={"toy": evaluate},
        fixed={"graph": {"table": LOSSES}},
    )


def toy_config(**changed):
    config = ml_collections.ConfigDict(
        dict(experiment="toy", seed=0, batch_size=4, steps=9, log_every=1, eval_every=0, ema=0.0, nonfinite="stop")
    )
    config.patience = 3
    config.checkpoint = dict(every=9, keep=10, keep_every=0)
    config.mesh, config.sharding = dict(data=1, model=1), dict(fsdp=False, rules=())
    config.gradient = dict(name="mixcon.train.gradients.standard")
    config.schedule = dict(peak=1.0, decay="constant")
    config.optimizer = dict(name="sgd")
    config.data = dict(max_bad_share=0.0, threads=1, prefetch=1)
    config.update(changed)
    return config


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr(loop, "build", build)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that ended by itself, with a checkpoint at every step."""
    workdir = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", build)
        loop.train(toy_config(checkpoint=dict(every=1, keep=10, keep_every=0)), workdir, progress=False)
    return workdir


@pytest.mark.parametrize("every", [4, 9])
def test_a_run_ends_after_its_patience_however_far_the_loop_has_run_ahead(tmp_path, ended, every):
    checkpoint = dict(every=every, keep=10, keep_every=0)
    state = loop.train(toy_config(checkpoint=checkpoint), tmp_path, progress=False)
    assert int(state.step) == 6
    assert float(state.params["w"]) == -6, "the steps dispatched after the end do nothing"
    losses = [line["train/loss"] for line in measured(tmp_path) if "train/loss" in line]
    np.testing.assert_allclose(losses, LOSSES[:6])
    assert measured(tmp_path)[-1] == {"step": 6, "eval/toy/w": -6.0}
    assert_same_run(tmp_path, ended, 6)


def test_a_run_that_was_cut_off_ends_where_the_other_did(tmp_path, ended):
    import shutil

    shutil.copytree(ended, tmp_path / "cut")
    forget_steps_after(tmp_path / "cut", 4)
    loop.train(toy_config(), tmp_path / "cut", progress=False)
    assert_same_run(tmp_path / "cut", ended, 6)


def test_an_ended_run_has_nothing_to_do(ended, capsys):
    before = (ended / "metrics.jsonl").read_text()
    state = loop.train(toy_config(), ended, progress=False)
    assert int(state.step) == 6
    assert "had stopped improving at step 6" in capsys.readouterr().err
    assert (ended / "metrics.jsonl").read_text() == before


def test_without_patience_the_last_step_is_reached(tmp_path):
    state = loop.train(toy_config(patience=0), tmp_path, progress=False)
    assert int(state.step) == 9
    assert state.patience == ()


def test_a_negative_patience_is_refused(tmp_path):
    with pytest.raises(InputError, match="patience=-1 must not be negative"):
        loop.train(toy_config(patience=-1), tmp_path, progress=False)


def test_fixed_arrays_are_arguments_of_the_program_and_not_constants_in_it(tmp_path):
    experiment = build(toy_config(), tmp_path)
    config, mesh = toy_config(), loop.meshes.make_mesh(data=1)
    shapes, _ = loop.state_layout(experiment, config, mesh)
    batch = {**loop.device_part(next(experiment.batches())), **experiment.fixed}
    jaxpr = jax.make_jaxpr(experiment.step)(shapes, batch)
    assert not any(np.shape(constant) == LOSSES.shape for constant in jaxpr.consts)
    assert json.loads(json.dumps(sorted(batch))) == ["graph", "index", "x"]
