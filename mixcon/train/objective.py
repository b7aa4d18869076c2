"""The objective that a config names, with memory or without, as one thing to call."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from mixcon import config as configs
from mixcon.objectives.objective import Objective


def pair_objective(piece: Mapping[str, Any], *, num_examples: int) -> Objective:
    """An objective of two representations of a batch.

    A function that returns an `Objective` is called, with the number of training examples if it asks for them. Any
    other is a loss `(first, second, **keywords) -> loss, metrics` and becomes an `Objective` that remembers nothing;
    it is told `index`, `epoch` and the step's `key` if it has arguments of these names.

    Args:
      piece: its dotted name and arguments; an argument may be a piece, too, such as a rate that follows the epoch,
        `rate=dict(name="mixcon.objectives.by_epoch.cosine_rate", start=0.03, epochs=30)`.
      num_examples: size of the training set; ids in `index` are below it.

    Returns:
      `apply(state, first, second, *, index, epoch, key=None, **keywords) -> (loss, metrics, state)`.

    Raises:
      InputError: an unknown name or argument.

    Example:
      >>> objective = pair_objective({"name": "mixcon.objectives.isogclr_clip", "radius": 0.1}, num_examples=1500)
      >>> loss, metrics, state = objective.apply(state, image, text, index=batch["index"], epoch=epoch)
    """
    whole = {key: configs.call(value) if _is_piece(value) else value for key, value in piece.items()}
    make, function = configs.partial(whole), configs.resolve(piece["name"])
    asks = inspect.signature(function).parameters
    if typing.get_type_hints(function).get("return") is Objective:
        made = make(num_examples=num_examples) if "num_examples" in asks else make()

        def remembering(*arguments: Any, key: Any = None, **keywords: Any) -> Any:
            return made.apply(*arguments, **keywords)

        return Objective(made.init, remembering)

    def apply(state: Any, first: Any, second: Any, *, index: Any, epoch: Any, key: Any = None, **keywords: Any) -> Any:
        offered = {"index": index, "epoch": epoch, "key": key}
        told = {name: value for name, value in offered.items() if name in asks}
        loss, metrics = make(first, second, has_aux=True, **told, **keywords)
        return loss, metrics, state

    return Objective(dict, apply)


def _is_piece(value: Any) -> bool:
    return hasattr(value, "keys") and "name" in value
