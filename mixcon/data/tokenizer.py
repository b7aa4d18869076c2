"""Text to token ids: a byte-level BPE or WordPiece trained on the data, a `tokenizer.json`, or BERT's `vocab.txt`."""

from __future__ import annotations

import contextlib
import html
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mixcon.data.clip_tokenizer import clip_core, read_merges
from mixcon.errors import InputError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
MAX_IDS = 1 << 24  # a table of embeddings has a row for each
MAX_LETTERS = 1000  # of a trained WordPiece: rarer ones are unknown
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# How widely used tokenizer.json files call the three; the first that exists is taken.
_KNOWN = {
    "pad": (PAD, "<|pad|>", "[PAD]"),
    "bos": (BOS, "<|startoftext|>", "<s>", "[CLS]"),
    "eos": (EOS, "<|endoftext|>", "</s>", "[SEP]"),
}


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the ids that models need to know.

    `bos_id` is None when there is none. Where `pad_id == eos_id` (files without a padding token), the text ends at the
    *first* `eos_id`.
    """

    core: hf.Tokenizer
    pad_id: int
    bos_id: int | None
    eos_id: int
    vocab_size: int
    unescape: bool = False  # "&amp;" is "&", as CLIP has it

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """`[bos] tokens eos pad ...`; a long text loses its last tokens, never its eos.

        Args:
            texts: B strings.
            length: T, number of positions.

        Returns:
            int32 [B, T].

        Raises:
            InputError: no room for bos, one token and eos; a text that the file's tokenizer stumbles over.

        Example:
            >>> tokenizer = train(["red heart", "blue heart"] * 4, vocab_size=300)
            >>> tokenizer.encode(["red heart"], 8).shape
            (1, 8)
        """
        head = [] if self.bos_id is None else [self.bos_id]
        room = length - len(head) - 1
        if room < 1:
            raise InputError(
                f"length={length} leaves no room for a token beside bos and eos; it must be >= {len(head) + 2}."
            )
        if self.unescape:
            texts = [html.unescape(html.unescape(text)) for text in texts]
        tokens_BT = np.full((len(texts), length), self.pad_id, np.int32)
        with _in_words("tokenizer: these texts cannot be encoded by it"):
            encodings = self.core.encode_batch(list(texts), add_special_tokens=False)
        for row, encoding in zip(tokens_BT, encodings, strict=True):
            ids = [*head, *encoding.ids[:room], self.eos_id]
            row[: len(ids)] = ids
        return tokens_BT

    def padded_for(self, pool: str | None) -> Tokenizer:
        """The same for a tower that pools so: one that takes the "last" position finds an end token there, always."""
        return replace(self, pad_id=self.eos_id) if pool == "last" else self

    def decode(self, tokens_BT: np.ndarray) -> list[str]:
        """The texts again, special tokens left out.

        Example:
            >>> tokenizer = train(["red heart"], vocab_size=300)
            >>> tokenizer.decode(tokenizer.encode(["red heart"], 16))
            ['red heart']
        """
        ends = [int(np.argmax(row == self.eos_id)) if (row == self.eos_id).any() else len(row) for row in tokens_BT]
        special = {self.pad_id, self.bos_id}
        kept = [[int(i) for i in row[:end] if int(i) not in special] for row, end in zip(tokens_BT, ends, strict=True)]
        return self.core.decode_batch(kept, skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")  # processes may train at the same time: same content
        partial.write_text(self.core.to_str(pretty=True), encoding="utf-8")
        os.replace(partial, path)


def for_transformers(tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Files from which `transformers.AutoTokenizer` makes one that gives the same ids, ends and padding included.

    Only `unescape` is lost: "&amp;" stays what it is there.

    Args:
        tokenizer: of any kind that `load` reads.
        length: T, that of the model.

    Returns:
        `{file name: text}`.

    Example:
        >>> sorted(for_transformers(train(["red heart"], vocab_size=300), 16))
        ['tokenizer.json', 'tokenizer_config.json']
    """
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    names = {role: str(tokenizer.core.id_to_token(number)) for role, number in ids.items() if number is not None}
    core = hf.Tokenizer.from_str(tokenizer.core.to_str())
    core.post_processor = processors.TemplateProcessing(
        single=[*([names["bos"]] if "bos" in names else []), "$A", names["eos"]],
        special_tokens=[(name, core.token_to_id(name)) for name in dict.fromkeys(names.values())],
    )
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    said |= {f"{role}_token": name for role, name in names.items()}
    return {
        "tokenizer.json": core.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(said, indent=2, ensure_ascii=False) + "\n",
    }


