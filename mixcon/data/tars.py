"""Image-text records of a webdataset tar, as a stream."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mixcon.data.records import BadRecord, Record
from mixcon.data.tables import MAX_BYTES, caption_field, with_captions

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
PARTS = (*IMAGES, ".txt", ".json", ".cls")  # of a record in a tar; others are never read
MAX_HEADER = 1 << 20  # of a tar's extended header, which is read whole
HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")

Raw = tuple[str, Callable[[], Record], int]  # key, how to read it (may raise BadRecord), progress so far


class _Member(tarfile.TarInfo):
    """A member whose headers cannot fill the memory: compressed, one of gigabytes is a small file."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def read_tar(path: Path, languages: Sequence[str] = ()) -> Iterator[Raw]:
    """Groups neighbouring members by name, as a stream: nothing but one group is held in memory.

    With `languages`, a record has `text_<language>` of each, from the fields of its `.json`; see `with_captions`.
    """

    def members() -> Iterator[tuple[str, str, bytes | str]]:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member, errors="replace") as tar,
        ):
            held = ("", 0)  # bytes of the record at hand
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                if not (member.isfile() and stem and dot):
                    continue
                key, extension = f"{folder}/{stem}".lstrip("/"), f".{extension.lower()}"
                if extension not in PARTS:
                    yield key, extension, b""
                    continue
                held = (key, member.size + (held[1] if held[0] == key else 0))
                if held[1] > MAX_BYTES:
                    yield key, extension, f"{extension} of {member.size:,} bytes"
                else:
                    extracted = tar.extractfile(member)
                    yield key, extension, extracted.read() if extracted else b""
                position[0] = file.tell()

    position, key, parts = [0], "", {}
    try:
        for key, group in itertools.groupby(members(), key=lambda member: member[0]):
            parts = {extension: data for _, extension, data in group}
            yield key, lambda parts=parts: _from_parts(parts, languages), position[0]  # type: ignore[misc]
    except Exception as reason:  # TarError, EOFError, zlib.error, TypeError, ...: tarfile stumbles in many ways
        if isinstance(reason, OSError) and reason.errno is not None:
            raise  # the disk, not the tar
        broken = BadRecord(f"the tar breaks off after this record ({reason})")
        yield key, lambda: _raise(broken), path.stat().st_size


def _raise(reason: BadRecord) -> Record:
    raise reason


def _from_parts(parts: dict[str, bytes | str], languages: Sequence[str]) -> Record:
    if too_large := [data for data in parts.values() if isinstance(data, str)]:
        raise BadRecord(f"{too_large[0]}; at most {MAX_BYTES:,} are allowed")
    data = {extension: value for extension, value in parts.items() if isinstance(value, bytes)}
    image = next((data[extension] for extension in IMAGES if extension in data), None)
    if image is None:
        raise BadRecord(f"no image among {', '.join(sorted(parts))}")
    try:
        meta = json.loads(data[".json"]) if ".json" in data else {}
        text = data[".txt"].decode("utf-8") if ".txt" in data else meta.pop("text", None) or meta.pop("caption", None)
        spoken = {name: meta.pop(name, None) for name in map(caption_field, languages)}
        label = {"label": int(data[".cls"])} if ".cls" in data else {}
    except (ValueError, AttributeError, TypeError, RecursionError) as reason:
        raise BadRecord(f"unreadable text or metadata ({reason})") from None
    return {"image": image} | with_captions(text, spoken) | label | ({"meta": meta} if meta else {})
