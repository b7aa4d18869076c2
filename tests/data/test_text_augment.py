"""Captions augmented by rule: what each kind does, the shares of the kinds, draws that repeat, edges."""

import collections

import numpy as np
import pytest

from mixcon.data import text_augment as t
from mixcon.data import tokenizer
from mixcon.data.pipeline import Batches, eval_batches
from mixcon.data.sampling import uniform
from mixcon.errors import InputError

WORDS = ["a", "brown", "dog", "runs", "after", "the", "ball"]


@pytest.fixture
def thesaurus(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("dog, hound, puppy\nball, sphere\n\nlonely\n")
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_line_is_a_group_of_synonyms(thesaurus):
    assert t.load_thesaurus(thesaurus) == {
        "dog": ("hound", "puppy"),
        "hound": ("dog", "puppy"),
        "puppy": ("dog", "hound"),
        "ball": ("sphere",),
        "sphere": ("ball",),
    }


def test_wordnet_folders_are_read_and_found_by_name(tmp_path, monkeypatch):
    """The licence's lines begin with a blank; counts are hexadecimal; adjectives may carry a marker."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(
        "  1 licence\n02086723 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02085998 n 0000 | a gloss\n"
    )
    (folder / "data.adj").write_text("00001740 00 a 02 able(p) 0 capable 0 000 | having the means\n")
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    found = t.load_thesaurus("wordnet")
    assert found["dog"] == ("domestic dog", "canis familiaris")
    assert found["able"] == ("capable",)


def test_stop_words_go_unless_nothing_is_left():
    assert t.drop_stop_words(WORDS) == ["brown", "dog", "runs", "ball"]
    assert t.drop_stop_words(["The", "A"]) == ["The", "A"]
    assert t.drop_stop_words([]) == []


def test_one_word_is_replaced_wherever_it_occurs(thesaurus, rng):
    known = t.load_thesaurus(thesaurus)
    seen = set()
    for _ in range(50):
        out = t.replace_synonym(["dog", "bites", "dog", "ball"], known, rng)
        assert (out[0] != "dog") != (out[3] != "ball")
        assert out[0] == out[2]
        seen.add((out[0], out[3]))
    assert seen == {("hound", "ball"), ("puppy", "ball"), ("dog", "sphere")}
    assert t.replace_synonym(["the", "cat"], known, rng) == ["the", "cat"]


def test_a_swap_exchanges_two_places(rng):
    out = t.swap_words(WORDS, rng)
    assert sum(a != b for a, b in zip(out, WORDS, strict=True)) == 2
    assert sorted(out) == sorted(WORDS)
    assert t.swap_words(["one"], rng) == ["one"]


def test_deletion_keeps_order_and_at_least_one_word(rng):
    kept = [len(t.delete_words(WORDS, rng, rate=0.3)) for _ in range(500)]
    assert abs(np.mean(kept) - 0.7 * len(WORDS)) < 0.2
    last = t.delete_words(WORDS, rng, rate=1.0)
    assert len(last) == 1
    assert last[0] in WORDS
    assert t.delete_words([], rng) == []


def kind(words):
    if sorted(words) == sorted(WORDS):
        return "identity" if words == WORDS else "swap"
    return "synonym" if len(words) == len(WORDS) else "delete"


def test_shares_of_the_kinds(thesaurus):
    augment = t.CaptionAugmentation(drop_stop_words=0.0, delete_rate=0.9, identity=0.25, thesaurus=str(thesaurus))
    drawn = [augment(" ".join(WORDS), step=0, index=i, view=1).split() for i in range(3000)]
    share = {name: count / 3000 for name, count in collections.Counter(map(kind, drawn)).items()}
    for name, weight in {"synonym": 0.4, "swap": 0.4, "delete": 0.2, "identity": 0.25}.items():
        assert abs(share[name] - weight / 1.25) < 0.04, name


def test_weak_captions_only_lose_stop_words():
    augment = t.CaptionAugmentation(drop_stop_words=0.8)
    drawn = [augment(" ".join(WORDS), step=0, index=i, view=0) for i in range(1000)]
    assert set(drawn) == {" ".join(WORDS), "brown dog runs ball"}
    assert abs(np.mean([x != " ".join(WORDS) for x in drawn]) - 0.8) < 0.05


def test_cleaning_lowers_case_and_leaves_punctuation_out():
    augment = t.CaptionAugmentation(drop_stop_words=0.0, clean=True)
    assert augment("Dogs, CATS!", step=0, index=0, view=0) == "dogs cats"


def test_nothing_stays_nothing():
    augment = t.CaptionAugmentation(identity=1.0)
    assert {augment("  ", step=0, index=i, view=1) for i in range(20)} == {""}


class Captions:
    def __init__(self):
        self.texts = ["red heart", "a brown dog runs after the ball", "", "the sun", "two cats on a mat", "x"]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"text": self.texts[index], "step": np.int32(7)}


def batches(seed=0, **share):
    coder = tokenizer.train(Captions().texts, vocab_size=300)
    transform = t.caption_views(t.CaptionAugmentation(seed=seed), coder, 8, views=2)
    return Batches(Captions(), uniform(6, 4, seed=0), transform=transform, **share)


def test_batches_have_weak_and_strong_tokens_that_repeat():
    batch, again = batches()[5], batches()[5]
    assert batch["text"].shape == (4, 8)
    assert batch["text_views"].shape == (4, 2, 8)
    for name in ("text", "text_views"):
        np.testing.assert_array_equal(batch[name], again[name])


def test_draws_differ_by_step_seed_and_view():
    def drawn(seed, step, view):
        augment = t.CaptionAugmentation(seed=seed)
        return [augment(" ".join(WORDS), step=step, index=i, view=view) for i in range(30)]

    first = drawn(0, 0, 1)
    assert all(first != drawn(*other) for other in ((1, 0, 1), (0, 1, 1), (0, 0, 2)))


def test_processes_draw_as_one():
    whole = batches()[3]["text_views"]
    parts = [batches(process_index=i, process_count=2)[3]["text_views"] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_transform_sees_where_it_is():
    seen = []
    run = eval_batches(Captions(), batch_size=3, transform=lambda batch: seen.append(batch) or batch)
    assert run[1].keys() == {"step", "index", "skipped", "mask"}
    assert (seen[0]["index"].tolist(), seen[0]["at_step"]) == ([3, 4, 5], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_stop_words": 1.5}, "probability"),
        ({"delete_rate": -0.1}, "probability"),
        ({"swap": -1.0}, "weights"),
        ({"swap": 0.0, "delete": 0.0}, "only with a thesaurus"),
        ({"thesaurus": "nowhere.txt"}, "there is no nowhere.txt"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        t.CaptionAugmentation(**options)


def test_a_thesaurus_without_synonyms_is_refused(tmp_path):
    (tmp_path / "alone.txt").write_text("dog\ncat\n")
    with pytest.raises(InputError, match="no line with two synonyms"):
        t.load_thesaurus(tmp_path / "alone.txt")


def test_records_without_captions_are_refused():
    transform = t.caption_views(t.CaptionAugmentation(), tokenizer.train(["x"], vocab_size=300), 8, views=1)
    with pytest.raises(InputError, match="no 'text' to augment"):
        transform({"at_step": 0, "index": np.zeros(1, np.int32)})
