"""What a frozen network says of every record, computed once and kept on disk under a name made from both."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixcon.data.beside import Parts
from mixcon.data.pipeline import Transform, eval_batches
from mixcon.data.records import BadRecord, Source
from mixcon.data.sources import Subset
from mixcon.errors import InputError
from mixcon.evals.embed import embedder
from mixcon.models.functional import path_names
from mixcon.train.checkpoint import write_atomically

ROWS = 1 << 16  # in a file: what is computed again after an interruption, at most
SAMPLED = 16  # records that the digest looks into


def cached_features(
    encode: Callable[[Any, dict[str, jax.Array]], Mapping[str, jax.Array]],
    params: Any,
    source: Source,
    *,
    folder: str | Path,
    about: str = "",
    transform: Transform | None = None,
    batch_size: int = 256,
    rows: int = ROWS,
    max_bad_share: float = 0.01,
) -> dict[str, Parts]:
    """Features of a source by a network that is not trained, from disk if they are there.

    They lie in `folder/<digest>/<name>-<part>.npy`; the digest is of the parameters, of `about`, of the number of
    records and of some of them. A file is there whole or not at all, so that after an interruption only one of them is
    computed again. Rows of records that cannot be read are NaN. Several processes compute together and process 0
    writes: the folder must be one that all of them see.

    Args:
      encode: (parameters, batch of arrays [B, ...]) -> arrays [B, D], deterministic: no augmentation, no dropout.
      params: of the network, everything that its output depends on.
      source: random-access records.
      folder: of all caches.
      about: what else the features depend on, in words: the config of the data, of the network.
      transform: of host batches (tokenisation).
      batch_size: for one call of `encode`; a multiple of the devices. rows: in one file.
      max_bad_share: of records, see `Batches`.

    Returns:
      name -> rows in the order of the source; give them to `mixcon.data.beside.Beside`.

    Raises:
      InputError: no records, or too many bad ones.

    Example:
      >>> image = cached_features(encode, params, source, folder=workdir / "features", about=to_json(config.data.train))
      >>> source = Beside(source, image, without=("image",))
    """
    if not len(source) or rows < 1:
        raise InputError(f"there is nothing to compute features of: {len(source)} records, {rows} rows in a file.")
    place = Path(folder) / digest(params, source, about)
    place.mkdir(parents=True, exist_ok=True)
    compute = embedder(encode)
    starts = range(0, len(source), rows)
    for part, start in enumerate(starts):
        done = place / f"part-{part:05d}"  # written last: the names of the features of this part
        if done.exists():
            continue
        piece = Subset(source, np.arange(start, min(start + rows, len(source))))
        batches = eval_batches(
            piece,
            batch_size=batch_size,
            transform=transform,
            max_bad_share=max_bad_share,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        found = compute(params, batches)
        index = found.pop("index")
        if jax.process_index() == 0:
            for name, known in found.items():
                every = np.full((len(piece), *known.shape[1:]), np.nan, known.dtype)
                every[index] = known
                write_atomically(place / f"{name}-{part:05d}.npy", as_npy(every))
            write_atomically(done, "\n".join(found))
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("features")
    names = (place / "part-00000").read_text().split("\n")
    return {name: Parts([place / f"{name}-{part:05d}.npy" for part in range(len(starts))]) for name in names}


def digest(params: Any, source: Source, about: str) -> str:
    """A name that changes with the parameters, with what is said about the data, and with what a few records hold."""
    seen = hashlib.sha256(about.encode())
    for name, leaf in zip(path_names(params), jax.tree.leaves(params), strict=True):
        array = np.asarray(jax.device_get(leaf))
        seen.update(f"{name} {array.dtype} {array.shape}\n".encode())
        seen.update(np.ascontiguousarray(array).tobytes())
    seen.update(f"{len(source)} records\n".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)):
        try:
            record = source[int(index)]
        except BadRecord:
            record = {}
        for name in sorted(record):
            value = record[name]
            content = value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
            seen.update(f"{index} {name}\n".encode() + content)
    return seen.hexdigest()[:24]


def as_npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
