"""Damaged and hostile tokenizer files: refused in words, when they are loaded or when they encode."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, mutated

from mixcon.data import tokenizer as tokenizers
from mixcon.errors import InputError

TEXTS = ["red heart", "äöü " * 4, "", "<eos>", "\0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the two kinds of tokenizer look like on disk."""
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    found = []
    for kind, size in (("bpe", 270), ("wordpiece", 40)):
        tokenizers.train(["red heart", "blue heart"] * 4, vocab_size=size, kind=kind).save(path)
        found.append(json.loads(path.read_text()))
    return found


def check(path):
    refusal = ""
    try:
        loaded = tokenizers.load(path)
        tokens = loaded.encode(TEXTS, 12)
        assert tokens.shape == (len(TEXTS), 12)
        assert tokens.min() >= 0
        assert tokens.max() < loaded.vocab_size <= tokenizers.MAX_IDS
        loaded.decode(tokens)
    except InputError as error:
        refusal = str(error)
    assert len(refusal) < 1000


def run(files, tmp_path, count):
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        path = tmp_path / "tokenizer.json"
        if data.draw(st.booleans()):
            path.write_text(json.dumps(data.draw(changed(data.draw(st.sampled_from(files))))))
        else:
            path.write_bytes(data.draw(mutated([json.dumps(f).encode() for f in files])))
        check(path)

    fuzz()


def test_damaged_tokenizers(files, tmp_path):
    run(files, tmp_path, 80)


@pytest.mark.slow
def test_many_damaged_tokenizers(files, tmp_path):
    run(files, tmp_path, 1000)


def test_ids_that_are_left_out_still_fit_into_the_table(files, tmp_path):
    file = json.loads(json.dumps(files[0]))
    file["model"]["vocab"]["a"] = 700
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == 701
    assert loaded.encode(["a"], 4)[0, 1] == 700


@pytest.mark.parametrize("number", [2**24, 2**32 - 1])
def test_ids_that_no_table_could_hold_are_refused(files, tmp_path, number):
    file = json.loads(json.dumps(files[0]))
    file["model"]["vocab"]["a"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match=f"token id {number}"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_what_only_shows_when_encoding_is_said_in_words(files, tmp_path):
    file = json.loads(json.dumps(files[1]))
    file["model"]["unk_token"] = "absent"
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match="cannot be encoded"):
        tokenizers.load(tmp_path / "tokenizer.json").encode(["日本"], 8)


def test_a_panic_of_the_library_is_an_input_error(files, tmp_path):
    file = json.loads(json.dumps(files[0]))
    file["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match="is not a tokenizer"):
        tokenizers.load(tmp_path / "tokenizer.json")
