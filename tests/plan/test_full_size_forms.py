"""Full-size forms of the vision-language papers trace on eight devices, data, tokenizers and weights not being here."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.plan import chips, compile

FORMS = {  # millions of parameters, about
    "contrastive_gap:coco128": 151,
    "cwcl:image_text": 657,
    "cwcl:speech_text": 20.4,
    "geodesic_mixup:m3mix_flickr": 151,
}
SLOW = {
    "align:b3_medium": 87,
    "contrastive_behaviour:imagenet100": 23.8,
    "isogclr:cc3m": 105,
    "m3col:finetune_flickr": 151,
    "one_to_k:ccrk6": 519,
    "vlp_baselines:cc3m_swalip": 115,
}


@pytest.mark.parametrize(
    ("name", "millions"), [*FORMS.items(), *(pytest.param(*form, marks=pytest.mark.slow) for form in SLOW.items())]
)
def test_a_full_size_form_traces(name, millions, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    file, variant = name.split(":")
    config = configs.load(f"configs/{file}.py:{variant}", ["--config.batch_size=16"])
    step = compile.trace(config, chips.topology("cpu:8"), tmp_path)
    after, metrics = step.lowered.out_info
    assert jax.tree.structure(after) == jax.tree.structure(step.state)
    assert metrics["loss"].shape == ()
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(step.state.params))
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", ["cwcl:small", "cwcl:small_speakers", "geodesic_mixup:small", "m3col:finetune_small"])
def test_nothing_is_trained_or_embedded_for_a_plan(name, tmp_path, monkeypatch):
    """What comes first, another run or the features of a frozen tower, is stood in for by its shapes."""

    def never(*_, **__):
        raise AssertionError("a plan runs nothing")

    monkeypatch.setattr("mixcon.train.loop.train", never)
    monkeypatch.setattr("mixcon.train.evaluate.restore", never)
    monkeypatch.setattr("experiments.cwcl.cached_features", never)
    file, variant = name.split(":")
    step = compile.trace(configs.load(f"configs/{file}.py:{variant}"), chips.topology("cpu:8"), tmp_path)
    assert step.lowered.out_info[1]["loss"].shape == ()
    assert step.stand_ins


def test_a_frozen_tower_without_a_stand_in_is_refused(tmp_path):
    config = configs.load("configs/cwcl.py:small", ["--config.stand_in=()"])
    with pytest.raises(InputError, match="stand_in"):
        compile.trace(config, chips.topology("cpu:1"), tmp_path)
