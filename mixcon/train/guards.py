"""What protects a run: signals, the lock on its workdir, a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from mixcon.errors import InputError
from mixcon.train.checkpoint import Checkpoints


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """`stop(step)` says whether SIGTERM or SIGINT has asked to save and leave.

    With several processes JAX's preemption service makes all of them agree on the same step.
    """
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:  # a second time means now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(number)
        if several:  # Ctrl-C: JAX's service listens to SIGTERM
            signal.raise_signal(signal.SIGTERM)

    several = jax.process_count() > 1
    caught = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    before = {}
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        before = {number: signal.signal(number, note) for number in caught}
    try:
        yield multihost_utils.reached_preemption_sync_point if several else (lambda step: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def workdir_lock(workdir: pathlib.Path) -> Iterator[None]:
    """One run at a time in a workdir; the lock goes with the process, however it ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise InputError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    with file:
        if jax.process_index() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is using workdir {workdir}; stop it first, or choose another --workdir"
                ) from error
        yield


@contextlib.contextmanager
def disk_errors(workdir: pathlib.Path) -> Iterator[None]:
    """A full disk stops the run in words; what was committed before stays as it was."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
        if not full:
            raise
        kept = Checkpoints(workdir, read_only=True).steps()
        raise InputError(
            f"the disk of {workdir} is full; the run stops. Checkpoints intact: {kept or 'none yet'}."
        ) from error
