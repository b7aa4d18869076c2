"""From a config and the pieces that are a method's own to an `Experiment`: what every experiment shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from mixcon import config as configs
from mixcon import data
from mixcon.data.pipeline import Transform
from mixcon.data.sampling import Sampler
from mixcon.train import optim
from mixcon.train.gradients import Gradient
from mixcon.train.state import Evaluator, Experiment, PyTree, Task
from mixcon.train.step import make_step


def assemble(
    config: ml_collections.ConfigDict,
    *,
    init: Callable[[jax.Array], tuple[PyTree, PyTree, PyTree]],
    task: Task,
    source: data.Source,
    evals: Mapping[str, Evaluator],
    around: Callable[[Gradient], Gradient] = lambda gradient: gradient,
    constrain: Callable[[PyTree], PyTree] = lambda params: params,
    transform: Transform | None = None,
    sampler: Sampler | None = None,
    pretrained: tuple[PyTree, PyTree] | None = None,
    fixed: Mapping[str, PyTree] | None = None,
) -> Experiment:
    """Optimiser, step, batches and evaluations as the config names them.

    Args:
      config: with the keys of every experiment: batch_size, steps, seed, ema, nonfinite, `gradient`, `schedule`,
        `optimizer`, and `data` with max_bad_share, threads, prefetch. `patience`, if there: the run ends after so many
        steps without a lower training loss. `plateau`, if there: arguments of `optim.on_plateau`.
      init: key -> params, extra, objective state.
      task: what a step optimises.
      source: records to train on.
      evals: evaluators by name.
      around: wraps the gradient, `functools.partial(ema_teacher, momentum=0.99)`.
      constrain: projection of the parameters after each update.
      transform: of host batches (tokenisation).
      sampler: step -> indices, instead of shuffled epochs.
      pretrained: params and extra to start from.
      fixed: arrays on the host that are part of every batch and never change, such as a graph: placed on the devices
        once, whole on each, and merged into every batch under these names.

    Example:
      >>> return assemble(config, init=init, task=Task(prepare, encode, objective), source=source, evals=evals)
    """
    rate = optim.schedule(steps=config.steps, **config.schedule)
    arguments = configs.plain(config.optimizer)
    arguments["overrides"] = optim.own_schedules(arguments.get("overrides", ()), config.steps)
    optimizer = optim.optimizer(learning_rate=rate, **arguments)
    patience, monitor = config.get("patience", 0), None
    if plateau := configs.plain(config.get("plateau", {})):
        optimizer, monitor = optim.on_plateau(optimizer, **plateau)
    step = make_step(
        around(configs.call(config.gradient, task)),
        optimizer,
        constrain=constrain,
        ema_decay=config.ema or None,
        nonfinite=config.nonfinite,
        patience=patience,
        monitor=monitor,
    )
    return Experiment(
        init=init,
        pretrained=pretrained,
        optimizer=optimizer,
        step=step,
        batches=lambda: data.train_iterator(
            source,
            batch_size=config.batch_size,
            seed=config.seed,
            sampler=sampler,
            transform=transform,
            max_bad_share=config.data.max_bad_share,
            num_threads=config.data.threads,
            prefetch=config.data.prefetch,
            **process_share(),
        ),
        evals=evals,
        steps_per_epoch=len(source) / config.batch_size,
        fixed=fixed or {},
        patience=patience,
        task=task,
    )


def process_share() -> dict[str, Any]:
    """Which slice of each batch this process reads."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
