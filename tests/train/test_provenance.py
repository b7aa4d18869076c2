"""A run that goes on elsewhere, or under another config, is told so."""

import json

import jax
import pytest
from tiny import tiny_config

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop, provenance
from mixcon.train import mesh as meshes


@pytest.fixture(scope="module")
def record():
    mesh = meshes.make_mesh(data=4, model=2)
    return json.loads(json.dumps(provenance.provenance(configs.to_json(tiny_config()), mesh)))


def compare(ours, theirs, allow=False):
    return provenance.compare(ours, theirs, step=7, allow_config_change=allow)


def test_what_bits_depend_on_is_recorded(record):
    assert record["config"]["batch_size"] == 16
    assert record["versions"]["jax"] == jax.__version__
    assert record["device"]["kind"] == jax.devices()[0].device_kind
    assert record["device"]["count"] == 8
    assert record["device"]["processor"]
    assert record["mesh"] == {"data": 4, "model": 2}
    assert "--xla_force_host_platform_device_count=8" in record["flags"]["XLA_FLAGS"]
    assert record["flags"]["jax_threefry_partitionable"] is True
    assert record["processes"] == 1


def test_the_same_ground_is_silent(record):
    assert compare(record, record) == []


@pytest.mark.parametrize(
    ("part", "key", "then", "said"),
    [
        ("versions", "jax", "0.0.1", f"versions.jax: now '{jax.__version__}', checkpoint '0.0.1'"),
        ("device", "kind", "TPU v5e", "device.kind: now 'cpu', checkpoint 'TPU v5e'"),
        ("mesh", "data", 8, "mesh.data: now 4, checkpoint 8"),
        ("flags", "XLA_FLAGS", "", "flags.XLA_FLAGS: now"),
        ("flags", "jax_default_matmul_precision", "float32", "flags.jax_default_matmul_precision: now None"),
    ],
)
def test_each_difference_that_may_change_bits_is_named(record, part, key, then, said):
    (sentence,) = compare(record, record | {part: record[part] | {key: then}})
    assert sentence.startswith("the checkpoint of step 7 stands on other ground, so bits may differ (")
    assert said in sentence


def test_other_code_is_named(record):
    (sentence,) = compare(record | {"git": "abc1234"}, record | {"git": "def5678+"})
    assert "git: now 'abc1234', checkpoint 'def5678+'" in sentence


def test_what_an_older_checkpoint_did_not_record_is_not_held_against_it(record):
    assert compare(record, {"config": record["config"]}) == []


def test_another_config_is_refused_or_named(record):
    other = record | {"config": record["config"] | {"seed": 3, "log_every": 99}}
    with pytest.raises(InputError, match=r"checkpoint of step 7 .* another config \(seed: now 0, checkpoint 3\)"):
        compare(record, other)
    assert compare(record, other, allow=True) == ["going on with a changed config (seed: now 0, checkpoint 3)"]
    assert compare(record, record | {"config": record["config"] | {"log_every": 99}}) == []


def test_a_run_says_on_what_other_ground_it_goes_on(tmp_path, monkeypatch, capsys):
    config = configs.load("configs/cmixup.py:small", ["--config.steps=2", "--config.mesh.data=1"])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loop.train(config, tmp_path, progress=False)
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        loop.train(config, tmp_path, progress=False)
    said = capsys.readouterr().err
    assert "warning: the checkpoint of step 2 stands on other ground, so bits may differ (flags.XLA_FLAGS:" in said
