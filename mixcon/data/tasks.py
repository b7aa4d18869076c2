"""Sources of tasks: every record is a small regression problem of its own."""

from __future__ import annotations

import numpy as np

from mixcon.data.records import Record
from mixcon.errors import InputError


class Sinusoids:
    """Sine waves to be learned from a few points: record i is wave i, `x` and `y` float32 [examples, 1].

    y = a·sin(x - p) + noise; a ~ U[0.1, 5], p ~ U[0, π], x ~ U[-5, 5]. A wave depends on the seed and its number alone.

    Args:
        num_tasks: how many waves.
        examples: points of each.
        noise: standard deviation of the labels' error.
        first: number of the first wave; sets that share no numbers share no waves.
        seed: of all draws.

    Raises:
        InputError: no tasks, no examples, negative noise.

    Example:
        >>> Sinusoids(100, examples=20)[7]["x"].shape
        (20, 1)

    Reference:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017, section 5.1
    """

    def __init__(self, num_tasks: int, *, examples: int, noise: float = 0.0, first: int = 0, seed: int = 0):
        if num_tasks < 1 or examples < 1 or noise < 0:
            raise InputError(f"num_tasks={num_tasks} and examples={examples} must be >= 1, and noise={noise} >= 0.")
        self.num_tasks, self.examples, self.noise, self.first, self.seed = num_tasks, examples, noise, first, seed

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([self.seed & 0xFFFFFFFFFFFFFFFF, 0x51AE, self.first + int(index)])
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        x = rng.uniform(-5.0, 5.0, (self.examples, 1))
        y = amplitude * np.sin(x - phase) + rng.normal(0.0, self.noise, x.shape)
        return {"x": x.astype(np.float32), "y": y.astype(np.float32)}
