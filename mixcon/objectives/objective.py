"""The contract of objectives that carry state from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Objective(NamedTuple):
    """An objective with state: a queue, per-sample denominators or temperatures, centres, prototypes.

    `init() -> state` makes the state, a pytree of plain arrays that is checkpointed and sharded with the model's.
    `apply(state, reps, targets, ...) -> (loss, aux, state)` is pure: it sees representations and targets, never images,
    and returns the next state, through which no gradient flows. `aux` is a dict of scalars.

    Stateless objectives are plain functions of representations; this pair is only for those that must remember.

    Example:
      >>> objective = cross_batch_memory(size=4096, dim=128, temperature=0.1)
      >>> state = objective.init()
      >>> loss, aux, state = objective.apply(state, features, labels)
    """

    init: Callable[..., Any]
    apply: Callable[..., tuple[Any, dict[str, Any], Any]]
