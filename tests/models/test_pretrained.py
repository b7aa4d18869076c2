"""CLIP checkpoints: against `transformers` itself, against the original code's golden vectors, and when damaged."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mixcon.errors import InputError
from mixcon.models import build, complete, flatten, functional, load_clip, select

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_towers.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def unpack(golden, tower):
    """The tower's state dict, from its flat packing."""
    arrays, start = {}, 0
    for name, shape, ndim in zip(
        golden[f"in/{tower}_names"], golden[f"in/{tower}_shapes"], golden[f"in/{tower}_ndims"], strict=True
    ):
        shape = tuple(shape[:ndim])
        size = int(np.prod(shape))
        arrays[str(name)] = golden[f"in/{tower}_flat"][start : start + size].reshape(shape)
        start += size
    assert start == golden[f"in/{tower}_flat"].size
    return arrays


@pytest.fixture(scope="module")
def openai_vit_file(golden, tmp_path_factory):
    state = {f"visual.{name}": array for name, array in unpack(golden, "vit").items()}
    state |= unpack(golden, "text") | {"logit_scale": np.asarray(np.log(20.0), np.float32)}
    file = tmp_path_factory.mktemp("openai") / "vit.safetensors"
    save_file({name: np.array(array, order="C") for name, array in state.items()}, file)
    return file


def apply(loaded, *inputs, method):
    model = functional(build(loaded.spec))
    return np.asarray(
        jax.jit(model.apply, static_argnames="method")(loaded.params, loaded.extra, *inputs, method=method)[0]
    )


def image_features(module, images, *, train, key):
    x = module.image(images, train=train, key=key)
    return module.image_projection(x) if hasattr(module, "image_projection") else x


def text_features(module, ids, *, train, key):
    return module.text_projection(module.text(ids, train=train, key=key))


def distance(got, expected):
    """Largest error relative to the largest feature: a feature near zero has no relative accuracy in float32."""
    return np.abs(got - expected).max() / np.abs(expected).max()


def test_openai_vit_and_text_towers_equal_the_original_code(golden, openai_vit_file):
    loaded = load_clip(openai_vit_file, image_heads=2, text_heads=2)
    images = golden["in/image_vit"].transpose(0, 2, 3, 1)
    assert distance(apply(loaded, images, method=image_features), golden["out/vit"]) < 2e-6
    ids = golden["in/text_ids"].astype(np.int32)
    assert distance(apply(loaded, ids, method=text_features), golden["out/text"]) < 2e-6
    assert flatten(loaded.params)["logit_scale/log"] == pytest.approx(np.log(20.0))


def test_openai_resnet_equals_the_original_code(golden, tmp_path):
    state = {f"visual.{name}": array for name, array in unpack(golden, "resnet").items()}
    text = unpack(golden, "text")
    text["text_projection"] = np.ascontiguousarray(text["text_projection"][:, :6])  # the golden towers differ in width
    state |= text | {"logit_scale": np.zeros((), np.float32), "visual.bn1.num_batches_tracked": np.zeros((), np.int64)}
    save_file({name: np.array(array, order="C") for name, array in state.items()}, tmp_path / "rn.safetensors")
    loaded = load_clip(tmp_path / "rn.safetensors", image_heads=4, text_heads=2)
    images = golden["in/image_resnet"].transpose(0, 2, 3, 1)
    assert distance(apply(loaded, images, method=image_features), golden["out/resnet"]) < 2e-6


def test_other_heads_change_the_output(golden, openai_vit_file):
    loaded = load_clip(openai_vit_file, image_heads=4, text_heads=2)
    images = golden["in/image_vit"].transpose(0, 2, 3, 1)
    assert distance(apply(loaded, images, method=image_features), golden["out/vit"]) > 1e-3


def test_parts_that_are_not_taken_are_those_of_the_config(golden, openai_vit_file):
    loaded = load_clip(openai_vit_file, image_heads=2, text_heads=2)
    assert select(loaded).params == loaded.params
    spec = {**loaded.spec, "embed_dim": 5, "logit_scale": 100.0, "locked": ("image",), "text_projection": "mlp"}
    spec["image"] = {"name": "vit", "size": "B/16", "patch_dropout": 0.5}
    images = golden["in/image_vit"].transpose(0, 2, 3, 1)
    changed = complete(spec, select(loaded, ("image", "text")), jax.random.key(0))
    assert apply(changed, images, method="encode_image").shape == (len(images), 5)
    assert float(np.exp(changed.params["logit_scale"]["log"])) == pytest.approx(100, rel=1e-5)
    assert changed.spec["locked"] == ("image",)
    assert changed.spec["image"] == loaded.spec["image"] | {"patch_dropout": 0.5}
    assert "layers" in changed.params["text_projection"]  # of an MLP
    for tower in ("image", "text"):
        assert changed.params[tower] is loaded.params[tower]
    with_scale = complete(spec | {"logit_bias": -10.0}, select(loaded, ("logit_scale", "image")), jax.random.key(0))
    assert with_scale.spec["logit_bias"] is None
    assert with_scale.params["logit_scale"] is loaded.params["logit_scale"]
    with pytest.raises(InputError, match="the weights have no head; they have image, image_projection, logit_scale"):
        select(loaded, ("head",))


