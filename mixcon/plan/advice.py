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
    at_most: int = 5,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Change, Plan]]:
    """Changes to a config that does not fit, each compiled, until one fits or `at_most` were tried.

    In the order in which they cost least: recomputation, parameters split over the data axis, gradient caching in
    parts (the exact gradient, one more forward pass), a smaller batch (another training run). A change that saved
    memory, if not enough, stays while the next one is tried; one that did not is dropped.

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
    kept: Change = ()
    best, seen = found, {kept}
    for move in MOVES:
        more = move(changed(config, kept), best)
        change = kept if more is None else (*(each for each in kept if name_of(each) != name_of(more)), more)
        if change in seen or len(seen) > at_most:
            continue
        say(f"trying {' '.join(f'--config.{each}' for each in change)}")
        seen.add(change)
        try:
            tried = plan(changed(config, change), topology, name=found.config)
        except InputError as error:
            say(f"  refused: {error}")
            continue
        yield change, tried
        if tried.fits:
            return
        if tried.total < best.total:
            kept, best = change, tried


def recompute(config: ml_collections.ConfigDict, best: Plan) -> str | None:
    """Activations again in the backward pass."""
    return "model.remat=True" if config.get("model", {}).get("remat") is False else None


def split_parameters(config: ml_collections.ConfigDict, best: Plan) -> str | None:
    """Parameters and optimiser over the data axis, where they are what fills the chip."""
    large = best.params + best.optimizer > (best.memory or float("inf")) / 4
    return "sharding.fsdp=True" if large and not config.sharding.fsdp else None


def cache_gradients(config: ml_collections.ConfigDict, best: Plan) -> str | None:
    """The batch in so many parts that one part's activations should fit."""
    parts = config.gradient.get("parts", 1)
    factor = min(excess(best), best.batch_size // best.mesh["data"] // parts)
    text = f"gradient={{'name':'mixcon.train.gradients.grad_cache','parts':{parts * factor}}}"
    return text if factor > 1 else None


def shrink_batch(config: ml_collections.ConfigDict, best: Plan) -> str | None:
    """A batch that should fit."""
    factor = min(excess(best), best.batch_size // best.mesh["data"] // config.gradient.get("parts", 1))
    return f"batch_size={best.batch_size // factor}" if factor > 1 else None


MOVES = (recompute, split_parameters, cache_gradients, cache_gradients, shrink_batch)


def excess(plan: Plan) -> int:
    """By which power of two, at least 2, temporaries must shrink."""
    if plan.temporaries == float("inf"):
        return 8
    limit = plan.memory or float("inf")
    free = max(limit - (plan.total - plan.temporaries), limit / 8)
    factor = 2
    while plan.temporaries > factor * ROOM * free:
        factor *= 2
    return factor


def changed(config: ml_collections.ConfigDict, change: Change) -> ml_collections.ConfigDict:
    """The config with overrides applied."""
    return configs.override(config, [f"--config.{each}" for each in change])


def name_of(override: str) -> str:
    """The field that an override sets."""
    return override.partition("=")[0]
