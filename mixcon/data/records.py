"""What a data source is, how a record is stored, and how it says that it cannot be used."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import msgpack
import numpy as np
from PIL import Image, UnidentifiedImageError

from mixcon.errors import InputError

Record = dict[str, Any]
MAX_PIXELS = 1 << 26  # 67 megapixels; a small file can claim to be more than memory holds
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow would start a program for others (EPS)


class BadRecord(Exception):
    """This record cannot be used (unreadable image, empty caption); the pipeline takes the next one and counts."""


@runtime_checkable
class Source(Protocol):
    """Random access to records: all that the pipeline asks for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def read(source: Source, *, at_most: int | None = None) -> Iterator[Record]:
    """The usable records of a source in order; with `at_most`, that many or fewer, spread evenly over it.

    Example:
        >>> [record["x"] for record in read([{"x": 0}, {"x": 1}, {"x": 2}], at_most=2)]
        [0, 2]
    """
    stride = max(1, -(-len(source) // at_most)) if at_most else 1
    for index in range(0, len(source), stride):
        with contextlib.suppress(BadRecord):
            yield source[index]


@contextlib.contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the reader of a data file stumbles over, as one `InputError` that names the file; not what the disk says."""
    try:
        yield
    except (InputError, BadRecord):
        raise
    except Exception as reason:  # pyarrow, csv and array_record share no base
        if isinstance(reason, OSError) and reason.errno is not None:
            raise
        first = (str(reason).strip().splitlines() or [""])[0][:200]
        raise InputError(f"{os.fspath(path)} cannot be read; it is damaged or of another kind ({first}).") from None


def to_bytes(record: Record) -> bytes:
    """A record as MessagePack: a map from strings to numbers, strings, bytes, lists and maps; no code, any language.

    Example:
        >>> from_bytes(to_bytes({"text": "red heart", "image": b"..."}))
        {'text': 'red heart', 'image': b'...'}
    """
    return msgpack.packb(record)


def from_bytes(data: bytes) -> Record:
    """The record again; anything that is not one raises `BadRecord`."""
    try:
        record = msgpack.unpackb(data)
    except Exception as reason:  # msgpack raises ValueErrors and exceptions of its own, without a common base
        raise BadRecord(f"not a packed record ({reason})") from None
    if not isinstance(record, dict):
        raise BadRecord("not a packed record (no fields)")
    return record


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """RGB image of JPEG, PNG, WebP, ... bytes; transparency on white; the size is checked before anything is decoded.

    Raises:
        BadRecord: unreadable, truncated, too large, or none of `FORMATS`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise BadRecord(f"image of {image.width} x {image.height} pixels; at most {max_pixels:,} are allowed")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise BadRecord("unreadable image (no known format)") from None
    except BadRecord:
        raise
    except Exception as reason:  # whatever a reader stumbles over: struct.error, NotImplementedError, SyntaxError, ...
        raise BadRecord(f"unreadable image ({reason})") from None


def cover(image: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: scaled so that it covers the target, then the centre cut out."""
    scale = max(height / image.height, width / image.width)
    wide, high = width / scale, height / scale
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, left + wide, top + high)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def image_text(height: int, width: int, *, max_pixels: int = MAX_PIXELS) -> Callable[[Record], Record]:
    """A record function: `image` bytes to uint8 [height, width, 3], `text` to a stripped string that is not empty.

    Other fields stay, but for nested ones. Raises `BadRecord` when called on a record that cannot be used.

    Example:
        >>> function = image_text(32, 32)  # for `sources.Mapped(source, function)`
    """

    def decode(record: Record) -> Record:
        if not isinstance(record.get("image"), bytes) or not isinstance(record.get("text"), str):
            raise BadRecord(f"no image and text among the fields {sorted(map(str, record))}")
        text = record["text"].strip()
        if not text:
            raise BadRecord("empty caption")
        flat = {key: value for key, value in record.items() if isinstance(value, (str, int, float))}
        return flat | {
            "image": cover(decode_image(record["image"], max_pixels=max_pixels), height, width),
            "text": text,
        }

    return decode


def two_views(views: Sequence[str], fields: Collection[str]) -> tuple[str, str]:
    """The names of the two fields of a record that are seen side by side, equal ones allowed.

    Raises:
        InputError: not two names, or not of these fields.

    Example:
        >>> two_views(("image", "text"), {"image": 0, "text": 0, "label": 0})
        ('image', 'text')
    """
    if isinstance(views, str) or len(views) != 2:
        raise InputError(f"views={views!r} must be two names of fields, such as ('image', 'text')")
    if missing := set(views) - set(fields):
        raise InputError(f"views: records have no field {missing.pop()!r}; they have {', '.join(sorted(fields))}")
    first, second = views
    return first, second
