"""Checkpoints through Orbax: asynchronous, atomic, verified before they are trusted.

A step folder holds the device state, the data iterator's state and the provenance; a digest of every
file is written beside it before Orbax commits it, so that no committed step is without one. Restoring
walks from the newest step down, puts aside what is incomplete or damaged, and says so.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from mixcon.errors import InputError
from mixcon.train import distributed
from mixcon.train.state import TrainState

CHUNK = 2**22  # bytes read at a time while a digest is made
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a step that is being written


class Restored(NamedTuple):
    """What came back, and what had to be passed over."""

    step: int
    state: TrainState
    data: dict[str, Any]
    provenance: dict[str, Any]
    warnings: list[str]  # one sentence for each newer step that could not be used, and for missing checksums


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
        self._last = -1  # step whose writing was started last

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
                temporary_path_class=WithDigests,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def save(self, state: TrainState, data: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Copy to the host, then write in the background; a second save waits for the first."""
        step = int(np.max(jax.device_get(state.step)))  # of several seeds side by side one may have stopped
        if step == self._last or step in self.steps():
            return
        self._last = step
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
            if jax.process_index() == 0:
                forget_digests(self.directory)

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

    def unfinished(self) -> list[int]:
        """Steps whose writing was cut off; nothing of them is used, and the next save clears them away."""
        if not self.directory.is_dir():
            return []
        names = (p.name.removesuffix(UNFINISHED) for p in self.directory.iterdir() if p.name.endswith(UNFINISHED))
        return sorted(int(name) for name in names if name.isdigit())

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
        skipped: dict[int, str] = {}
        for candidate in reversed(candidates):
            digest_file = digest_file_of(self.directory / str(candidate))
            share = (jax.process_index(), jax.process_count())  # of the files, for this process to check
            reason = damage(self.directory / str(candidate), digest_file, share=share)
            if all_agree(reason is None):
                try:
                    found = self._read(candidate, like)
                    for damaged in skipped:  # only now: where nothing is readable, everything stays for the next start
                        self._quarantine(damaged)
                    unchecked = [] if readable(digest_file) else [f"checkpoint of step {candidate} has no checksums"]
                    return found._replace(warnings=[*skipped.values(), *unchecked])
                except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    mismatch = self._mismatch(candidate, like)
                    if mismatch:
                        raise InputError(mismatch) from error
            reason = reason or "damaged, as another process found"
            skipped[candidate] = f"checkpoint of step {candidate} was passed over: {reason}"
        if skipped:
            advice = "Another workdir begins anew. "
            raise InputError(f"no checkpoint in {self.directory} can be read. {advice}" + " ".join(skipped.values()))
        return None

    def provenance(self, step: int | None = None) -> dict[str, Any] | None:
        """Provenance of the newest step whose record can be read, without touching arrays."""
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                return json.loads((self.directory / str(candidate) / "provenance" / "metadata").read_text())
            except (OSError, json.JSONDecodeError):
                continue
        return None

    def _read(self, step: int, like: TrainState) -> Restored:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore(), provenance=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            found = reader.restore(self.directory / str(step), args=args)
        if not isinstance(found.data, dict) or not isinstance(found.provenance, dict):
            raise ValueError("its data state or its provenance is no JSON object")
        return Restored(step, found.state, found.data, found.provenance, [])

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

    def _quarantine(self, step: int) -> None:
        """Move a damaged step out of the way, so that its number can be written again."""
        if self.read_only or jax.process_index() != 0:
            return
        aside = self.directory.parent / "quarantine"
        aside.mkdir(exist_ok=True)
        free = next(n for n in itertools.count() if not (aside / f"{step}-{n}").exists())
        (self.directory / str(step)).rename(aside / f"{step}-{free}")
        digest_file_of(self.directory / str(step)).unlink(missing_ok=True)


class WithDigests(atomicity.AtomicRenameTemporaryPath):
    """Orbax's folder of a step that is being written; its digests come first, then the rename that commits it."""

    async def finalize(self) -> None:
        """Called by the process that commits, in the background, once all arrays are written."""
        step = pathlib.Path(self.get_final())
        if not step.name.isdigit():  # one of the items of a step, which Orbax commits in the same way
            return await super().finalize()
        await asyncio.to_thread(forget_digests, step.parent)
        found = await asyncio.to_thread(digests, pathlib.Path(self.get()))
        found = {name: digest for name, digest in found.items() if pathlib.Path(name).parent.name}  # others yet change
        await asyncio.to_thread(write_digests, step, found)
        await super().finalize()
        written_last = {p.name: digest_of(p) for p in step.iterdir() if p.is_file()}
        await asyncio.to_thread(write_digests, step, found | written_last)


def all_agree(fine: bool) -> bool:
    """Whether every process says so."""
    distributed.meet("checked")
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """`{path: shape}` of every array of a tree, however its containers are kept."""
    return {k: tuple(v.shape) for k, v in ocp.tree.to_flat_dict(tree, sep="/").items() if hasattr(v, "shape")}


def digest_of(path: pathlib.Path) -> str:
    """`bytes:crc32` of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return f"{size}:{crc:08x}"


def digests(folder: pathlib.Path) -> dict[str, str]:
    """`{relative path: "bytes:crc32"}` of every file below a folder."""
    return {str(p.relative_to(folder)): digest_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def digest_file_of(step: pathlib.Path) -> pathlib.Path:
    """`<workdir>/digests/<step>.json` of `<workdir>/checkpoints/<step>`."""
    return step.parent.parent / "digests" / f"{step.name}.json"


def write_digests(step: pathlib.Path, found: Mapping[str, str]) -> None:
    """Put the digests of a step where restoring looks for them."""
    target = digest_file_of(step)
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, json.dumps(found))


def forget_digests(directory: pathlib.Path) -> None:
    """Remove the digests of steps that are not there any more."""
    for old in digest_file_of(directory / "0").parent.glob("*.json"):
        if not (directory / old.stem).is_dir():
            old.unlink(missing_ok=True)


def readable(digest_file: pathlib.Path) -> dict[str, str] | None:
    """The digests of a step, or None where they are missing or unreadable themselves."""
    try:
        found = json.loads(digest_file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def damage(folder: pathlib.Path, digest_file: pathlib.Path, *, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a step folder, or None. Without digests it is left to Orbax to judge.

    Args:
      folder: of the step.
      digest_file: what was written with it.
      share: (i, n) checks only every n-th file from the i-th on; n processes together check all.
    """
    expected = sorted((readable(digest_file) or {}).items())
    for name, digest in expected[share[0] :: share[1]]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest_of(folder / name) != digest:
            return f"{name} is not as it was written"
    return None


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename over."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
