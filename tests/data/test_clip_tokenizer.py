"""CLIP's tokenizer: the ids of the original code, from those of its merges that the texts can meet."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mixcon.data.clip_tokenizer import MERGES, byte_symbols
from mixcon.data.tokenizer import load
from mixcon.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As many merges as CLIP's: the 78 that matter in their places, and between them pairs that never occur."""
    needed = {int(rank): tuple(pair) for rank, pair in json.loads((GOLDEN / "clip_merges.json").read_text()).items()}
    with np.load(GOLDEN / "align.npz") as golden:
        met = set("".join(golden["c6/in/texts"]).lower().encode())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    unseen = [symbol for byte, symbol in zip(order, byte_symbols(), strict=True) if byte not in met]
    others = itertools.product(unseen, byte_symbols())
    lines = ["#version", *(" ".join(needed.get(i) or next(others)) for i in range(MERGES)), "one more"]
    path = tmp_path_factory.mktemp("clip") / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_ids_are_those_of_the_original_code(file):
    tokenizer = load(file)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49_408, 49_406, 49_407)
    with np.load(GOLDEN / "align.npz") as golden:
        texts, length, expected = (golden[f"c6/{k}"] for k in ("in/texts", "in/context_length", "out/token_ids"))
    ids = tokenizer.encode([str(text) for text in texts], int(length))
    for row, want in zip(ids, expected, strict=True):
        end = int(np.argmax(want == 49_407))
        np.testing.assert_array_equal(row[: end + 1], want[: end + 1])
        assert (row[end:] == 49_407).all()  # the original pads with 0, which is also the id of "!"
    assert tokenizer.decode(ids[:1])[0].split() == ["a", "photo", "of", "a", "cat", "."]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="not a gzipped list"):
        load(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(InputError, match=r"48,894 merges"):
        load(tmp_path / "b.txt.gz")
