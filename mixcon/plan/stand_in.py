"""A config whose data need not be here: the same shapes, from records of the same fields."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
import tokenizers as hf
from tokenizers import models

from mixcon import config as configs
from mixcon.data.records import Record
from mixcon.data.tokenizer import load
from mixcon.errors import InputError

NUMBER = 1 << 20  # stand-in records; only their shapes are looked at


class Records:
    """Grey images with a caption, or the captions of the fields `texts`, and a label of class 0.

    Example:
        >>> Records((4, 4))[0]["image"].shape
        (4, 4, 3)
    """

    def __init__(self, size: tuple[int, int], texts: Sequence[str] = ("text",)):
        self.record: Record = {"image": np.zeros((*size, 3), np.uint8), "label": np.int32(0)}
        self.record |= dict.fromkeys(texts, "a photo")

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> Record:
        return self.record


class Numbers:
    """Records of zeros of the given shapes, and a label of class 0, for a config's `stand_in`.

    Example:
        >>> Numbers(speech=(3000, 80))[0]["speech"].shape
        (3000, 80)
    """

    def __init__(self, **shapes: tuple[int, ...]):
        self.record: Record = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self.record["label"] = np.int32(0)

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> Record:
        return self.record


def with_stand_ins(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[ml_collections.ConfigDict, str]:
    """A copy of the config that builds without its files, and in words what was replaced.

    Evaluations are left out; a training set, a tokenizer or pretrained weights that are not here are stood in for, by
    what the config itself says in `stand_in` (overrides, "data.train={...}") or else by grey images with captions.
    Nothing is trained or embedded: an earlier run is left out, and a frozen tower always has its `stand_in`.

    Raises:
      InputError: a frozen tower whose config says no `stand_in`.
    """
    found, replaced = configs.from_json(configs.to_json(config)), []
    with found.unlocked():
        if weights := [found[key] for key in ("init_from", "text_init_from") if found.get(key, "")]:
            found.init_from, found.text_init_from = "random", ""
            replaced.append(f"the weights in {' and '.join(weights)} by random ones")
        for key in ("evals", "classes"):
            if key in found.data:
                found.data[key] = {}
        for key in ("zero_shot", "probes"):
            if key in found:
                found[key] = ()
        if "start" in found:
            found.start = {}
            replaced.append("the run that comes first by its shapes")
        frozen, own = "frozen" in found, found.get("stand_in", ())
        if frozen and not own:
            raise InputError("features of a frozen tower are not computed for a plan; say in stand_in= what stands in")
        if frozen or not here(found.data.train):
            if own:
                found = configs.override(found, [f"--config.{each}" for each in own])
                replaced.append(("a frozen tower" if frozen else "whatever is not here") + " by " + ", ".join(own))
            else:
                size = found.data.train.get("size") or [found.model.image.image_size] * 2
                found.data.train = dict(name="mixcon.plan.stand_in.Records", size=tuple(size))
                replaced.append("the training set by grey images with captions and labels")
        if "tokenizer" in found and found.tokenizer.path:
            try:
                load(found.tokenizer.path)
            except InputError:
                found.tokenizer.path = str(write_tokenizer(workdir / "stand_in.json", found.tokenizer.vocab_size))
                replaced.append(f"the tokenizer by one of {found.tokenizer.vocab_size:,} tokens")
    return found.lock(), " and ".join(replaced)


def here(source: ml_collections.ConfigDict) -> bool:
    """Whether a source can be opened."""
    try:
        configs.call(source)
    except InputError:
        return False
    return True


def write_tokenizer(path: pathlib.Path, vocab_size: int) -> pathlib.Path:
    """A tokenizer of as many tokens, whose texts mean nothing."""
    words = {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    words |= {f"w{i}": i for i in range(vocab_size - 2)}
    core = hf.Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    core.save(str(path))
    return path
