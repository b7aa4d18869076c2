"""1-to-K: every term reaches what it trains, captions in the wrong number are refused, texts alone are evaluated."""

import gzip
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mixcon import config as configs
from mixcon import models
from mixcon.data.captions import EmojiCaptions
from mixcon.data.pack import pack
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train.optim import label_by_path
from mixcon.train.state import init_state

LINES = (
    "a dog runs",
    "two men talk",
    "a red car",
    "the girl reads",
    "snow on hills",
    "a boat at sea",
    "he eats",
    "rain",
)
TINY = (
    "batch_size=8",
    "captions.languages=('en', 'de')",
    "matching.block=4",
    "tokenizer.vocab_size=300",
    "model.embed_dim=8",
    "model.image={'name': 'vit', 'width': 16, 'depth': 1, 'heads': 2, 'patch': 32, 'image_size': 64}",
    "model.text.width=16",
    "model.text.depth=1",
    "model.text.context_length=10",
)
EMOJI = "'name': 'mixcon.data.captions.EmojiCaptions', 'split': 'concept', 'side': 'test', 'languages': ('en', 'de')"


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config(*overrides, variant="small"):
    return configs.load(f"configs/one_to_k.py:{variant}", [f"--config.{each}" for each in overrides])


def packed(folder, *, german):
    """A set of 12 emoji, the first few of which have a German name, too."""
    rows, source = ["image,text_en,text_de"], EmojiCaptions("concept", "test", languages=("en", "de"))
    for i in range(12):
        record = source[9 * i]
        Image.fromarray(record["image"]).save(folder / f"{i}.png")
        rows.append(f'{i}.png,"{record["text_en"]}","{record["text_de"] if i < german else ""}"')
    (folder / "names.csv").write_text("\n".join(rows))
    pack([str(folder / "names.csv")], folder / "shards", languages=("en", "de"), progress=False)
    pattern = folder / "shards" / "*.arrayrecord"
    return f"'name': 'mixcon.data.sources.array_record', 'pattern': '{pattern}', 'size': (64, 64)"


@pytest.mark.slow
def test_a_run_of_all_terms_reports_both_stages(tmp_path):
    gaps = packed(tmp_path, german=3)
    data = (f"data.train={{{EMOJI}}}", f"data.evals={{'held_out': {{{EMOJI}}}, 'gaps': {{{gaps}}}}}")
    short = ("steps=2", "log_every=1", "schedule.warmup_steps=1", "checkpoint.every=2", "mesh.data=1", "rerank=2")
    state = loop.train(config(*TINY, *data, *short), tmp_path, progress=False)
    lines = (tmp_path / "metrics.jsonl").read_text()
    for name in ("train/contrast", "train/matching", "train/words", "train/loss_image_to_text", "train/temperature"):
        assert f'"{name}"' in lines
    for name in ("text_to_image/de/R@1", "image_to_text/rank_std", "reranked/R_mean", "reranked/text_to_image/en/R@5"):
        assert f'"eval/held_out/{name}"' in lines
    last = json.loads(lines.splitlines()[-1])
    assert last["eval/gaps/image_to_text/de/R@5"] == 1, "there are three captions to be found, and three images ask"
    assert last["eval/gaps/text_to_image/de/R@1"] in [pytest.approx(n / 3) for n in range(4)]
    experiment = loop.build(config(*TINY, *data, *short), tmp_path)
    before = jax.jit(lambda: init_state(experiment, np.uint32(0), ema=False))()
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before.params, state.params)
    for name in ("match_fc1", "match_fc2", "word_fc", "image_projection", "text_projection"):
        assert moved[name]["kernel"], name
    assert moved["fusion"]["0"]["cross"]["k"]["kernel"]
    assert moved["word_bias"]
    assert moved["logit_scale"]["temperature"]


def test_texts_alone_are_evaluated_in_every_language(tmp_path, monkeypatch):
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for side in ("train", "test_2016_flickr"):
        for language in ("en", "de", "fr", "cs"):
            with gzip.open(folder / f"{side}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(f"{line} {language}" for line in LINES) + "\n")
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    small = ("steps=3", "batch_size=4", "data.train.buckets=64", "data.evals.test.buckets=64", "encoder.in_features=64")
    loop.train(config(*small, "captions.number=1", variant="multi30k"), tmp_path / "run", progress=False)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    for language in ("de", "fr", "cs"):
        assert f'"eval/test/text_to_image/{language}/R@1"' in lines
    assert '"eval/test/text_to_image/rank_std"' in lines
    with pytest.raises(InputError, match="no 'es'"):
        loop.build(config(*small, "captions.languages=('es',)", variant="multi30k"), tmp_path)


def test_bad_input_is_refused_in_words(tmp_path):
    data = (f"data.train={{{EMOJI}}}", "data.evals={}")
    soft = "objective={'name': 'mixcon.objectives.soft_id_info_nce'}"
    for overrides, message in (
        ((soft, "image_id=base_id"), "one caption a record"),
        ((soft, "captions.number=1"), "image_id"),
        (("captions.languages=('en', 'fr')",), "no caption 'text_fr'"),
        (("captions.consistent=('en', 'ja')",), "'ja' is not among those tested"),
        (("image_id=picture",), "no integer 'picture'"),
        (("image_id=base",), "no integer 'base'"),
        (("model.image.pool=mean",), "pool='cls'"),
    ):
        with pytest.raises(InputError, match=message):
            loop.build(config(*TINY, *data, *overrides), tmp_path)


@pytest.mark.parametrize("variant", ["ccrk10", "finetune"])
def test_every_new_parameter_learns_twice_as_fast_and_no_bias_or_norm_decays(variant):
    made = config(*TINY[4:], "model.depth=1", "model.text.heads=2", variant=variant)
    spec = configs.plain(made.model)
    spec["text"] |= {"vocab_size": 20, "pad_id": 0}
    params, _ = jax.eval_shape(models.functional(models.build(spec)).init, jax.random.key(0))
    how = dict(configs.plain(made.optimizer.overrides))
    labels = models.flatten(label_by_path(params, tuple(how)))
    assert any("cross/" in path for path in labels)
    for path, label in labels.items():
        new = path.startswith(("match_", "word_", "image_projection/", "text_projection/")) or "/cross/" in path
        assert how.get(label, {}).get("lr_scale", 1.0) == (2.0 if new else 1.0), path
        if path.endswith(("bias", "scale")):
            assert how[label]["weight_decay"] == 0.0, path
