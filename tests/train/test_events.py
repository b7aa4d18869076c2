"""TensorBoard's files: readable, drawn over after a resume, and no trap on a full disk."""

import errno

import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mixcon.train.events import Events
from mixcon.train.logbook import Logbook


def read(folder):
    """Events of all files, in the order of their names; a record is length, checksum, content, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def scalars(folder):
    return [(e.step, v.tag, v.simple_value) for e in read(folder) for v in e.summary.value]


def test_scalars_are_there_under_their_names(tmp_path):
    events = Events(tmp_path, first_step=1)
    events.write(1, {"train/loss": 0.5, "train/lr": 2.0})
    events.write(2, {"train/loss": 0.25})
    events.close()
    assert scalars(tmp_path) == [(1, "train/loss", 0.5), (1, "train/lr", 2.0), (2, "train/loss", 0.25)]
    assert read(tmp_path)[0].file_version == "brain.Event:2"


def test_a_later_session_draws_over_what_lies_beyond_its_checkpoint(tmp_path):
    events = Events(tmp_path, first_step=8)
    events.close()
    assert [(e.step, e.session_log.status) for e in read(tmp_path)[1:]] == [(8, 0), (8, SessionLog.START)]


def test_a_full_disk_is_an_error_and_no_endless_wait(tmp_path, monkeypatch):
    book = Logbook(tmp_path, resume_step=0, total=100, progress=False)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(event_file_writer.RecordWriter, "write", full)
    for step in range(1, 50):  # more than any queue holds
        with pytest.raises(OSError, match="No space left"):
            book.write(step, {"train/loss": 0.5})
    book.close()
