"""Runs that stand on another run: a saved one, or one that is trained first in a folder of its own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import ml_collections

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.models.functional import flatten
from mixcon.train import evaluate, loop
from mixcon.train.state import PyTree


def earlier(
    start: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    seed: int,
    name: str = "start",
    like: Callable[[jax.Array], tuple] | None = None,
) -> tuple[PyTree, PyTree]:
    """Parameters (their average, where one was kept) and layer state of an earlier run, on the host.

    Args:
      start: `run`, the folder of a run; or `training`, the config of one, which is trained in `workdir/name` unless it
        has been, and resumed if it was cut off.
      workdir: of the run that asks.
      seed: of the earlier run, where it is trained here.
      name: of its folder.
      like: key -> params, extra, ...: of the model that is to go on from there; names and shapes must be the same.

    Raises:
      InputError: neither or both are given; the run is of another model; or what loading or training refuses.

    Example:
      >>> params, extra = earlier(config.start, workdir, seed=config.seed, like=model.init)
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
    found = jax.device_get((state.averaged, state.extra))
    return found if like is None else fitting(found, like, of=run or str(workdir / name))


def fitting(found: tuple[PyTree, PyTree], like: Callable[[jax.Array], tuple], *, of: str) -> tuple[PyTree, PyTree]:
    """Parameters and layer state of a run, if they are of the model that is to take them.

    Args:
      found: what the run has.
      like: key -> params, extra, ...: of the model.
      of: the run, for the message.

    Raises:
      InputError: names the first of them that one has and the other has not, or whose shapes differ.

    Example:
      >>> params, extra = fitting(found, model.init, of="runs/mine")
    """
    for has, wants in zip(map(shapes, found), map(shapes, jax.eval_shape(like, jax.random.key(0))), strict=False):
        for path in (*wants, *has):
            if has.get(path) != wants.get(path):
                there, here = (f"of shape {each[path]}" if path in each else "absent" for each in (has, wants))
                raise InputError(f"{of} is a run of another model: {path!r} is {there} there and {here} here.")
    return found


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path."""
    return {path: leaf.shape for path, leaf in flatten(tree).items()}
