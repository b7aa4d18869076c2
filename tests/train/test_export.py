"""`mixcon export`: from a run's folder to one that `transformers` loads, and BERT weights under a run."""

import gzip
import itertools
import json
import types

import jax
import numpy as np
import pytest
from tiny import tiny_config

from mixcon import cli
from mixcon import config as configs
from mixcon.data import Emoji, tokenizer
from mixcon.data.clip_tokenizer import MERGES, byte_symbols
from mixcon.errors import InputError
from mixcon.models import build, flatten, functional, load_clip
from mixcon.train import evaluate, loop


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


NOTHING = ("--config.data.evals={}", "--config.zero_shot=()", "--config.probes=()")


def clip_config(*overrides):
    """A tiny run of the form of published CLIP models."""
    config = tiny_config(*NOTHING, *overrides)
    with config.unlocked():
        config.model.image.update(pool="cls", pre_norm=True, patch_bias=False)
        config.model.text.update(pool="eos", causal=True)
    return config


@pytest.mark.slow
def test_a_run_becomes_a_clip_model_of_transformers(tmp_path, capsys):
    config = clip_config("--config.steps=2", "--config.ema=0.5")
    loop.train(config, tmp_path / "run", progress=False)
    cli.main(["export", "--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "out")])
    assert "as CLIPModel" in capsys.readouterr().out
    restored = evaluate.restore(tmp_path / "run")
    loaded, ours = load_clip(tmp_path / "out"), flatten(jax.device_get(restored.state.averaged))
    for path, array in flatten(loaded.params).items():
        rows = len(ours[path]) if array.ndim else None
        np.testing.assert_array_equal(array[:rows] if rows else array, ours[path], err_msg=path)
    records = [Emoji("both", "train")[i] for i in range(3)]
    words = tokenizer.load(tmp_path / "out" / "tokenizer.json")
    ids = words.encode([record["text"] for record in records], 12)
    images = np.stack([record["image"] for record in records]).astype(np.float32) / 127.5 - 1
    out, _ = functional(build(loaded.spec)).apply(loaded.params, {}, images, ids)
    torch = pytest.importorskip("torch", reason="compared with transformers, which needs torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    found = theirs(
        input_ids=torch.tensor(ids, dtype=torch.long), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))
    )
    np.testing.assert_allclose(out["image"], found.image_embeds.detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["text"], found.text_embeds.detach(), rtol=0, atol=1e-5)
    said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert said["image_mean"] == [0.5, 0.5, 0.5]


def siglip_config():
    """`configs/siglip.py:b16` in all but its sizes, types and data."""
    emoji = "{'name': 'mixcon.data.emoji.Emoji', 'split': 'both', 'side': 'train'}"
    config = configs.load(
        "configs/siglip.py:b16",
        [
            f"--config.data.train={emoji}", "--config.data.evals={}", "--config.tokenizer.path=",
            "--config.tokenizer.vocab_size=300", "--config.model.embed_dim=32", "--config.mesh.data=1",
            "--config.steps=2", "--config.batch_size=16", "--config.log_every=1", "--config.eval_every=-1",
            "--config.checkpoint.every=1", "--config.schedule.warmup_steps=1",
        ],
    )  # fmt: skip
    with config.unlocked():
        config.model.update(dtype="float32", remat=False, scan_layers=False)  # sooner compiled
        config.model.image.update(size=None, width=32, depth=1, heads=2, patch=16, image_size=64)
        config.model.text.update(width=32, depth=1, heads=2, context_length=12)
    return config


