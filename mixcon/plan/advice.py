"""What to change when a program does not fit: each change is compiled, and those that fit are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_collections

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.plan.chips import Topology
from mixcon.plan.compile import Plan, plan

Change = tuple[str, ...]  # overrides, as on the command line after --config.
ROOM = 0.8  # of the free memory that an estimate may fill: what a compiler needs does not scale exactly


def advise(
    config: ml_collections.ConfigDict,
    topology: Topology,
    found: Plan,
    *,
    at_most: int = 4,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Change, Plan]]:
    """Changes to a config that does not fit, each compiled, until one fits or `at_most` were tried.

    In the order in which they cost least: recomputation, parameters split over the data axis, gradient caching in
    parts (the exact gradient, one more forward pass), a smaller batch (another training run).

    Args:
      config: what did not fit.
      topology: where.
      found: its plan.
      at_most: compilations.
      say: told what is tried.

    Example:
      >>> for change, plan in advise(config, topology, plan(config, topology)):
      ...     print(change, plan.fits)
    """
    for change in list(candidates(config, found))[:at_most]:
        say(f"trying {' '.join(f'--config.{each}' for each in change)}")
        try:
            tried = plan(changed(config, change), topology, name=found.config)
        except InputError as error:
            say(f"  refused: {error}")
            continue
        yield change, tried
        if tried.fits:
            return


def candidates(config: ml_collections.ConfigDict, found: Plan) -> Iterator[Change]:
    """Changes worth compiling, cheapest for the user first."""
    kept: Change = ()
    if config.get("model", {}).get("remat") is False:
        kept = (*kept, "model.remat=True")
        yield kept
    limit = found.memory or float("inf")
    if not config.sharding.fsdp and found.params + found.optimizer > limit / 4:
        kept = (*kept, "sharding.fsdp=True")
        yield kept
    free = max(limit - (found.total - found.temporaries), limit / 8)
    factor = power_of_two(found.temporaries / (ROOM * free)) if found.temporaries < float("inf") else 8
    per_chip = found.batch_size // found.mesh["data"]
    for parts in dict.fromkeys(min(n, per_chip) for n in (factor, 2 * factor)):
        parts *= config.gradient.get("parts", 1)
        if parts > 1:
            yield (*kept, f"gradient={{'name':'mixcon.train.gradients.grad_cache','parts':{parts}}}")
    if factor > 1 and per_chip >= factor:
        yield (*kept, f"batch_size={found.batch_size // factor}")


def changed(config: ml_collections.ConfigDict, change: Change) -> ml_collections.ConfigDict:
    """The config with overrides applied."""
    return configs.override(config, [f"--config.{each}" for each in change])


def power_of_two(least: float) -> int:
    """The smallest power of two that is no less."""
    power = 1
    while power < least:
        power *= 2
    return power
