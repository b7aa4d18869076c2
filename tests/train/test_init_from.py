"""Training that starts from pretrained weights."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from experiments import clip
from mixcon import config as configs
from mixcon import models
from mixcon.errors import InputError
from mixcon.train import loop


def test_a_run_starts_from_the_weights_that_the_config_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 300, "max_position_embeddings": 12, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "pretrained")
    found = models.load_clip(tmp_path / "pretrained")
    run = tiny_config(
        f"--config.init_from={tmp_path / 'pretrained'}", "--config.steps=1", "--config.schedule.peak=0.0",
        "--config.schedule.warmup_steps=0", "--config.ema=0.5",
    )  # fmt: skip
    other = tiny_config(f"--config.init_from={tmp_path / 'pretrained'}", "--config.tokenizer.vocab_size=310")
    with pytest.raises(InputError, match="is not that of the weights"):
        loop.train(other, tmp_path / "other", progress=False)
    state = loop.train(run, tmp_path / "run", progress=False)
    assert jax.tree.structure(state.params) == jax.tree.structure(found.params)
    for trained in (state.params, state.ema):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.device_get(trained), found.params)
    with run.unlocked():
        run.new_projections, run.model.embed_dim, run.model.logit_scale = True, 8, 100.0
    tokenizer = clip.prepare_tokenizer(run, tmp_path / "run", configs.call(run.data.train))
    spec, pretrained = clip.describe_model(run, tokenizer)
    assert spec["embed_dim"] == 8
    assert pretrained[0]["image_projection"]["kernel"].shape == pretrained[0]["text_projection"]["kernel"].shape
    for tower in ("image", "text"):
        jax.tree.map(np.testing.assert_array_equal, pretrained[0][tower], found.params[tower])
