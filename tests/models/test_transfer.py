"""SigLIP and BERT weights against `transformers`; trained encoders written as folders that it loads."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mixcon.data import tokenizer as tokenizers
from mixcon.errors import InputError
from mixcon.models import (
    build,
    export_clip,
    flatten,
    functional,
    load_bert,
    load_clip,
    load_towers,
    load_vit,
    stack_blocks,
)
from mixcon.models.export import with_end_token

IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
CLIP = {
    "name": "dual_encoder",
    "embed_dim": 12,
    "image": {
        "name": "vit",
        "width": 16,
        "depth": 2,
        "heads": 2,
        "patch": 8,
        "image_size": 16,
        "pool": "cls",
        "pre_norm": True,
        "patch_bias": False,
        "activation": "quick_gelu",
        "norm_eps": 1e-5,
    },
    "text": {
        "name": "text_transformer",
        "vocab_size": 20,
        "width": 24,
        "depth": 1,
        "heads": 3,
        "context_length": 7,
        "eos_id": 5,
        "activation": "gelu",
        "norm_eps": 1e-5,
    },
}
SIGLIP = CLIP | {
    "embed_dim": 16,
    "image_projection": "none",
    "text_projection": "linear_bias",
    "logit_scale": 10.0,
    "logit_bias": -10.0,
    "image": CLIP["image"] | {"pool": "map", "pre_norm": False, "patch_bias": True, "activation": "gelu_tanh"},
    "text": CLIP["text"] | {"causal": False, "pool": "last", "eos_id": None, "activation": "gelu_tanh"},
}


def peers():
    torch = pytest.importorskip("torch", reason="compared with transformers, which needs torch")
    return torch, pytest.importorskip("transformers")


def outputs(spec, params, ids, images=IMAGES):
    return jax.jit(functional(build(spec)).apply)(params, {}, images, ids)[0]


def agree(ours, theirs):
    np.testing.assert_allclose(ours["image"], theirs.image_embeds.detach().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["text"], theirs.text_embeds.detach().numpy(), rtol=0, atol=1e-5)
    bias = 0.0 if ours["logit_bias"] is None else ours["logit_bias"]
    logits = ours["logit_scale"] * ours["image"] @ ours["text"].T + bias
    np.testing.assert_allclose(logits, theirs.logits_per_image.detach().numpy(), rtol=1e-4, atol=1e-4)


def texts(eos_id):
    ids = np.random.default_rng(1).integers(6, 19, size=(3, 7)).astype(np.int32)
    ids[np.arange(3), [2, 6, 4]] = eos_id
    return ids


@pytest.mark.parametrize(("form", "spec"), [("clip", CLIP), ("siglip", SIGLIP)])
def test_what_is_exported_is_loaded_by_transformers_and_by_us(drawn, tmp_path, form, spec):
    _, params, _ = drawn(build(spec))
    config = export_clip(spec, params, tmp_path)
    assert config["model_type"] == form
    again = load_clip(tmp_path)
    assert flatten(again.params).keys() == flatten(params).keys()
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(flatten(again.params)[path], array, err_msg=path)
    ids = texts(5)
    ours = outputs(spec, params, ids)
    for key in ("image", "text"):
        np.testing.assert_array_equal(outputs(again.spec, again.params, ids)[key], ours[key])
    torch, transformers = peers()
    model = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[form]
    theirs, report = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    agree(ours, theirs.eval()(input_ids=torch.tensor(ids, dtype=torch.long), pixel_values=pixels))


def test_stacked_parameters_are_written_as_the_same_file(drawn, tmp_path):
    _, params, _ = drawn(build(CLIP))
    export_clip(CLIP, params, tmp_path / "a")
    stacked = jax.tree.map(jnp.asarray, stack_blocks(params))
    export_clip(CLIP | {"scan_layers": True}, stacked, tmp_path / "b")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert (tmp_path / "a/config.json").read_text() == (tmp_path / "b/config.json").read_text()


def test_an_end_token_of_id_two_becomes_the_last_one(drawn, tmp_path):
    """The ids of a tokenizer that was trained here, and its file after the move, give one and the same embedding."""
    tokenizer = tokenizers.train(["red heart", "blue heart"] * 3, vocab_size=262)
    assert tokenizer.eos_id == 2
    text = CLIP["text"] | {"vocab_size": tokenizer.vocab_size, "eos_id": 2, "pad_id": 0}
    spec = CLIP | {"text": text}
    _, params, _ = drawn(build(spec))
    config = export_clip(spec, params, tmp_path)
    eos_id = config["text_config"]["eos_token_id"]
    assert eos_id == tokenizer.vocab_size == config["text_config"]["vocab_size"] - 1
    (tmp_path / "tokenizer.json").write_text(with_end_token(tokenizer.core.to_str(), eos_id))
    moved = tokenizers.load(tmp_path / "tokenizer.json")
    assert (moved.eos_id, moved.pad_id, moved.vocab_size) == (eos_id, 0, eos_id + 1)
    sentences = ["red", "heart", "blue"]
    ids, moved_ids = tokenizer.encode(sentences, 7), moved.encode(sentences, 7)
    np.testing.assert_array_equal(np.where(ids == 2, eos_id, ids), moved_ids)
    ours = outputs(spec, params, ids)
    torch, transformers = peers()
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    agree(ours, theirs(input_ids=torch.tensor(moved_ids, dtype=torch.long), pixel_values=pixels))
    with pytest.raises(InputError, match="next free id"):
        with_end_token(tokenizer.core.to_str(), 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": {"pool": "mean"}, "text": {"causal": False, "pool": "mean"}}, "image/pool is 'mean', not 'cls'; "),
        ({"parametrization": "temperature"}, "parametrization"),
        ({"logit_bias": -10.0}, "SiglipModel"),
        ({"image": {"positions": "sincos2d"}}, "image/positions"),
        ({"text_projection": "mlp"}, "text_projection is 'mlp'"),
        ({"text": {"qkv_bias": False}}, "text/qkv_bias"),
    ],
)
def test_other_models_are_refused_and_told_why(changes, words):
    spec = dict(CLIP)
    for key, value in changes.items():
        spec[key] = spec[key] | value if isinstance(value, dict) else value
    with pytest.raises(InputError, match=re.escape(words)):
        export_clip(spec, {}, "nowhere")


def test_siglip_of_transformers(tmp_path):
    torch, transformers = peers()
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    theirs = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config=sizes
            | {"vocab_size": 20, "hidden_size": 24, "max_position_embeddings": 7, "projection_size": 32},
            vision_config=sizes | {"hidden_size": 32, "image_size": 16, "patch_size": 8},
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    spec, params, extra = load_clip(tmp_path)
    assert not extra
    ids = texts(5)
    pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    agree(outputs(spec, params, ids), theirs(input_ids=torch.tensor(ids, dtype=torch.long), pixel_values=pixels))


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_bert_of_transformers(tmp_path, kind):
    torch, transformers = peers()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=9, pad_token_id=0,
    )  # fmt: skip
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    spec, params, _ = load_bert(tmp_path)
    ids = np.array([[2, 7, 8, 9, 3, 0, 0], [2, 4, 5, 6, 7, 8, 3]], np.int32)
    states, _ = functional(build(spec)).apply(params, {}, ids, method="tokens")
    encoder = theirs if kind == "BertModel" else theirs.bert
    given = torch.tensor(ids, dtype=torch.long)
    expected = encoder(input_ids=given, attention_mask=(given != 0).long()).last_hidden_state.detach().numpy()
    real = ids != 0
    np.testing.assert_allclose(np.asarray(states)[real], expected[real], rtol=0, atol=2e-5)
    pooled, _ = functional(build(spec)).apply(params, {}, ids)
    np.testing.assert_array_equal(pooled, states[:, 0])


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "timm"])
def test_plain_vit_of_transformers_and_of_timm(tmp_path, kind):
    """timm's names are given to the same arrays, with q, k, v stacked as there."""
    torch, transformers = peers()
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = getattr(transformers, "ViTModel" if kind == "timm" else kind)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    path = tmp_path
    if kind == "timm":
        path, state = tmp_path / "timm.safetensors", load_file(tmp_path / "model.safetensors")
        changes = {
            "patch_embeddings.projection": "patch_embed.proj", "position_embeddings": "pos_embed", "embeddings.": "",
            "encoder.layer": "blocks", "layernorm_before": "norm1", "layernorm_after": "norm2",
            "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
            "attention.attention.": "attn.", "layernorm": "norm",
        }  # fmt: skip
        renamed = {name: array for name, array in state.items() if not name.startswith("pooler")}
        for old, new in changes.items():
            renamed = {name.replace(old, new): array for name, array in renamed.items()}
        for name in [name for name in renamed if ".query." in name]:
            parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            renamed[name.replace("query", "qkv")] = np.concatenate(parts)
        save_file(renamed | {"head.weight": np.zeros((5, 24), np.float32)}, path)
    spec, params, extra = load_vit(path, **({"heads": 3} if kind == "timm" else {}))
    assert not extra
    encoder = theirs.vit if kind == "ViTForImageClassification" else theirs
    expected = encoder(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).last_hidden_state[:, 0].detach().numpy()
    features, _ = functional(build(spec)).apply(params, {}, IMAGES)
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)
    whole = load_towers(path, **({"image_heads": 3} if kind == "timm" else {}))
    assert whole.spec == {"image": spec}
    jax.tree.map(np.testing.assert_array_equal, whole.params, {"image": params})