def test_stacked_blocks_give_the_same_embeddings(golden, openai_vit_file):
    images = golden["in/image_vit"].transpose(0, 2, 3, 1)
    plain = load_clip(openai_vit_file, image_heads=2, text_heads=2)
    stacked = load_clip(openai_vit_file, image_heads=2, text_heads=2, scan_layers=True)
    assert "image/blocks/attn/qkv/kernel" in flatten(stacked.params)
    np.testing.assert_allclose(
        apply(stacked, images, method="encode_image"), apply(plain, images, method="encode_image"), rtol=0, atol=1e-6
    )


def test_half_precision_files_are_read_as_float32(openai_vit_file, tmp_path):
    half = {name: array.astype(np.float16) for name, array in load_file(openai_vit_file).items()}
    save_file(half, tmp_path / "half.safetensors")
    loaded = load_clip(tmp_path / "half.safetensors", image_heads=2, text_heads=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}


@pytest.fixture(scope="module")
def huggingface():
    """A small random CLIPModel, as `transformers` makes it; (save to folder) -> (folder, model)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)

    def make(folder, eos_token_id, activation="quick_gelu"):
        config = transformers.CLIPConfig(
            text_config={
                "vocab_size": 50,
                "hidden_size": 32,
                "intermediate_size": 72,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 12,
                "bos_token_id": 0,
                "eos_token_id": eos_token_id,
                "hidden_act": activation,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 6,
                "image_size": 24,
                "patch_size": 8,
                "hidden_act": activation,
                "layer_norm_eps": 1e-3,
            },
            projection_dim=24,
        )
        model = transformers.CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and gains away from 0 and 1, weights away from tiny
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return model

    return make


@pytest.mark.parametrize(("eos_token_id", "activation"), [(2, "quick_gelu"), (7, "gelu")])
def test_huggingface_clip_equals_transformers(huggingface, tmp_path, eos_token_id, activation):
    torch = pytest.importorskip("torch")
    theirs = huggingface(tmp_path, eos_token_id, activation)
    loaded = load_clip(tmp_path)
    assert loaded.spec["text"]["pool"] == ("argmax" if eos_token_id == 2 else "eos")

    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 24, 24, 3)).astype(np.float32)
    ids = rng.integers(8, 49, size=(4, 12)).astype(np.int32)
    ids[np.arange(4), [3, 5, 11, 8]] = 49 if eos_token_id == 2 else 7
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids, dtype=torch.long), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))
        )
    model = functional(build(loaded.spec))
    out, _ = jax.jit(model.apply)(loaded.params, loaded.extra, images, ids)
    np.testing.assert_allclose(out["image"], expected.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["text"], expected.text_embeds.numpy(), rtol=0, atol=1e-5)
    logits = out["logit_scale"] * out["image"] @ out["text"].T
    np.testing.assert_allclose(logits, expected.logits_per_image.numpy(), rtol=1e-4, atol=1e-4)


def damaged(openai_vit_file, tmp_path, change):
    state = load_file(openai_vit_file)
    change(state)
    save_file(state, tmp_path / "damaged.safetensors")
    return tmp_path / "damaged.safetensors"


def test_missing_and_unexpected_arrays_are_all_listed(openai_vit_file, tmp_path):
    def change(state):
        del state["ln_final.bias"], state["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        state["visual.extra"] = np.zeros(3, np.float32)

    with pytest.raises(InputError) as error:
        load_clip(damaged(openai_vit_file, tmp_path, change))
    for name in ("ln_final.bias", "visual.transformer.resblocks.0.mlp.c_fc.weight", "visual.extra"):
        assert name in str(error.value)


def test_wrong_shapes_are_all_listed(openai_vit_file, tmp_path):
    def change(state):
        state["ln_final.bias"] = np.zeros(5, np.float32)
        state["visual.transformer.resblocks.1.attn.in_proj_weight"] = np.zeros((7, 16), np.float32)

    with pytest.raises(InputError) as error:
        load_clip(damaged(openai_vit_file, tmp_path, change), image_heads=2, text_heads=2)
    for name in ("ln_final.bias (5,)", "visual.transformer.resblocks.1.attn.in_proj_weight (7, 16)"):
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["visual.conv1.weight", "token_embedding.weight", "text_projection"])
def test_arrays_with_wrong_axes_are_refused(openai_vit_file, tmp_path, name):
    with pytest.raises(InputError):
        load_clip(damaged(openai_vit_file, tmp_path, lambda state: state.update({name: np.zeros(16, np.float32)})))


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"No safetensors at .*give a folder"):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_clip(tmp_path)
    save_file({"weight": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="Neither the Hugging Face nor the OpenAI"):
        load_clip(tmp_path)
    save_file({"vision_model.x": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"needs its config\.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "swish2"}}))
    with pytest.raises(InputError, match="hidden_act='swish2' is not supported"):
        load_clip(tmp_path)
