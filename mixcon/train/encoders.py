"""A trained dual encoder in two functions: from pictures and from words to unit rows of one space."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image

from mixcon import config as configs
from mixcon import data, models
from mixcon.data.records import cover, read
from mixcon.errors import InputError
from mixcon.train.evaluate import restore

CHUNK = 64  # rows at a time: one shape, compiled once, and small enough to answer at once


class Encoders(NamedTuple):
    """`images(pictures)` and `texts(words)` -> float32 [N, D], unit rows: their products are cosines."""

    images: Callable[[Sequence[Any]], np.ndarray]  # uint8 [h, w, 3] each, of any size: scaled to cover, centre cut
    texts: Callable[[Sequence[str]], np.ndarray]
    step: int  # of the checkpoint


def encoders(workdir: str | pathlib.Path, *, step: int | None = None) -> Encoders:
    """The two sides of a run of `experiments.clip` and its relatives, ready to be asked; both are compiled here.

    Args:
      workdir: folder of a run.
      step: of the checkpoint; None takes the newest that can be read.

    Raises:
      InputError: not a run, no readable checkpoint, or a run without image and text towers.

    Example:
      >>> find = encoders("runs/clip")
      >>> cosines = find.texts(["red apple"]) @ find.images(pictures).T
    """
    workdir = pathlib.Path(workdir)
    restored = restore(workdir, step=step)
    config, spec = restored.config, restored.experiment.model
    if spec is None:
        raise InputError(f"a run of {config.experiment} has no image and text towers that could be asked")
    network = models.functional(models.build(spec))
    tokenizer = data.tokenizer.load(config.tokenizer.path or workdir / "tokenizer.json")
    params, extra = jax.device_put(jax.device_get((restored.state.averaged, restored.state.extra)), jax.devices()[0])
    length, size = spec["text"]["context_length"], picture_size(config, spec)

    @jax.jit
    def image_rows(params: Any, pixels: jax.Array) -> jax.Array:
        pixels = data.augment.normalize(data.augment.to_float(pixels), config.image_mean, config.image_std)
        return network.apply(params, extra, pixels, method="encode_image")[0]

    @jax.jit
    def text_rows(params: Any, tokens: jax.Array) -> jax.Array:
        return network.apply(params, extra, tokens, method="encode_text")[0]

    def ready(picture: Any) -> np.ndarray:
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(f"a picture must be uint8 [h, w, 3], not {pixels.dtype} {list(pixels.shape)}")
        return pixels if pixels.shape[:2] == size else cover(Image.fromarray(pixels), *size)

    def images(pictures: Sequence[Any]) -> np.ndarray:
        return in_chunks(lambda rows: image_rows(params, rows), [ready(picture) for picture in pictures])

    def texts(words: Sequence[str]) -> np.ndarray:
        return in_chunks(lambda rows: text_rows(params, rows), tokenizer.encode(list(words), length))

    texts([""])
    images([np.zeros((*size, 3), np.uint8)])
    return Encoders(images, texts, restored.step)


def picture_size(config: ml_collections.ConfigDict, spec: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the image tower takes or, where it takes any, of the pictures that it is evaluated on."""
    if side := spec["image"].get("image_size"):
        return (side, side) if isinstance(side, int) else (side[0], side[1])
    for piece in (*config.data.evals.values(), config.data.train):
        if "size" in piece:
            height, width = piece["size"]
            return height, width
    shape = next(read(configs.call(config.data.train), at_most=1))["image"].shape
    return shape[0], shape[1]


def in_chunks(function: Callable[[np.ndarray], jax.Array], rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """`function` of `CHUNK` rows at a time; the last ones are filled up, and what fills is taken off again."""
    if not len(rows):
        raise InputError("there is nothing to encode")
    found = []
    for start in range(0, len(rows), CHUNK):
        chunk = np.asarray(rows[start : start + CHUNK])
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], CHUNK - len(chunk), axis=0)])
        found.append(np.asarray(function(filled))[: len(chunk)])
    return np.concatenate(found)
