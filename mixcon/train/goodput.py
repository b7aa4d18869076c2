"""Where the wall time of a run went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

KINDS = ("startup", "compile", "data_wait", "step", "eval", "checkpoint", "other")


class Goodput:
    """Wall time by kind; whatever is not claimed is `other`.

    `step` is time in which the device had work. Fetching a batch while it has counts as `step`, too;
    if it ran dry in the meantime the whole fetch counts as `data_wait`, which errs against us.

    Args:
      clock: seconds; injected in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.started = clock()
        self.seconds = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Claim the time inside the block for `kind`."""
        start = self.clock()
        try:
            yield
        finally:
            self.seconds[kind] += self.clock() - start

    def summary(self) -> dict[str, float]:
        """Seconds by kind, with `total`, and `loop_overhead`: the share of the step loop in which the device idled."""
        total = self.clock() - self.started
        claimed = sum(s for kind, s in self.seconds.items() if kind != "other")
        seconds = {**self.seconds, "other": max(total - claimed, 0.0)}
        loop = seconds["step"] + seconds["data_wait"] + seconds["other"]
        return {**seconds, "total": total, "loop_overhead": 1 - seconds["step"] / loop if seconds["step"] else 0.0}

    def line(self) -> str:
        """One line for people."""
        found = self.summary()
        total = max(found["total"], 1e-9)
        shares = ", ".join(f"{kind} {found[kind]:.1f}s ({found[kind] / total:.0%})" for kind in KINDS)
        return f"goodput: {found['total']:.1f}s in all: {shares}; loop overhead {found['loop_overhead']:.1%}"
