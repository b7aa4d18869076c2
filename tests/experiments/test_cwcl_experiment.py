"""CWCL: the frozen tower is outside the state, its cached features are what it says, and what is refused."""

import wave

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop

DIGITS = "'name': 'mixcon.data.digit_views.digit_views'"
TINY = (
    f"data.train={{{DIGITS}, 'keep': 100}}",
    f"data.evals={{'test': {{{DIGITS}, 'side': 'test'}}}}",
    f"data.classes={{{DIGITS}, 'keep': 50}}",
    "batch_size=16",
    "steps=3",
    "log_every=1",
    "checkpoint.every=3",
    "views=('fou', 'pix')",
    "tower.backbone.widths=(76, 8)",
    f"frozen.training.data.train={{{DIGITS}, 'side': 'test'}}",
    "frozen.training.view=pix",
    "frozen.training.tower.backbone.widths=(240, 8)",
    "frozen.training.steps=2",
)


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config(*overrides):
    changed = {each.partition("=")[0] for each in overrides}
    kept = [each for each in TINY if each.partition("=")[0] not in changed]
    return configs.load("configs/cwcl.py:small", [f"--config.{each}" for each in (*kept, *overrides)])


def test_cached_features_are_the_frozen_tower_s_and_neither_is_in_the_state(tmp_path):
    states = {}
    for cached in (True, False):
        workdir = tmp_path / str(cached)
        states[cached] = loop.train(config(f"frozen.cached={cached}"), workdir, progress=False)
        assert set(states[cached].params) == {"trained", "logit_scale"}
    leaves = [jax.tree.leaves(jax.device_get(states[cached].params)) for cached in (True, False)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    held = sum(np.size(leaf) for leaf in jax.tree.leaves(states[False].opt_state))
    trained = sum(leaf.size for leaf in jax.tree.leaves(states[False].params["trained"]))
    assert held <= 2 * trained + 2, "the temperature is fixed, and has no moments"
    lines = (tmp_path / "True" / "metrics.jsonl").read_text()
    assert '"eval/test/zero_shot"' in lines


def test_bad_input_is_refused_in_words(tmp_path):
    for overrides, message in (
        (("views=('speech', 'pix')",), "no field 'speech'"),
        (("frozen.kind=magic",), "frozen.kind='magic' is unknown"),
        (("gradient.name=mixcon.train.gradients.accumulate", "gradient.parts=2"), "belong to the whole batch"),
    ):
        with pytest.raises(InputError, match=message):
            loop.build(config(*overrides), tmp_path)


@pytest.mark.slow
def test_speech_learns_from_a_frozen_text_encoder(tmp_path):
    """Real wav files, a table of sentences, and weights in the layout of a BERT; cached or in the step."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=8, max_position_embeddings=12, **sizes))
    bert.save_pretrained(tmp_path / "text")
    (tmp_path / "speech" / "clips").mkdir(parents=True)
    rows = ["path\tsentence"]
    for i in range(8):
        with wave.open(str(tmp_path / "speech" / "clips" / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            sound = np.sin(np.arange(4_000) * (0.05 + 0.02 * i))
            file.writeframes((8_000 * sound).astype("<i2").tobytes())
        rows.append(f"{i}.wav\t{words[5 + i % 3]}")
    (tmp_path / "speech" / "train.tsv").write_text("\n".join(rows))
    source = {"name": "mixcon.data.speech.SpeechText", "folder": str(tmp_path / "speech"), "seconds": 0.2, "bands": 8}
    overrides = [
        *("batch_size=4", "steps=2", "log_every=1", "eval_every=2", "checkpoint.every=2", "mesh.data=1"),
        *(f"data.train={source}", f"data.evals={{'known': {source}}}"),
        *(f"frozen.weights={tmp_path / 'text'}", f"frozen.tokenizer={tmp_path / 'text' / 'vocab.txt'}"),
        *("frozen.context_length=6", "frozen.dtype=float32", "frozen.batch_size=8", "tower.embed_dim=16"),
        *("tower.backbone.width=8", "tower.backbone.heads=2", "tower.backbone.depth=1", "tower.backbone.bands=8"),
        *("tower.backbone.frames=20", "tower.dtype=float32", "schedule.warmup_steps=1"),
    ]
    states = [
        loop.train(
            configs.load(
                "configs/cwcl.py:speech_text",
                [f"--config.{each}" for each in (*overrides, f"frozen.cached={cached}")],
            ),
            tmp_path / f"run_{cached}",
            progress=False,
        )
        for cached in (True, False)
    ]
    one, other = (jax.tree.leaves(jax.device_get(state.params)) for state in states)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert '"eval/known/R@1"' in (tmp_path / "run_True" / "metrics.jsonl").read_text()