def test_a_run_of_the_siglip_config_becomes_a_siglip_model_of_transformers(tmp_path, capsys):
    loop.train(siglip_config(), tmp_path / "run", progress=False)
    experiment = loop.build(siglip_config(), tmp_path / "run")
    tokens = next(experiment.batches())["tokens"]
    end = tokenizer.load(tmp_path / "run" / "tokenizer.json").eos_id
    assert (tokens[:, -1] == end).all(), "it pools at the last position, which is always an end token"
    assert experiment.model["text"]["pad_id"] is None
    cli.main(["export", "--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "out")])
    assert "as SiglipModel" in capsys.readouterr().out
    records = [Emoji("both", "train")[i] for i in range(3)]
    ids = tokenizer.load(tmp_path / "out" / "tokenizer.json").encode([record["text"] for record in records], 12)
    assert (ids[:, -1] == end).all()
    images = np.stack([record["image"] for record in records]).astype(np.float32) / 127.5 - 1
    loaded = load_clip(tmp_path / "out")
    out, _ = jax.jit(functional(build(loaded.spec)).apply)(loaded.params, {}, images, ids)
    torch = pytest.importorskip("torch", reason="compared with transformers, which needs torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SiglipModel.from_pretrained(tmp_path / "out").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    captions = [record["text"] for record in records]
    given = words(captions, padding="max_length", max_length=12, truncation=True, return_tensors="pt")["input_ids"]
    np.testing.assert_array_equal(given, ids)
    found = theirs(input_ids=given, pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(out["image"], found.image_embeds.detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["text"], found.text_embeds.detach(), rtol=0, atol=1e-5)


def write_merges(folder):
    """A list of as many merges as CLIP's, of letters."""
    pairs = itertools.islice(itertools.product(byte_symbols(), repeat=2), MERGES)
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#", *(f"{a} {b}" for a, b in pairs)]).encode()))
    return path


def write_vocabulary(folder):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "heart", "face"]))
    return folder / "vocab.txt"


@pytest.mark.parametrize("write", [write_vocabulary, write_merges])
def test_every_kind_of_tokenizer_is_exported(tmp_path, monkeypatch, write):
    path = write(tmp_path)
    config = clip_config(f"--config.tokenizer.path={path}")
    experiment = loop.build(config, tmp_path / "run")
    params, _, _ = jax.jit(experiment.init)(jax.random.key(0))
    untrained = evaluate.Restored(config, experiment, types.SimpleNamespace(averaged=params), 0)
    monkeypatch.setattr(evaluate, "restore", lambda workdir, step: untrained)
    assert "as CLIPModel" in evaluate.export(tmp_path / "run", tmp_path / "out")
    texts = ["Red heart", "a face"]
    ids = tokenizer.load(path).encode(texts, 12)
    again = tokenizer.load(tmp_path / "out" / "tokenizer.json")
    np.testing.assert_array_equal(again.encode(texts, 12), ids)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(theirs(texts, padding="max_length", max_length=12)["input_ids"], ids)


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--workdir", str(tmp_path), "--to", str(tmp_path / "out")])
    assert "not the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_starts_from_the_weights_of_a_bert(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the weights are made by transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "heart", "face"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
            max_position_embeddings=20,
        )
    )  # fmt: skip
    bert.save_pretrained(tmp_path)
    config = tiny_config(
        *NOTHING, f"--config.tokenizer.path={tmp_path / 'vocab.txt'}", f"--config.text_init_from={tmp_path}"
    )
    with config.unlocked():
        config.model.text = {"name": "bert", "size": "base", "context_length": 12, "dropout": 0.0}
    experiment = loop.build(config, tmp_path / "run")
    params, _ = experiment.pretrained
    np.testing.assert_array_equal(
        params["text"]["token_embed"], bert.embeddings.word_embeddings.weight.detach().numpy()
    )
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))[0]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    assert params["text"]["pos_embed"].shape == (12, 32)
    with config.unlocked():
        config.tokenizer.path = ""
    with pytest.raises(InputError, match=r"vocab\.txt that belongs"):
        loop.build(config, tmp_path / "other")
    with config.unlocked():
        config.model.locked = ("text", "image")
    with pytest.raises(InputError, match="names image, which would stay random"):
        loop.build(config, tmp_path / "other")
