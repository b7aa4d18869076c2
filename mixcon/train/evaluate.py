"""Evaluate a checkpoint of a run by what the run's folder holds."""

from __future__ import annotations

import pathlib

import jax

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints
from mixcon.train.logbook import json_line


def evaluate(workdir: pathlib.Path, *, step: int | None = None) -> tuple[int, dict[str, float]]:
    """Run the experiment's evaluators on a checkpoint.

    Args:
      workdir: folder of a run.
      step: of the checkpoint; None takes the newest that can be read.

    Returns:
      `(step, {name: value})`; the report finds both the values, in `metrics.jsonl`, and the artifacts, in
      `evals/<step>`.

    Raises:
      InputError: not a run, or no readable checkpoint.

    Example:
      >>> step, values = evaluate(pathlib.Path("runs/clip"))
    """
    try:
        config = configs.from_json((workdir / "config.json").read_text())
    except OSError as error:
        raise InputError(f"{workdir} is not the folder of a run: it has no config.json") from error
    except ValueError as error:
        raise InputError(f"{workdir / 'config.json'} is damaged ({error}); start the run's command again") from error
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        try:
            experiment = loop.build(config, workdir)
        except (AttributeError, KeyError) as error:  # a key that this version reads and that one did not write
            raise InputError(f"{workdir}/config.json was written by another version of mixcon: {error}") from error
        shapes, places = loop.state_layout(experiment, config, mesh)
        restored = Checkpoints(workdir, read_only=True).restore(loop.with_sharding(shapes, places), step=step)
        if restored is None:
            raise InputError(f"{workdir} has no checkpoint yet; train it with `mixcon train --workdir {workdir} ...`")
        for sentence in restored.warnings:
            print(f"warning: {sentence}")
        values = loop.run_evals(experiment, restored.state, workdir, restored.step)
    with (workdir / "metrics.jsonl").open("a") as file:  # where the report looks for them
        file.write(json_line(restored.step, values))
    return restored.step, values
