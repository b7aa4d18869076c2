"""TensorBoard event files, written in the thread that asks for it.

TensorBoardX's own writer has a thread and a queue; on a full disk the thread dies and whoever fills the queue waits
for ever. Here the error is raised where the loop sees it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping

FLUSH_S = 30.0  # between flushes, so that TensorBoard can follow


class Events:
    """Scalars of one session of a run.

    Args:
      folder: of the event files; created.
      first_step: of this session; what earlier sessions wrote from it on is not shown.

    Example:
      >>> events = Events(pathlib.Path("runs/clip/events"), first_step=101)
      >>> events.write(101, {"train/loss": 0.5})
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self.event, self.scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        self.file = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")  # its name has the time
        self.flushed = time.monotonic()
        if first_step > 1:
            self.file.write_event(Event(step=first_step, file_version="brain.Event:2"))
            self.file.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Some scalars of a step."""
        for name, value in values.items():
            self.file.write_event(self.event(wall_time=time.time(), step=step, summary=self.scalar(name, value)))
        if time.monotonic() > self.flushed + FLUSH_S:
            self.file.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Flush, if the disk lets us: everything is in `metrics.jsonl`, too."""
        with contextlib.suppress(OSError):
            self.file.close()
