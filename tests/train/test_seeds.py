"""Seeds side by side: each one's own run in one program; what cannot be shared is refused."""

import importlib.machinery
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from run_files import assert_same_run, forget_steps_after, measured

from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.ops import checks
from mixcon.train import loop
from mixcon.train.assemble import assemble
from mixcon.train.seeds import seed_and_metric, with_seeds
from mixcon.train.state import Task


def build(config, workdir):
    """A regression whose targets, order of examples, dropout and first weights are the seed's."""
    rng = np.random.default_rng(config.seed)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    y = (x @ rng.normal(size=3)).astype(np.float32)
    shift = np.float32(config.seed if config.leak else 1.0)

    def prepare(batch, *, key, step):
        return batch | {"x": batch["x"] * jax.random.bernoulli(key, 0.8, batch["x"].shape)}

    def encode(params, extra, batch, *, key, train):
        return batch["x"] @ params["w"] * shift, extra

    def objective(params, state, reps, batch, *, key, step):
        squares = (reps - batch["y"]) ** 2
        checks.nonnegative("squares", squares)  # checkify numbers it, with another number in every trace
        return jnp.mean(squares), {}, {"seen": state["seen"] + 1}

    def evaluate(state):
        yield "error", float(np.mean((x @ np.asarray(state.params["w"]) - y) ** 2))
        yield "noise", float(state.objective["seen"])

    return assemble(
        config,
        init=lambda key: ({"w": jax.random.normal(key, (3,))}, {}, {"seen": jnp.zeros((), jnp.int32)}),
        task=Task(prepare, encode, objective),
        source=Arrays({"x": x, "y": y}),
        evals={"toy": evaluate},
        fixed={"graph": np.ones(2, np.float32)} if config.fixed else None,
    )


def toy(**changed):
    config = ml_collections.ConfigDict(
        dict(experiment="toy_seeds", seed=0, batch_size=8, steps=9, log_every=1, eval_every=3, ema=0.9, patience=0)
    )
    config.leak = config.fixed = False
    config.nonfinite = "stop"
    config.checkpoint = dict(every=1, keep=10, keep_every=0)
    config.mesh, config.sharding = dict(data=1, model=1), dict(fsdp=False, rules=())
    config.gradient = dict(name="mixcon.train.gradients.standard")
    config.schedule = dict(peak=0.1, decay="constant")
    config.optimizer = dict(name="adam")
    config.data = dict(max_bad_share=0.0, threads=1, prefetch=1)
    config.update(changed)
    return config


def toy_module():
    """What a config can name: a module of one's own."""
    module = types.ModuleType("toy_seeds")
    module.__spec__ = importlib.machinery.ModuleSpec("toy_seeds", None)
    module.build = build
    return module


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(sys.modules, "toy_seeds", toy_module())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy_seeds", toy_module())
        loop.train(with_seeds(toy(), (0, 3)), workdir, progress=False)
    return workdir


@pytest.mark.parametrize("seed", [0, 3])
def test_each_seed_has_its_own_run(tmp_path, together, seed):
    loop.train(toy(seed=seed), tmp_path, progress=False)
    alone = {(line["step"], k): v for line in measured(tmp_path) for k, v in line.items() if k.startswith("eval/")}
    beside = {
        (line["step"], seed_and_metric(k)[1]): v
        for line in measured(together)
        for k, v in line.items()
        if k.startswith("eval/") and seed_and_metric(k)[0] == seed
    }
    assert alone.keys() == beside.keys()
    assert len(alone) == 6
    for key, value in alone.items():
        assert beside[key] == pytest.approx(value, rel=1e-5), key


def test_seeds_resume_together_bit_for_bit(tmp_path, together):
    config = with_seeds(toy(), (0, 3))
    loop.train(config, tmp_path, progress=False)
    forget_steps_after(tmp_path, 4)
    loop.train(config, tmp_path, progress=False)
    assert_same_run(tmp_path, together, 9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(leak=True), "seed 3 does not compute what seed 0 does"),
        (dict(fixed=True), "one seed's own"),
        (dict(patience=2), "one seed's own"),
        (dict(mesh=dict(data=2, model=1)), "one device"),
    ],
)
def test_what_seeds_cannot_share_is_refused(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        loop.train(with_seeds(toy(**changed), (0, 3)), tmp_path, progress=False)
