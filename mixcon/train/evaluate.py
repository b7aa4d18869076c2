"""Evaluate or export a checkpoint of a run by what the run's folder holds."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import tokenizers as hf

from mixcon import config as configs
from mixcon import data, models
from mixcon.errors import InputError
from mixcon.models.export import AMBIGUOUS, with_end_token
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints
from mixcon.train.logbook import json_line
from mixcon.train.state import Experiment, TrainState


class Restored(NamedTuple):
    """A run as its folder holds it: its config, what that built, and the state of a checkpoint."""

    config: ml_collections.ConfigDict
    experiment: Experiment
    state: TrainState
    step: int


def restore(workdir: pathlib.Path, *, step: int | None = None) -> Restored:
    """The state of a checkpoint of a run, on all devices of this process.

    Args:
      workdir: folder of a run.
      step: of the checkpoint; None takes the newest that can be read.

    Raises:
      InputError: not a run, or no readable checkpoint.
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
    return Restored(config, experiment, restored.state, restored.step)


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
    restored = restore(workdir, step=step)
    with jax.set_mesh(meshes.make_mesh()):
        values = loop.run_evals(restored.experiment, restored.state, workdir, restored.step)
    with (workdir / "metrics.jsonl").open("a") as file:  # where the report looks for them
        file.write(json_line(restored.step, values))
    return restored.step, values


def export(workdir: pathlib.Path, folder: pathlib.Path, *, step: int | None = None) -> str:
    """Writes the dual encoder of a run as a folder that `transformers` loads.

    Beside `config.json` and `model.safetensors` lie `tokenizer.json`, `tokenizer_config.json` and
    `preprocessor_config.json`. Nothing is written where something stands in the way.

    Args:
      workdir: folder of a run.
      folder: what to write. step: of the checkpoint; None takes the newest that can be read.

    Returns:
      A sentence that says what was written.

    Raises:
      InputError: not a run, no readable checkpoint, or a model of another form, see `models.export_clip`.

    Example:
      >>> print(export(pathlib.Path("runs/b32"), pathlib.Path("exported")))
    """
    restored = restore(workdir, step=step)
    config, spec = restored.config, restored.experiment.model
    if spec is None:
        raise InputError(f"a run of {config.experiment} has no image and text towers that could be exported")
    text, path = spec["text"], config.tokenizer.path or workdir / "tokenizer.json"
    words = data.tokenizer.load(path).padded_for(text.get("pool"))
    if spec.get("logit_bias") is None and text.get("eos_id") == AMBIGUOUS:  # as `export_clip` does to the table
        core = hf.Tokenizer.from_str(with_end_token(words.core.to_str(), text["vocab_size"]))
        words = dataclasses.replace(words, core=core, eos_id=text["vocab_size"])
    files = data.tokenizer.for_transformers(words, text["context_length"])
    written = models.export_clip(spec, jax.device_get(restored.state.averaged), folder)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    side = written["vision_config"]["image_size"]
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,  # bicubic
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")
    return f"step {restored.step} of {workdir} written to {folder} as {written['architectures'][0]}"
