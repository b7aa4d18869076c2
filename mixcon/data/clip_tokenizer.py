"""The tokenizer of CLIP from its list of merges, as OpenAI and open_clip ship it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import tokenizers as hf
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mixcon.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 48_894
WORD_END = "</w>"
PIECE = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # contractions, words, single digits, the rest


def byte_symbols() -> list[str]:
    """One printable character for each byte, in the order of the vocabulary: printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def clip_core(merges: Sequence[tuple[str, str]]) -> hf.Tokenizer:
    """Byte pairs are merged in this order, inside words; the vocabulary is in the order of the published one.

    Args:
        merges: pairs of symbols.

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section
        2.4.
    """
    symbols = byte_symbols()
    names = [*symbols, *(symbol + WORD_END for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    vocabulary = {name: number for number, name in enumerate(names)}
    core = hf.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix=WORD_END))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(WORD_END, " ")])
    core.add_special_tokens([START, END])
    return core


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of `bpe_simple_vocab_16e6.txt.gz`; its further lines are not part of CLIP's vocabulary.

    Raises:
        InputError: another file.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as reason:
        raise InputError(f"tokenizer: {path} is not a gzipped list of merges ({reason}).") from None
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != MERGES or any(len(pair) != 2 for pair in merges):
        raise InputError(f"tokenizer: {path} has not CLIP's {MERGES:,} merges of two symbols each.")
    return merges  # type: ignore[return-value]
