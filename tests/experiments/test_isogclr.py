"""iSogCLR as an experiment: temperatures by class, the memory on a mesh, a training set of another size."""

import json

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon import data
from mixcon.errors import InputError
from mixcon.train import loop, optim


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def small(*overrides):
    short = ("steps=4", "log_every=1", "checkpoint.every=2", "eval_every=-1")
    return configs.load("configs/isogclr.py:small", [f"--config.{each}" for each in (*short, *overrides)])


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_a_memory_split_over_the_mesh_trains_as_a_whole_one(tmp_path):
    """1,500 examples on four devices: 375 each."""
    whole, split = (
        loop.train(small("data.train.factor=1.0", *more), tmp_path / name, progress=False)
        for name, more in (
            ("whole", ()),
            ("split", ("mesh.data=4", """sharding.rules=((r'^objective/', ('data',)),)""")),
        )
    )
    memory = split.objective["image"].temperature
    assert memory.shape == (1500,)
    assert {shard.data.shape for shard in memory.addressable_shards} == {(375,)}
    np.testing.assert_allclose(losses(tmp_path / "split"), losses(tmp_path / "whole"), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(split.objective), jax.tree.leaves(whole.objective), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)


def test_one_temperature_for_all_is_learned_by_objectives_that_take_it(tmp_path):
    learned = ("logit_scale=5.0", "objective={'name': 'mixcon.objectives.clip'}", "steps=2", "checkpoint.every=2")
    state = loop.train(small(*learned), tmp_path, progress=False)
    assert 0 < abs(np.exp(state.params["logit_scale"]["log"]) - 5.0) < 0.05  # two steps of Adam


def test_another_number_of_examples_is_refused_at_the_restart(tmp_path):
    loop.train(small("steps=2"), tmp_path, progress=False)
    for allowed in (False, True):
        with pytest.raises(InputError, match=r"temperature: checkpoint \(417,\), model \(507,\)"):
            loop.train(small("data.train.factor=0.05"), tmp_path, progress=False, allow_config_change=allowed)


def test_the_temperatures_of_classes():
    from experiments.isogclr import temperature_report

    sizes = [8, 4, 2, 1]
    labels = np.repeat(np.arange(4), sizes)
    found = dict(temperature_report(0.1 + 0.05 * np.log(sizes)[labels], labels))
    assert found["correlation"] == pytest.approx(1)
    assert found["class_3"] == pytest.approx(0.1)
    assert found["head"] == pytest.approx(0.1 + 0.05 * np.log([8, 4, 2]).mean())
    assert found["tail"] == pytest.approx(0.1 + 0.05 * np.log([4, 2, 1]).mean())
    assert "correlation" not in dict(temperature_report(np.full(15, 0.2), labels))


def test_a_view_that_records_lack_is_said(tmp_path):
    with pytest.raises(InputError, match="no field 'zer'"):
        loop.build(small("views=('pix', 'zer')"), tmp_path)


def test_a_class_counts_alike_in_the_balanced_probe():
    """Two overlapping classes, one 19 times as large: without balance the small one is given up."""
    from mixcon.evals import linear_probe

    rng = np.random.default_rng(0)
    known = rng.normal(size=(400, 2)) + np.repeat([[0.0, 0.0], [1.5, 0.0]], [380, 20], axis=0)
    labels = np.repeat([0, 1], [380, 20])
    shown = rng.normal(size=(400, 2)) + np.repeat([[0.0, 0.0], [1.5, 0.0]], 200, axis=0)
    truth = np.repeat([0, 1], 200)
    plain = linear_probe(known, labels, shown, truth)["top1"]
    balanced = linear_probe(known, labels, shown, truth, balanced=True)["top1"]
    assert balanced > plain + 0.1
    with pytest.raises(InputError, match="balanced"):
        linear_probe(known, labels, shown, truth, method="ridge", balanced=True)


def test_every_arm_of_the_study_is_a_config_that_builds(tmp_path):
    from configs.isogclr import get_study

    arms = {arm for table in get_study().tables.values() for arm in table.arms.values()}
    for arm in arms:
        config = configs.load(f"configs/isogclr.py:{arm.config}", [f"--config.{each}" for each in arm.overrides])
        experiment = loop.build(config, tmp_path)
        assert isinstance(experiment.steps_per_epoch, float)
    assert len(data.digit_views("train", factor=0.02)) == 417


@pytest.mark.parametrize(("variant", "first"), [("cifar10", 0.01), ("cc3m", 1e-5)])
def test_the_rate_begins_where_the_paper_s_does(variant, first):
    config = configs.load(f"configs/isogclr.py:{variant}")
    rate = optim.schedule(steps=config.steps, **config.schedule)
    assert float(rate(0)) == pytest.approx(first, rel=1e-4)
    assert float(rate(config.schedule.warmup_steps)) == pytest.approx(config.schedule.peak)
