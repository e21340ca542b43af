"""Which files are told to be costly, without decoding them; and that nobody's photographs are."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.inference.decoding.header import MOST_SCANS, markers, scans
from tasks.inference.decoding.policies import FORMATS, MAX_PIXELS, is_costly
from tasks.inference.decoding.sizes import size_of
from tests.pictures import picture


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))


def with_scans(data: bytes, more: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan, without any coded pixels, is there `more` times again."""
    _, first, end = [segment for segment in markers(data) if segment[0] == 0xDA][-1]
    return data[:-2] + (between + data[first - 4 : end]) * more + data[-2:]


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(name, b"") for name in chunks) + chunk(b"IDAT", b"")


def tiff_of(entries: dict[int, int], big: bool = False) -> bytes:
    head, entry, number = ("<4sHHQ", "<HHQQ", "<Q") if big else ("<4sI", "<HHII", "<H")
    start = (b"II+\0", 8, 0, 16) if big else (b"II*\0", 8)
    body = b"".join(struct.pack(entry, tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack(head, *start) + struct.pack(number, len(entries)) + body + bytes(8)


@pytest.mark.parametrize("form", FORMATS)
def test_the_size_of_every_format_is_in_its_header(form: str) -> None:
    assert size_of(picture(1, (401, 303), form)) == (401, 303)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}])
def test_all_three_kinds_of_webp_say_their_size(options: dict[str, Any]) -> None:
    assert size_of(encoded(smooth(401, 303), "WEBP", **options)) == (401, 303)


@pytest.mark.parametrize("big", [False, True])
def test_both_kinds_of_tiff_say_their_size(big: bool) -> None:
    assert size_of(tiff_of({256: 70_000, 257: 30}, big)) == (70_000, 30)
    assert size_of(encoded(smooth(401, 303), "TIFF", big_tiff=big)) == (401, 303)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_ends_within_its_header_says_no_size_and_costs_nothing(form: str) -> None:
    data = picture(1, (401, 303), form)
    for length in range(60):
        assert size_of(data[:length]) in (None, (401, 303))
        assert not is_costly(data[:length])


def test_scans_are_counted_as_libjpeg_reads_them() -> None:
    progressive = encoded(smooth(64, 48), "JPEG", progressive=True)

    assert scans(encoded(smooth(64, 48), "JPEG")) == 1
    assert scans(encoded(smooth(64, 48), "JPEG", restart_marker_blocks=1)) == 1
    assert scans(progressive) == 10
    assert scans(encoded(smooth(64, 48).convert("L"), "JPEG", progressive=True)) == 6
    assert scans(progressive + progressive) == 10  # what follows the end is another picture's
    assert scans(with_scans(progressive, 30)) == 40
    assert scans(with_scans(progressive, 30, between=b"\xff\xfe\x00\x06\xff\xd9\xff\xda")) == 40  # in a comment
    assert scans(with_scans(progressive, 30, between=b"junk\xff\xff\xff")) == 40
    assert (scans(b""), scans(b"\xff\xd8"), scans(picture(1))) == (0, 0, 0)


def test_the_walk_over_scans_has_an_end() -> None:
    assert scans(with_scans(encoded(smooth(64, 48), "JPEG", progressive=True), 100_000)) == MOST_SCANS + 1


COSTLY = {
    "a JPEG of very many scans": lambda: with_scans(encoded(smooth(8, 8), "JPEG", progressive=True), MOST_SCANS),
    "a large JPEG of many scans": lambda: with_scans(encoded(smooth(4000, 3000), "JPEG", progressive=True), 90),
    "a JPEG of very many segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000 + picture(1, form="JPEG")[2:],
    "a JPEG with junk in its head": lambda: b"\xff\xd8\xff\xfe\0\2" + b"\x11" * 200_000 + picture(1, form="JPEG")[2:],
    "a JPEG without a picture": lambda: b"\xff\xd8\xff" + b"\x11" * 200_000,
    "progressive, and too long to be walked": lambda: (
        encoded(smooth(64, 48), "JPEG", progressive=True)[:-2] + bytes(17_000_000)
    ),
    "a PNG of very many pixels": lambda: png_of(8_000, 8_000),
    "a PNG of very many chunks": lambda: png_of(8, 8, *[b"teXt"] * 20_000),
    "a GIF of very many pixels": lambda: b"GIF89a" + struct.pack("<HH", 8_000, 8_000) + bytes(20),
    "a GIF whose picture is larger than its screen": lambda: (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + struct.pack("<cHHHH", b",", 0, 0, 9_000, 9_000) + bytes(20)
    ),
    "a GIF with a very long comment": lambda: (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe" + b"\1x" * 20_000 + b"\0"
    ),
    "a GIF with junk before its picture": lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"x" * 20_000,
    "a large BMP of runs": lambda: _bmp_of_runs(4_000, 3_000),
    "a WebP of very many pixels": lambda: b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\xff\x1f\0\xff\x1f\0",
    "a TIFF of very many pixels": lambda: tiff_of({256: 8_000, 257: 8_000}),
    "a TIFF with an enormous tile": lambda: tiff_of({256: 8, 257: 8, 322: 60_000, 323: 60_000}, big=True),
    "a TIFF whose tag has very many values": lambda: (
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 273, 4, 200_000, 8) + bytes(900_000)
    ),
    "a TIFF of very many tags": lambda: tiff_of(dict.fromkeys(range(20000), 1)),
}


def _bmp_of_runs(width: int, height: int) -> bytes:
    data = bytearray(picture(1, form="BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    data[30:34] = b"\1\0\0\0"
    return bytes(data)


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_seconds_or_much_memory_is_costly(name: str) -> None:
    data = COSTLY[name]()
    began = time.process_time()

    assert is_costly(data)
    assert time.process_time() - began < 1  # of milliseconds, on a machine that is not loaded


@pytest.mark.parametrize("form", FORMATS)
def test_ordinary_pictures_are_not(form: str) -> None:
    assert not is_costly(picture(1, (1_000, 800), form))


def test_a_long_profile_or_text_in_a_tiff_is_not() -> None:
    assert not is_costly(encoded(smooth(64, 48), "TIFF", icc_profile=bytes(500_000)))


def test_a_progressive_photograph_of_a_good_camera_is_not() -> None:
    assert not is_costly(encoded(smooth(6_000, 4_000), "JPEG", progressive=True))


def test_what_is_refused_by_its_size_is_not() -> None:
    """It costs nothing, so no process need be begun for it."""
    assert MAX_PIXELS < 12_000 * 12_000
    assert not is_costly(png_of(12_000, 12_000))


@pytest.mark.photographs
def test_photographs_are_not(photographs: Path) -> None:
    assert not any(is_costly(path.read_bytes()) for path in photographs.glob("*.JPEG"))


def test_what_follows_the_end_of_a_png_costs_nothing() -> None:
    assert not is_costly(picture(1) + bytes(2**20))