def train(
    texts: Iterable[str], *, vocab_size: int = 4096, lowercase: bool = True, kind: Literal["bpe", "wordpiece"] = "bpe"
) -> Tokenizer:
    """A vocabulary from texts. Byte-level BPE: any string in any script can be encoded, nothing is ever unknown.

    WordPiece, as BERT has it, splits at spaces and punctuation first and knows the characters it was trained on.

    Args:
        texts: the training split.
        vocab_size: upper bound; of a BPE at least 259 (256 bytes and pad, bos, eos), of WordPiece at least 4.
        lowercase: fold case (as CLIP does); WordPiece then strips accents, too (as BERT does).
        kind: "bpe" or "wordpiece".

    Returns:
        A `Tokenizer`; BPE has pad 0, bos 1, eos 2, WordPiece [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3.

    Raises:
        InputError: `vocab_size` too small, an unknown kind.

    Example:
        >>> train(["grinning face"], vocab_size=300).eos_id
        2

    Reference:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.2; Devlin et al., BERT,
        2019, section 3.
    """
    if kind not in ("bpe", "wordpiece"):
        raise InputError(f"tokenizer: kind={kind!r} must be 'bpe' or 'wordpiece'.")
    if kind == "wordpiece":
        if vocab_size < len(_BERT) + 1:
            raise InputError(f"vocab_size={vocab_size} must be at least {len(_BERT) + 1}: the special tokens and one.")
        core = _train_wordpiece(texts, vocab_size, lowercase)
        return _with_ids(core, "the trained tokenizer", pad=_BERT[0], bos=_BERT[2], eos=_BERT[3])
    if vocab_size < 259:
        raise InputError(f"vocab_size={vocab_size} must be at least 259: 256 bytes and pad, bos, eos.")
    core = hf.Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return _with_ids(core, "the trained tokenizer", pad=PAD, bos=BOS, eos=EOS)


