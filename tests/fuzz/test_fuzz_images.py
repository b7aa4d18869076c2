"""Damaged and hostile pictures: a counted bad record, in bounded time and memory."""

import contextlib
import io
import json
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from mutations import mutated
from PIL import Image

from mixcon.data.records import MAX_PIXELS, BadRecord, cover, decode_image, image_text

PIXELS = (np.random.default_rng(0).random((24, 20, 3)) * 255).astype(np.uint8)


def encoded(format, mode="RGB", frames=1, **options):
    file = io.BytesIO()
    images = [Image.fromarray(PIXELS + i).convert(mode) for i in range(frames)]
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(file, format, **more, **options)
    return file.getvalue()


SEEDS = [
    encoded("PNG"),
    encoded("PNG", "RGBA"),
    encoded("PNG", "P", transparency=3),
    encoded("JPEG"),
    encoded("JPEG", progressive=True),
    encoded("WEBP", lossless=True),
    encoded("WEBP", "RGBA", frames=2),
    encoded("GIF", frames=2),
    encoded("BMP"),
    encoded("TIFF"),
]


def sealed(data):
    """A PNG with the checksums of its chunks put right, so that what was changed is read."""
    out, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


def usable_or_bad(data):
    start = time.monotonic()
    with contextlib.suppress(BadRecord):
        assert cover(decode_image(data), 8, 8).shape == (8, 8, 3)
    assert time.monotonic() - start < 5


def check(data):
    usable_or_bad(data)
    if data[:4] == b"\x89PNG":
        usable_or_bad(sealed(data))


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on metadata
@settings(max_examples=150, deadline=None)
@given(mutated(SEEDS))
def test_damaged_pictures(data):
    check(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=1500, deadline=None)
@given(mutated(SEEDS, most=20))
def test_many_damaged_pictures(data):
    check(data)


def png(width, height, rows=b""):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + encoded("GIF")[10:]


def webp(width, height):
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame = bytes(6) + size + bytes(4) + encoded("WEBP", lossless=True)[12:]
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width, height):
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = {
    "png": png(60_000, 60_000),
    "png, more than Pillow's own limit": png(2**31 - 1, 2**31 - 1),
    "png, a gigabyte of zeros": png(60_000, 6_000, bytes(2**24)),
    "gif": gif(60_000, 60_000),
    "webp": webp(16_383, 16_383),
    "jpeg": jpeg(60_000, 60_000),
    "bmp": encoded("BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + encoded("BMP")[26:],
}

CHILD = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
from mixcon.data.records import BadRecord, decode_image
found = {}
for name, data in json.loads(sys.stdin.read()).items():
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        decode_image(bytes.fromhex(data))
        found[name] = "decoded"
    except BadRecord as reason:
        found[name] = str(reason)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert megabytes < 64 and time.monotonic() - start < 2, (name, megabytes, time.monotonic() - start)
print(json.dumps(found))
"""


def test_bombs_are_refused_by_their_size_and_never_decoded():
    given = json.dumps({name: data.hex() for name, data in BOMBS.items()})
    done = subprocess.run([sys.executable, "-c", CHILD], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(BOMBS)
    assert all("pixels" in said or "truncated" in said for said in found.values()), found


def test_the_limit_is_where_it_is_said_to_be():
    side = 8192
    assert side * side == MAX_PIXELS
    with pytest.raises(BadRecord, match="unreadable"):  # small enough to be decoded, and then its pixels are missing
        decode_image(png(side, side))
    with pytest.raises(BadRecord, match="8193 x 8192 pixels"):
        decode_image(png(side + 1, side))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("data", [POSTSCRIPT, encoded("TGA"), encoded("PCX"), b"", b"\0"], ids=range(5))
def test_formats_that_nobody_asked_for_are_not_opened(data):
    with pytest.raises(BadRecord, match="no known format"):
        decode_image(data)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"image": None, "text": "a"},
        {"image": b"", "text": b"a"},
        {b"image": 1, "text": 2},
        {"image": b"x", "text": "a"},
        {"image": SEEDS[0], "text": " \n"},
    ],
)
def test_records_that_are_none(record):
    with pytest.raises(BadRecord):
        image_text(8, 8)(record)
