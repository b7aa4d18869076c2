"""Full-size forms of the vision-language papers trace on eight devices, data, tokenizers and weights not being here."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
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
