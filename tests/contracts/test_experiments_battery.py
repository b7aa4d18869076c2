"""What every experiment keeps: it trains, evaluates, and resumes to the bit."""

import contextlib
import math
import shutil

import jax
import pytest
from experiment_cases import CASES, FURTHER
from run_files import assert_same_run, forget_steps_after, measured

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop

STEPS = 6
COMMON = (
    "mesh.data=1",
    f"steps={STEPS}",
    "log_every=1",
    "eval_every=3",
    "checkpoint.every=1",
    "checkpoint.keep=10",
)


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in FURTHER)) for c in CASES])
def test_a_run_that_was_cut_off_is_the_run_that_was_not(case, tmp_path):
    name, variant = case.split(":")
    overrides = [f"--config.{each}" for each in (*COMMON, *CASES[case])]
    config = configs.load(f"configs/{name}.py:{variant}", overrides)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    loop.train(config, whole, progress=False)
    lines = measured(whole)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert len(set(losses)) > 1
    shutil.copytree(whole, cut)
    forget_steps_after(cut, 2)
    loop.train(config, cut, progress=False)
    assert_same_run(cut, whole, STEPS)


def small_forms():
    """`{name of a config: the module that its small form is put together by}`, of every config that has one."""
    found = {}
    for path in sorted((configs.CODE / "configs").glob("*.py")):
        with contextlib.suppress(InputError):
            found[path.stem] = configs.read(f"{path}:small").experiment
    return found


def test_every_config_and_every_experiment_is_in_the_battery():
    """A new one joins by a line in `experiment_cases.py`."""
    cases = [case.split(":") for case in CASES]
    assert small_forms().keys() <= {name for name, _ in cases}
    used = {configs.read(str(configs.CODE / "configs" / f"{name}.py:{variant}")).experiment for name, variant in cases}
    folder = configs.CODE / "experiments"
    assert {f"experiments.{p.stem}" for p in folder.glob("*.py") if "\ndef build(" in p.read_text()} <= used
