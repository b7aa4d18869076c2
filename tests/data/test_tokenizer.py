"""Token ids: layout, truncation that keeps the end, determinism, any script, other people's files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as hf

from mixcon.data.emoji import LANGUAGES, Emoji
from mixcon.data.records import read
from mixcon.data.tokenizer import load, load_or_train, tokenize, train
from mixcon.errors import InputError

TEXTS = ["grinning face", "grinning face with big eyes", "red heart", "blue heart", "Red Heart"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS, vocab_size=320)


def test_layout_is_bos_tokens_eos_pad(tokenizer):
    ids = tokenizer.encode(["red heart", ""], 12)
    assert ids.dtype == np.int32
    assert ids.shape == (2, 12)
    end = int(np.argmax(ids[0] == tokenizer.eos_id))
    assert ids[0, 0] == tokenizer.bos_id
    assert (ids[0, end + 1 :] == tokenizer.pad_id).all()
    assert ids[1, :3].tolist() == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}) == 3
    assert ids.max() < tokenizer.vocab_size


def test_truncation_keeps_the_end(tokenizer):
    whole, cut = tokenizer.encode(["zebra crossing"], 32), tokenizer.encode(["zebra crossing"], 6)
    assert cut[0, -1] == tokenizer.eos_id
    np.testing.assert_array_equal(cut[0, :5], whole[0, :5])
    with pytest.raises(InputError, match="length=2"):
        tokenizer.encode(["a"], 2)


@pytest.mark.parametrize("text", ["grinsendes gesicht", "にっこり笑う", "مبتسم", "🧑‍🚒", "a\tb\n c", "<eos>"])
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode([text], 64)
    assert tokenizer.decode(ids) == ([""] if text == "<eos>" else [text])


def test_case_is_folded_unless_asked_otherwise(tokenizer):
    np.testing.assert_array_equal(tokenizer.encode(["RED heart"], 16), tokenizer.encode(["red heart"], 16))
    cased = train(TEXTS, vocab_size=320, lowercase=False)
    assert not np.array_equal(cased.encode(["RED heart"], 16), cased.encode(["red heart"], 16))


def test_training_is_the_same_in_every_process(tmp_path):
    code = (
        "import sys; from mixcon.data.emoji import Emoji; from mixcon.data.records import read;"
        "from mixcon.data.tokenizer import train;"
        "train((r['text'] for r in read(Emoji(languages=('en', 'ja')))), vocab_size=900).save(sys.argv[1])"
    )
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_saved_and_loaded_agree_and_the_first_use_trains(tmp_path, tokenizer):
    path = tmp_path / "run" / "tokenizer.json"
    first = load_or_train(path, lambda: TEXTS, vocab_size=320)
    second = load_or_train(path, lambda: pytest.fail("trained twice"), vocab_size=320)
    for one in (first, second):
        np.testing.assert_array_equal(one.encode(TEXTS, 16), tokenizer.encode(TEXTS, 16))
        assert (one.pad_id, one.bos_id, one.eos_id, one.vocab_size) == (0, 1, 2, tokenizer.vocab_size)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_emoji_names_in_all_languages_fit_in_few_tokens():
    texts = [record["text"] for record in read(Emoji(languages=LANGUAGES))]
    tokenizer = train(texts, vocab_size=8000)
    lengths = (tokenizer.encode(texts, 96) != tokenizer.pad_id).sum(1)
    assert np.mean(lengths) < 16
    assert lengths.max() < 96


def test_pipeline_transform(tokenizer):
    batch = tokenize(tokenizer, 8, field="caption", out="ids")({"caption": ["red heart"] * 2, "x": 1})
    assert batch["ids"].shape == (2, 8)
    assert batch["x"] == 1


def test_other_peoples_files(tmp_path):
    core = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "red": 1, "<|endoftext|>": 2, "[END]": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    core.enable_padding(length=50)
    core.enable_truncation(3)
    core.save(str(tmp_path / "theirs.json"))
    theirs = load(tmp_path / "theirs.json")
    assert theirs.bos_id is None
    assert theirs.pad_id == theirs.eos_id == 2
    assert theirs.encode(["red red"], 5).tolist() == [[1, 1, 2, 2, 2]]
    assert load(tmp_path / "theirs.json", eos="[END]").eos_id == 3
    with pytest.raises(InputError, match="no token '<x>'"):
        load(tmp_path / "theirs.json", bos="<x>")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("named", ["</s>", {"content": "</s>"}])
def test_the_padding_that_a_published_model_names_is_followed(tmp_path, file, named):
    """SigLIP's vocabulary has a <pad>, but its texts are padded with their end token."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁cat", -2.0)]
    core = hf.Tokenizer(hf.models.Unigram(vocabulary, unk_id=2))
    core.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    core.save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path / "tokenizer.json").encode(["a cat"], 6).tolist() == [[3, 4, 1, 0, 0, 0]]
    (tmp_path / file).write_text(json.dumps({"eos_token": "</s>", "pad_token": named}))
    assert load(tmp_path / "tokenizer.json").encode(["a cat"], 6).tolist() == [[3, 4, 1, 1, 1, 1]]
    assert load(tmp_path / "tokenizer.json", pad="<pad>").pad_id == 0
    (tmp_path / file).write_text(json.dumps({"pad_token": "[no such]"}))
    assert load(tmp_path / "tokenizer.json").pad_id == 0
    (tmp_path / file).write_text("[")
    with pytest.raises(InputError, match="tokenizer"):
        load(tmp_path / "tokenizer.json")


