"""What every experiment keeps: it trains, evaluates, and resumes to the bit."""

import math
import shutil

import jax
import pytest
from experiment_cases import CASES, FURTHER
from run_files import assert_same_run, forget_steps_after, measured

from mixcon import config as configs
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
