"""Checkpoints through Orbax: asynchronous, atomic, verified before they are trusted.

A step folder holds the device state, the data iterator's state and the provenance; a digest of every
file is written beside it once Orbax has committed it. Restoring walks from the newest step down,
puts aside what is incomplete or damaged, and says so.
"""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mixcon.errors import InputError
from mixcon.train.state import TrainState

CHUNK = 2**22  # bytes read at a time while a digest is made


class Restored(NamedTuple):
    """What came back, and what had to be passed over."""

    step: int
    state: TrainState
    data: dict[str, Any]
    provenance: dict[str, Any]
    skipped: list[str]  # one sentence for each newer step that could not be used


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`.

    Args:
      workdir: folder of the run.
      keep: how many newest steps stay.
      keep_every: steps divisible by this stay for good; None keeps none.
      read_only: never writes or deletes.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, keep_every: int | None = None, read_only: bool = False):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self.read_only = read_only
        self.keep, self.keep_every = keep, keep_every
        self._manager: ocp.CheckpointManager | None = None

    @property
    def manager(self) -> ocp.CheckpointManager:
        """Opened late: damaged steps are put aside before Orbax reads the folder."""
        if self._manager is None:
            policies: list[Any] = [checkpoint_managers.LatestN(self.keep)]
            if self.keep_every:
                policies.append(checkpoint_managers.EveryNSteps(self.keep_every))
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def save(self, state: TrainState, data: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Copy to the host, then write in the background; a second save waits for the first."""
        step = int(jax.device_get(state.step))
        if step in self.steps():
            return
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(dict(data)),
                provenance=ocp.args.JsonSave(dict(provenance)),
            ),
        )

    def wait(self) -> None:
        """Until what was saved is on disk; raises what went wrong in the background."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._write_digests()

    def close(self) -> None:
        """Wait and release."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def steps(self) -> list[int]:
        """Committed steps on disk, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def restore(self, like: TrainState, *, step: int | None = None) -> Restored | None:
        """The newest step that is complete and readable, or the one asked for.

        Args:
          like: shapes, dtypes and shardings to restore to (`jax.ShapeDtypeStruct` leaves), on any topology.
          step: only this one.

        Returns:
          None when there is no checkpoint at all.

        Raises:
          InputError: there are checkpoints but none can be read, or the shapes belong to another model.
        """
        candidates = self.steps() if step is None else [s for s in self.steps() if s == step]
        if step is not None and not candidates:
            raise InputError(f"no checkpoint of step {step} in {self.directory}; there are: {self.steps() or 'none'}")
        skipped: list[str] = []
        for candidate in reversed(candidates):
            reason = damage(self.directory / str(candidate), self._digest_file(candidate))
            if reason is None:
                try:
                    return self._read(candidate, like, skipped)
                except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    mismatch = self._mismatch(candidate, like)
                    if mismatch:
                        raise InputError(mismatch) from error
            skipped.append(f"checkpoint of step {candidate} was passed over: {reason}")
            self._quarantine(candidate)
        if skipped:
            raise InputError(f"no checkpoint in {self.directory} can be read. " + " ".join(skipped))
        return None

    def provenance(self, step: int | None = None) -> dict[str, Any] | None:
        """Provenance of the newest step whose record can be read, without touching arrays."""
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                return json.loads((self.directory / str(candidate) / "provenance" / "metadata").read_text())
            except (OSError, json.JSONDecodeError):
                continue
        return None

    def _read(self, step: int, like: TrainState, skipped: list[str]) -> Restored:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore(), provenance=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            found = reader.restore(self.directory / str(step), args=args)
        return Restored(step, found.state, found.data, found.provenance, skipped)

    def _mismatch(self, step: int, like: TrainState) -> str | None:
        """Sentence on shapes that differ between the checkpoint and the model, if any."""
        try:
            with ocp.StandardCheckpointer() as reader:
                stored = reader.metadata(self.directory / str(step) / "state").item_metadata.tree
        except Exception:  # whatever is wrong with it, it is then a damaged step and no mismatch
            return None
        there, here = shapes(stored), shapes(like)
        wrong = [k for k in sorted(here.keys() | there.keys()) if here.get(k) != there.get(k)]
        if not wrong:
            return None
        lines = [f"{k}: checkpoint {there.get(k, 'absent')}, model {here.get(k, 'absent')}" for k in wrong[:5]]
        return f"checkpoint of step {step} belongs to another model ({len(wrong)} arrays differ): " + "; ".join(lines)

    def _digest_file(self, step: int) -> pathlib.Path:
        return self.directory.parent / "digests" / f"{step}.json"

    def _write_digests(self) -> None:
        """A checksum of every file of every committed step that has none yet; drop those of deleted steps."""
        if self.read_only or jax.process_index() != 0:
            return
        folder = self.directory.parent / "digests"
        folder.mkdir(parents=True, exist_ok=True)
        steps = self.steps()
        for step in steps:
            target = self._digest_file(step)
            if not target.exists():
                write_atomically(target, json.dumps(digests(self.directory / str(step))))
        for old in folder.glob("*.json"):
            if old.stem.isdigit() and int(old.stem) not in steps:
                old.unlink(missing_ok=True)

    def _quarantine(self, step: int) -> None:
        """Move a damaged step out of the way, so that its number can be written again."""
        if self.read_only or jax.process_index() != 0:
            return
        aside = self.directory.parent / "quarantine"
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}-{len(list(aside.iterdir()))}"
        (self.directory / str(step)).rename(target)
        self._digest_file(step).unlink(missing_ok=True)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """`{path: shape}` of every array of a tree, however its containers are kept."""
    return {k: tuple(v.shape) for k, v in ocp.tree.to_flat_dict(tree, sep="/").items() if hasattr(v, "shape")}


def digests(folder: pathlib.Path) -> dict[str, str]:
    """`{relative path: "bytes:crc32"}` of every file below a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        crc, size = 0, 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        found[str(path.relative_to(folder))] = f"{size}:{crc:08x}"
    return found


def damage(folder: pathlib.Path, digest_file: pathlib.Path) -> str | None:
    """What is wrong with a step folder, or None. A step killed before its digests is left to Orbax to judge."""
    if not digest_file.exists():
        return None
    try:
        expected = json.loads(digest_file.read_text())
    except json.JSONDecodeError:
        return None
    found = digests(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} is {'missing' if name not in found else 'not as it was written'}"
    return None


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write beside, flush to disk, rename over."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