def test_wrong_files_are_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        load(tmp_path / "bad.json")
    hf.Tokenizer(hf.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "endless.json"))
    with pytest.raises(InputError, match="end-of-text"):
        load(tmp_path / "endless.json")
    with pytest.raises(InputError, match="vocab_size=100"):
        train(TEXTS, vocab_size=100)


def test_records_without_the_field_are_refused_by_its_name(tokenizer):
    with pytest.raises(InputError, match="no 'keywords' to tokenize; they have image, text"):
        tokenize(tokenizer, 8, field="keywords")({"text": ["red heart"], "image": 1})


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "heart", "##s", "flag", ":", "é", "e", "##tat", "un"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocab_txt_splits_as_berts_tokenizer_does(tmp_path, lowercase):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    ours = load(tmp_path / "vocab.txt")
    assert (ours.pad_id, ours.bos_id, ours.eos_id, ours.vocab_size) == (0, 2, 3, len(VOCABULARY))
    texts = ["Red hearts", "flag:red", "État", "zebra"]
    ids = ours.encode(texts, 7)
    assert ids[1].tolist() == [2, 7, 8, 4, 3, 0, 0]
    assert ids[3].tolist() == [2, 1, 3, 0, 0, 0, 0]
    assert ids[0].tolist() == [2, 4 if lowercase else 1, 5, 6, 3, 0, 0]
    transformers = pytest.importorskip("transformers", reason="compared with transformers' BertTokenizer")
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(ids, theirs(texts, padding="max_length", max_length=7)["input_ids"])


def test_a_word_piece_vocabulary_is_learned_and_kept(tmp_path):
    made = load_or_train(tmp_path / "t.json", lambda: TEXTS, vocab_size=60, kind="wordpiece")
    again = load_or_train(tmp_path / "t.json", lambda: pytest.fail("it is there"), kind="wordpiece")
    assert 20 < made.vocab_size <= 60
    ids = made.encode(["Red Heart", "grinning", "漢"], 8)
    np.testing.assert_array_equal(ids, again.encode(["red heart", "grinning", "漢"], 8))
    assert made.decode(ids[:1]) == ["red heart"]
    assert ids[2].tolist() == [2, 1, 3, 0, 0, 0, 0, 0]
    with pytest.raises(InputError, match="kind='unigram'"):
        train(TEXTS, kind="unigram")
    with pytest.raises(InputError, match="vocab_size=4"):
        train(TEXTS, kind="wordpiece", vocab_size=4)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_again_gives_the_same_ids(kind):
    texts = [f"{a} {b} face {c}" for a in ("red", "grinning", "sleepy") for b in ("cat", "moon") for c in "abcdefgh"]
    files = {train(texts, kind=kind, vocab_size=300).core.to_str() for _ in range(4)}
    assert len(files) == 1


def test_wordpiece_keeps_words_and_pieces():
    made = train(["unaffable unaffable lions", "lions"] * 3, kind="wordpiece", vocab_size=200)
    assert made.core.encode("lions").tokens == ["lions"]
    assert made.core.encode("[SEP] nab").tokens == ["[SEP]", "n", "##ab"]
    assert made.core.encode("x").tokens == ["[UNK]"]
