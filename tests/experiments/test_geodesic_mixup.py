"""Fine-tuning goes on from a run: one that is trained first, or a saved one; the mixtures fade by the epoch."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop

TINY = ("batch_size=16", "steps=2", "log_every=1", "checkpoint.every=2", "data.evals={}")
FIRST = ("batch_size=16", "steps=3", "checkpoint.every=3", "data.evals={}")


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config(variant, *overrides):
    return configs.load(f"configs/geodesic_mixup.py:{variant}", [f"--config.{each}" for each in overrides])


def test_it_begins_where_the_other_run_ended(tmp_path):
    first = loop.train(config("start", *FIRST), tmp_path / "first", progress=False)
    still = ("schedule.peak=0.0", "seed=1")  # the rate is zero: what it began with is what it ends with
    saved = config("small", *TINY, *still, f"start.run={tmp_path / 'first'}", "start.training={}")
    trained = config("small", *TINY, *still, *(f"start.training.{each}" for each in FIRST))
    begun, _ = loop.build(trained, tmp_path / "trained").pretrained
    went_on = loop.train(saved, tmp_path / "saved", progress=False).params
    for params, same in ((went_on, True), (begun, False)):  # the other one was trained here, with seed 1
        equal = jax.tree.map(np.array_equal, *jax.device_get((params, first.params)))
        assert all(jax.tree.leaves(equal)) == same
    assert (tmp_path / "trained" / "start" / "config.json").exists()
    lines = (tmp_path / "saved" / "metrics.jsonl").read_text()
    assert '"train/m2_loss"' in lines
    assert '"train/negative_cosine"' in lines


def test_bad_input_is_refused_in_words(tmp_path):
    for overrides, message in (
        (("start.training={}",), "want run="),
        (("encoders=experiments.geodesic_mixup",), "another experiment"),
        ((f"start.run={tmp_path}", "start.training={}"), "not the folder of a run"),
    ):
        with pytest.raises(InputError, match=message):
            loop.build(config("small", *TINY, *overrides), tmp_path)


def test_a_run_of_another_model_is_refused_with_the_first_difference(tmp_path):
    narrow = ("towers.first.embed_dim=32", "towers.second.embed_dim=32")
    for name, towers, message in (
        ("narrow", narrow, r"of shape \(32,\) there and of shape \(64,\) here"),
        ("deep", ("towers.second.backbone.widths=(76, 256, 256, 256)",), "there and absent here"),
    ):
        loop.train(config("start", *FIRST, *towers), tmp_path / name, progress=False)
        with pytest.raises(InputError, match=message) as refused:
            loop.build(config("small", *TINY, f"start.run={tmp_path / name}", "start.training={}"), tmp_path)
        assert str(tmp_path / name) in str(refused.value)
