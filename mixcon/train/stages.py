"""Runs that stand on another run: a saved one, or one that is trained first in a folder of its own."""

from __future__ import annotations

import pathlib

import jax
import ml_collections

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import evaluate, loop
from mixcon.train.state import PyTree


def earlier(
    start: ml_collections.ConfigDict, workdir: pathlib.Path, *, seed: int, name: str = "start"
) -> tuple[PyTree, PyTree]:
    """Parameters (their average, where one was kept) and layer state of an earlier run, on the host.

    Args:
      start: `run`, the folder of a run; or `training`, the config of one, which is trained in `workdir/name` unless it
        has been, and resumed if it was cut off.
      workdir: of the run that asks.
      seed: of the earlier run, where it is trained here.
      name: of its folder.

    Raises:
      InputError: neither or both are given; or what loading or training refuses.

    Example:
      >>> params, extra = earlier(config.start, workdir, seed=config.seed)
    """
    run, training = start.get("run", ""), start.get("training")
    if bool(run) == bool(training):
        raise InputError("want run=, the folder of a run, or training=, the config of one that comes first")
    if run:
        state = evaluate.restore(pathlib.Path(run)).state
    else:
        config = ml_collections.ConfigDict(configs.plain(training))
        config.seed = seed
        state = loop.train(config.lock(), workdir / name, progress=False)
    return jax.device_get((state.averaged, state.extra))
