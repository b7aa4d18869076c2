"""Training that starts from pretrained weights."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from experiments import clip
from mixcon import config as configs
from mixcon import models
from mixcon.data import tokenizer as tokenizers
from mixcon.errors import InputError
from mixcon.models import build, functional
from mixcon.train import loop

WORDS = ["red heart", "blue heart"] * 3
CLIP = {
    "name": "dual_encoder",
    "embed_dim": 12,
    "image": {
        "name": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 16, "image_size": 64, "pool": "cls",
        "pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_eps": 1e-5,
    },
    "text": {
        "name": "text_transformer", "width": 24, "depth": 1, "heads": 3, "context_length": 12, "eos_id": 2,
        "activation": "gelu", "norm_eps": 1e-5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tokenizer, and a CLIP of its vocabulary in a folder, that needs no torch."""
    tokenizer, folder = tokenizers.train(WORDS, vocab_size=262), tmp_path_factory.mktemp("clip")
    spec = CLIP | {"text": CLIP["text"] | {"vocab_size": tokenizer.vocab_size}}
    params, _ = jax.jit(functional(build(spec)).init)(jax.random.key(0))
    models.export_clip(spec, jax.device_get(params), folder)
    tokenizer.save(folder / "words.json")
    moved = models.export.with_end_token(tokenizer.core.to_str(), tokenizer.vocab_size)
    (folder / "tokenizer.json").write_text(moved)
    return folder


def described(path, folder, *overrides):
    config = configs.load(path, [f"--config.init_from={folder}", *(f"--config.{each}" for each in overrides)])
    spec, pretrained = clip.describe_model(config, tokenizers.load(folder / "tokenizer.json"))
    return config, spec, pretrained[0]


def test_a_locked_tower_is_loaded_and_all_else_is_what_the_config_says(weights):
    config, spec, params = described("configs/cwcl.py:image_text", weights, "model.text.depth=1", "model.embed_dim=16")
    found = models.load_clip(weights, scan_layers=True)
    for key in ("locked", "image_projection", "embed_dim", "logit_scale"):
        assert spec[key] == config.model[key], key
    assert spec["image"] == found.spec["image"]
    assert spec["text"]["width"] == config.model.text.width
    assert spec["text"]["vocab_size"] == found.spec["text"]["vocab_size"]
    assert params.keys() == {"image", "text", "text_projection", "logit_scale"}
    jax.tree.map(np.testing.assert_array_equal, params["image"], found.params["image"])
    assert float(np.exp(params["logit_scale"]["log"])) == pytest.approx(1 / 0.07)


def test_a_locked_tower_without_weights_is_refused_unless_asked_for(weights):
    tokenizer = tokenizers.load(weights / "tokenizer.json")
    for said, message in (("", "would stay random: set init_from"), ("nowhere", "No safetensors at nowhere")):
        config = configs.load("configs/cwcl.py:image_text", [f"--config.init_from={said}"])
        with pytest.raises(InputError, match=message):
            clip.describe_model(config, tokenizer)
    config = configs.load("configs/cwcl.py:image_text", ["--config.init_from=random"])
    spec, pretrained = clip.describe_model(config, tokenizer)
    assert pretrained is None
    assert spec["locked"] == ("image",)
    config = configs.load(
        "configs/cwcl.py:image_text", [f"--config.init_from={weights}", "--config.init_parts=('text',)"]
    )
    with pytest.raises(InputError, match="names image, which would stay random"):
        clip.describe_model(config, tokenizer)


@pytest.mark.parametrize("form", ["geodesic_mixup.py:m3mix_flickr", "m3col.py:finetune_flickr"])
def test_a_fixed_temperature_is_the_configs_not_the_weights_own(weights, form):
    for scale in (100.0, 20.0):
        config, spec, params = described(f"configs/{form}", weights, f"model.logit_scale={scale}")
        assert float(np.exp(params["logit_scale"]["log"])) == pytest.approx(scale)
        assert spec["embed_dim"] == 12
        found = models.load_clip(weights, scan_layers=True).params
        for part in ("image", "text", "image_projection", "text_projection"):
            jax.tree.map(np.testing.assert_array_equal, params[part], found[part])
        assert config.optimizer.overrides[0] == ("logit_scale", {"freeze": True})


def test_new_projections_have_the_configs_width(weights):
    _, spec, params = described("configs/contrastive_gap.py:coco32", weights)
    assert spec["embed_dim"] == 32
    assert params["image_projection"]["kernel"].shape == (16, 32)
    assert params["text_projection"]["kernel"].shape == (24, 32)
    assert float(np.exp(params["logit_scale"]["log"])) == pytest.approx(100)


def test_what_a_state_dict_does_not_say_is_said_in_the_config(weights):
    _, spec, _ = described("configs/clip.py:b32", weights, "init_options={'activation': 'gelu_tanh', 'image_heads': 4}")
    assert spec["image"]["activation"] == spec["text"]["activation"] == "gelu_tanh"
    assert spec["image"]["heads"] == 4
    with pytest.raises(InputError, match="head_count"):
        described("configs/clip.py:b32", weights, "init_options={'head_count': 4}")


def test_training_leaves_a_locked_tower_as_it_was_loaded(weights, tmp_path):
    run = tiny_config(
        f"--config.init_from={weights}", "--config.init_parts=('image',)", "--config.steps=2",
        "--config.data.evals={}", "--config.zero_shot=()", "--config.probes=()",
    )  # fmt: skip
    with run.unlocked():
        run.model.locked, run.model.image_projection = ("image",), "none"
        run.optimizer.overrides = ((r"^image/", {"freeze": True}),)
    state = jax.device_get(loop.train(run, tmp_path, progress=False))
    found = models.load_clip(weights)
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], found.params["image"])
    first = clip.describe_model(run, tokenizers.load(tmp_path / "tokenizer.json"))[1][0]
    for part in ("text", "text_projection", "logit_scale"):
        for before, after in zip(jax.tree.leaves(first[part]), jax.tree.leaves(state.params[part]), strict=True):
            assert not np.array_equal(before, after), part


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
