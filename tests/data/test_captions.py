"""Items with several captions, languages drawn, hidden tokens, hashed n-grams."""

import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.data import tokenizer
from mixcon.data.captions import EmojiCaptions, OneLanguage, draw_languages, tokenize_captions
from mixcon.data.emoji import Emoji
from mixcon.data.masking import mask_tokens
from mixcon.data.multi30k import hashed_ngrams, multi30k
from mixcon.errors import InputError

LANGUAGES = ("en", "ja", "de")


def test_one_record_holds_all_names_of_an_emoji():
    source, names = EmojiCaptions("concept", "test", languages=LANGUAGES), Emoji("concept", "test", languages=LANGUAGES)
    assert len(source) * 3 == len(names) == len(OneLanguage(source, LANGUAGES))
    record = source[7]
    for k, language in enumerate(LANGUAGES):
        assert record[f"text_{language}"] == names[21 + k]["text"] == OneLanguage(source, LANGUAGES)[21 + k]["text"]
    assert record["emoji"] == names[21]["emoji"]
    assert not {"text", "language", "keywords"} & record.keys()
    with pytest.raises(IndexError):
        source[len(source)]


def test_captions_become_tokens_in_the_order_of_languages_and_missing_ones_are_masked():
    words = tokenizer.train(["red heart", "rotes Herz"], vocab_size=300)
    batch = {"text_en": ["red heart", "heart"], "text_de": ["rotes Herz", " "]}
    out = tokenize_captions(words, 12, ("de", "en"))(batch)
    np.testing.assert_array_equal(out["tokens"][:, 1], words.encode(["red heart", "heart"], 12))
    assert out["text_mask"].tolist() == [[True, True], [False, True]]
    with pytest.raises(InputError, match=r"text_fr.*text_de, text_en"):
        tokenize_captions(words, 12, ("fr",))(batch)


def test_languages_are_drawn_without_replacement_and_missing_ones_last():
    mask = jnp.asarray(np.random.default_rng(0).uniform(size=(2000, 5)) < 0.8)
    chosen = np.asarray(draw_languages(jax.random.key(0), mask, 3))
    assert (np.diff(chosen, axis=1) > 0).all()
    there = np.take_along_axis(np.asarray(mask), chosen, 1)
    np.testing.assert_array_equal(there.sum(1), np.minimum(mask.sum(1), 3))
    every = np.asarray(draw_languages(jax.random.key(0), jnp.ones((3000, 5), bool), 1))
    np.testing.assert_allclose(np.bincount(every[:, 0]) / 3000, 0.2, atol=0.04)
    np.testing.assert_array_equal(draw_languages(jax.random.key(0), mask[:2], 5), [range(5)] * 2)
    with pytest.raises(InputError, match="1 to 5"):
        draw_languages(jax.random.key(0), mask, 6)


PAD, START, END, MASK = 0, 1, 2, 99


def texts(count=400, length=20):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, length - 1, count)
    place = np.arange(length)[None]
    tokens = rng.integers(3, 99, (count, length)) * (place <= lengths[:, None])
    tokens[:, 0] = START
    tokens[np.arange(count), lengths + 1] = END
    return jnp.asarray(tokens, jnp.int32), lengths


def test_a_share_of_the_tokens_is_hidden_and_specials_never_are():
    tokens, lengths = texts()
    hide = functools.partial(mask_tokens, mask_id=MASK, vocab_size=99, special_ids=(PAD, START, END), share=0.4, most=6)
    hidden = jax.jit(hide)(jax.random.key(0), tokens)
    number = np.minimum(np.clip(np.round(0.4 * lengths), 1, 6), lengths)
    np.testing.assert_array_equal(hidden.mask.sum(1), number)
    before, after = np.asarray(tokens), np.asarray(hidden.tokens)
    rows, slots = np.nonzero(np.asarray(hidden.mask))
    at = np.asarray(hidden.positions)[rows, slots]
    assert len({*zip(rows, at, strict=True)}) == len(rows), "no position twice"
    np.testing.assert_array_equal(np.asarray(hidden.targets)[rows, slots], before[rows, at])
    assert (before[rows, at] > 2).all()
    untouched = np.ones(before.shape, bool)
    untouched[rows, at] = False
    np.testing.assert_array_equal(after[untouched], before[untouched])
    shares = [(after[rows, at] == MASK).mean(), (after[rows, at] == before[rows, at]).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.04)


@pytest.mark.parametrize(("span_share", "low", "high"), [(0.0, 0.0, 0.25), (1.0, 0.6, 1.0)])
def test_spans_hide_neighbours(span_share, low, high):
    tokens = jnp.full((500, 40), 5, jnp.int32)
    hide = functools.partial(mask_tokens, mask_id=MASK, vocab_size=9, special_ids=(), share=0.15, span_share=span_share)
    hidden = jax.jit(hide)(jax.random.key(1), tokens)
    places = np.sort(np.where(hidden.mask, hidden.positions, 1000), axis=1)
    neighbours = (np.diff(places, axis=1) == 1).sum() / (np.asarray(hidden.mask).sum() - 500)
    assert low <= neighbours <= high


def test_hashed_ngrams_are_those_of_a_plain_count():
    text = "Ein Hund"
    grams = [f" {text.lower()} "[i : i + n] for n in (3, 4, 5) for i in range(len(text) + 3 - n)]
    row = hashed_ngrams([text], buckets=1 << 16)[0]
    assert np.count_nonzero(row) == len(set(grams))
    np.testing.assert_allclose(row[row > 0], 1 / np.sqrt(len(grams)), rtol=1e-6)
    assert not hashed_ngrams([""], sizes=(4, 5)).any()
    with pytest.raises(InputError, match="sizes"):
        hashed_ngrams(["a"], sizes=(3, 2))


def test_multi30k_is_read_in_the_order_of_the_images(tmp_path, monkeypatch):
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for language, lines in (("en", ["A dog.", "Two men."]), ("de", ["Ein Hund.", "Zwei Männer."])):
        with gzip.open(folder / f"val.{language}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    source = multi30k("valid", languages=("de", "en"), buckets=512)
    assert len(source) == 2
    np.testing.assert_array_equal(source[1]["de"], hashed_ngrams(["Zwei Männer."], buckets=512)[0])
    with pytest.raises(InputError, match="fetch multi30k"):
        multi30k("train", languages=("en",))
    with pytest.raises(InputError, match="en, de, fr, cs"):
        multi30k("valid", languages=("es",))


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"most": 0}, {"kept": 0.7, "random": 0.7}])
def test_hiding_refuses_impossible_numbers(wrong):
    with pytest.raises(InputError, match="share"):
        mask_tokens(jax.random.key(0), texts(2)[0], mask_id=MASK, vocab_size=9, special_ids=(), **wrong)
