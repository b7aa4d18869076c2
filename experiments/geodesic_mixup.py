"""Fine-tuning with mixtures (geodesic, or M3CoL's): a trained pair of encoders, and the loss that goes on from there.

The encoders and their evaluations are those of `config.encoders`, such as `experiments.contrastive_gap`; what they
begin with is a saved run, or one that is trained first (`config.start`; empty, as for a plan: nothing). Weights of
CLIP are `experiments.clip` with `init_from`, and need nothing of this.
"""

from __future__ import annotations

import pathlib

import ml_collections

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train.stages import earlier
from mixcon.train.state import Experiment


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """The encoders that the config names, at the point where they are to go on from."""
    if config.encoders == "experiments.geodesic_mixup":
        raise InputError("encoders must name another experiment, such as experiments.contrastive_gap")
    experiment = configs.resolve(f"{config.encoders}.build")(config, workdir)
    if not config.start:
        return experiment
    return experiment._replace(pretrained=earlier(config.start, workdir, seed=config.seed, like=experiment.init))


def untouched(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """A study's measure: what the encoders are like before fine-tuning."""
    from mixcon.train import evaluate

    earlier(config.start, workdir, seed=config.seed)
    return evaluate.evaluate(workdir / "start")[1]