def load(path: str | Path, *, pad: str | None = None, bos: str | None = None, eos: str | None = None) -> Tokenizer:
    """Any `tokenizer.json` of the `tokenizers` library, the `vocab.txt` of a BERT, or the merges of OpenAI's CLIP.

    Args:
        path: the file. Beside it `tokenizer_config.json` or `special_tokens_map.json` may name the `pad_token`, and
            beside a `vocab.txt` the former may say `do_lower_case` (true by default). CLIP's merges are
            `bpe_simple_vocab_16e6.txt.gz`; texts are then padded with the end token, and unlike there broken Unicode is
            not mended.
        pad, bos, eos: the special tokens, where they are not among the widely used names.

    Raises:
        InputError: no such file, not a tokenizer, or no end-of-text token.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"tokenizer: there is no file {path}. Give the path of a tokenizer.json, or leave it out to train one."
        )
    with _in_words(f"tokenizer: {path} is not a tokenizer.json of the `tokenizers` library"):
        said = {} if path.suffix == ".gz" else _said_beside(path)
        if path.suffix == ".txt":
            vocabulary = models.WordPiece.from_file(str(path), unk_token="[UNK]")
            core = _wordpiece(vocabulary, said.get("do_lower_case", True))
        elif path.suffix == ".gz":
            core = clip_core(read_merges(path))
        else:
            core = hf.Tokenizer.from_file(str(path))
        named = said.get("pad_token") or ""
        named = named["content"] if isinstance(named, dict) else named
        if pad is None and core.token_to_id(named) is not None:
            pad = named
    core.no_padding()
    core.no_truncation()
    found = _with_ids(core, str(path), pad=pad, bos=bos, eos=eos)
    return replace(found, unescape=True) if path.suffix == ".gz" else found


def _said_beside(path: Path) -> dict[str, Any]:
    """What the files beside a tokenizer of a published model say about it."""
    files = (path.with_name(name) for name in ("special_tokens_map.json", "tokenizer_config.json"))  # the latter wins
    said = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return {key: value for each in said for key, value in each.items()}


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """The library raises plain `Exception`, and where its Rust code panics something that is not even that."""
    try:
        yield
    except BaseException as reason:
        if isinstance(reason, InputError | KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise InputError(f"{what} ({' '.join(str(reason).split())[:300]}).") from None


def _wordpiece(model: models.WordPiece, lowercase: bool) -> hf.Tokenizer:
    core = hf.Tokenizer(model)
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> hf.Tokenizer:
    """The library's trainer numbers pieces of one letter as its hash table has them, and breaks ties by these numbers:
    it is told them in order, as if they were special, and only the vocabulary is kept."""
    core = _wordpiece(models.WordPiece(unk_token="[UNK]"), lowercase)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(w for w, _ in core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update({letter: count * times for letter, times in Counter(word).items()})
    kept = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_LETTERS])
    inside = {f"##{letter}" for word in words for letter in word[1:] if letter in kept}
    known = [*_BERT, *sorted(kept), *sorted(inside)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(known)), min_frequency=2, special_tokens=known, show_progress=False
    )
    core.train_from_iterator((word for word, count in sorted(words.items()) for _ in range(count)), trainer)
    trained = _wordpiece(models.WordPiece(core.get_vocab(), unk_token="[UNK]"), lowercase)
    trained.add_special_tokens(list(_BERT))
    return trained


def load_or_train(
    path: str | Path,
    texts: Callable[[], Iterable[str]],
    *,
    vocab_size: int = 4096,
    kind: Literal["bpe", "wordpiece"] = "bpe",
) -> Tokenizer:
    """The tokenizer saved at `path` (a run's `tokenizer.json`); trained on `texts()` and saved there the first time."""
    if Path(path).exists():
        return load(path)
    tokenizer = train(texts(), vocab_size=vocab_size, kind=kind)
    tokenizer.save(path)
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, length: int, *, field: str = "text", out: str = "tokens"
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A pipeline transform: `batch[out] = tokenizer.encode(batch[field], length)`.

    Raises:
        InputError: (on reading) records without that field.

    Example:
        >>> transform = tokenize(train(["red heart"], vocab_size=300), 16)
        >>> transform({"text": ["red heart"]})["tokens"].shape
        (1, 16)
    """

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        if field not in batch:
            raise InputError(f"records have no {field!r} to tokenize; they have {', '.join(sorted(batch))}.")
        return batch | {out: tokenizer.encode(batch[field], length)}

    return transform


def _with_ids(core: hf.Tokenizer, where: str, *, pad: str | None, bos: str | None, eos: str | None) -> Tokenizer:
    ids: dict[str, int | None] = {}
    for role, given in (("pad", pad), ("bos", bos), ("eos", eos)):
        found = [core.token_to_id(name) for name in ((given,) if given else _KNOWN[role])]
        ids[role] = next((i for i in found if i is not None), None)
        if given and ids[role] is None:
            raise InputError(f"tokenizer: {where} has no token {given!r} ({role}).")
    if ids["eos"] is None:
        raise InputError(f"tokenizer: {where} has none of the end-of-text tokens {_KNOWN['eos']}; name it with eos=.")
    pad_id = ids["eos"] if ids["pad"] is None else ids["pad"]
    size = max(core.get_vocab().values()) + 1  # not their number: a file may leave ids out
    if size > MAX_IDS:
        raise InputError(f"tokenizer: {where} has the token id {size - 1}; at most {MAX_IDS:,} ids are allowed.")
    return Tokenizer(core, pad_id=pad_id, bos_id=ids["bos"], eos_id=ids["eos"], vocab_size=size)