def test_what_is_no_plain_vit_is_refused(tmp_path):
    save_file({"cls_token": np.zeros((1, 1, 8), np.float32), "reg_token": np.zeros(3, np.float32)}, tmp_path / "a")
    with pytest.raises(InputError, match="Unexpected: reg_token"):
        load_vit(tmp_path / "a")
    save_file({"embeddings.cls_token": np.zeros((1, 1, 8), np.float32)}, tmp_path / "a")
    with pytest.raises(InputError, match=r"needs its config\.json"):
        load_towers(tmp_path / "a")
    save_file({"visual.proj": np.zeros((1, 8), np.float32)}, tmp_path / "a")
    with pytest.raises(InputError, match="not a plain ViT"):
        load_vit(tmp_path / "a")


def test_a_file_in_openais_layout_follows_the_config_beside_it(drawn, tmp_path):
    """Without one it pools at the largest id; with one, at the end token it names."""
    _, params, _ = drawn(build(CLIP))
    export_clip(CLIP, params, tmp_path / "hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    names = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    parts = (
        ("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"), ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers", "transformer.resblocks"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
    )  # fmt: skip
    state = {"visual.proj": theirs["visual_projection.weight"].T, "text_projection": theirs["text_projection.weight"].T}
    for name, array in theirs.items():
        new = names.get(name, name)
        for old, replacement in parts:
            new = new.replace(old, replacement)
        if new.endswith(("q_proj.weight", "q_proj.bias")):
            stacked = np.concatenate([theirs[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            state[new.replace("self_attn.q_proj.", "attn.in_proj_")] = stacked
        elif "_proj." not in new.replace("out_proj", "").replace("c_proj", "") and "projection" not in new:
            state[new] = array
    save_file({name: np.array(x, order="C") for name, x in state.items()}, tmp_path / "openai.safetensors")
    options = {"image_heads": 2, "text_heads": 3}
    assert load_clip(tmp_path / "openai.safetensors", **options).spec["text"]["pool"] == "argmax"
    (tmp_path / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    found = load_clip(tmp_path / "openai.safetensors")
    assert (found.spec["text"]["pool"], found.spec["text"]["eos_id"]) == ("eos", 5)
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(flatten(found.params)[path], array, err_msg=path)


def test_bert_folders_that_are_none_are_refused(drawn, tmp_path):
    _, params, _ = drawn(build(CLIP))
    export_clip(CLIP, params, tmp_path)
    with pytest.raises(InputError, match="model_type 'bert', not 'clip'"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=r"Missing: embeddings\.LayerNorm\.bias"):
        load_bert(tmp_path)
