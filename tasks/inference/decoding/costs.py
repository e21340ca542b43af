"""Which files would keep a decoding thread for seconds, or take much memory: told from their structure, without decoding.

They are decoded in a process of their own, with limits. Nothing here says that a file is bad.
"""

from __future__ import annotations

import struct
from itertools import islice

from tasks.inference.decoding.header import MOST_SCANS, START_OF_SCAN, markers, scans
from tasks.inference.decoding.sizes import MOST_SEGMENTS, MOST_TAGS, TILE_HEIGHT, TILE_WIDTH, size_of, tiff_entries

PIXELS = 40_000_000  # one and a half seconds of a PNG, and 300 MB while its colours are converted
JPEG_WORK = 1_000_000_000  # pixels times scans: one to two seconds
LARGEST_SCANS = 16_000_000  # bytes of a JPEG in more than one scan; its markers are not looked for
PIECES = 10_000  # chunks of a PNG, or blocks of a GIF before its first picture: Python goes through them
MOST_VALUES = 100_000  # of a TIFF's tag, which become objects of Python; a million strips took 7 seconds
_BYTES = (1, 2, 6, 7)  # types of TIFF that become one string however long they are
RUN_LENGTH_BYTES, RUN_LENGTH_PIXELS = 2_000_000, 8_000_000  # of a BMP whose runs Pillow decodes in Python
JUNK = 100_000  # bytes between a JPEG's segments, which Pillow passes over one by one


def is_costly(data: bytes, most_pixels: int) -> bool:
    """Whether decoding could take over some seconds. More than `most_pixels` are refused, and cost nothing."""
    width, height = size_of(data) or (0, 0)
    pixels = width * height
    if PIXELS < pixels <= most_pixels:
        return True
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, pixels)
    if data.startswith(b"\x89PNG"):
        return _png(data)
    if data.startswith(b"GIF8"):
        return _gif(data)
    if data.startswith(b"BM"):
        is_run_length = data[14:15] != b"\x0c" and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
        return is_run_length and (len(data) > RUN_LENGTH_BYTES or pixels > RUN_LENGTH_PIXELS)
    return data[:2] in (b"II", b"MM") and _tiff(data)


def _jpeg(data: bytes, pixels: int) -> bool:
    if _has_a_long_head(data):
        return True
    if len(data) > LARGEST_SCANS and scans(data[:LARGEST_SCANS]) != 1:
        return True
    count = scans(data)
    return count > MOST_SCANS or count * pixels > JPEG_WORK


def _has_a_long_head(data: bytes) -> bool:
    """Whether Python would go through very many segments, or junk between them, before the pixels."""
    before, junk = 2, 0
    for number, (marker, first, end) in enumerate(islice(markers(data), MOST_SEGMENTS + 1)):
        junk += first - 4 - before
        before = end
        if marker == START_OF_SCAN:
            return junk > JUNK
        if number == MOST_SEGMENTS:
            return True
    return len(data) - before + junk > JUNK


def _png(data: bytes) -> bool:
    at = 8
    for _ in range(PIECES):
        if at + 8 > len(data):
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _gif(data: bytes) -> bool:
    """Whether very many blocks stand before the first picture, or that one is far larger than the screen."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    for _ in range(PIECES):
        kind = data[at : at + 1]
        if kind == b"," and at + 9 <= len(data):
            sides = [int.from_bytes(data[place : place + 2], "little") for place in range(at + 1, at + 9, 2)]
            return (sides[0] + sides[2]) * (sides[1] + sides[3]) > PIXELS
        if kind in (b"", b";"):
            return False
        at += 1
        if kind == b"!":
            at += 1
            blocks = 0
            while at < len(data) and data[at] and blocks < PIECES:
                at, blocks = at + 1 + data[at], blocks + 1
            if blocks == PIECES:
                return True
            at += 1
    return True


def _tiff(data: bytes) -> bool:
    """Whether a tile is larger than a picture should be, or there are very many tags, or values of one."""
    sides = {TILE_WIDTH: 0, TILE_HEIGHT: 0}
    try:
        for number, (tag, kind, count, value) in enumerate(tiff_entries(data)):
            has_many = kind not in _BYTES and MOST_VALUES < count <= len(
                data
            )  # what goes beyond the file is passed over
            if number == MOST_TAGS or has_many:
                return True
            if tag in sides:
                sides[tag] = max(sides[tag], value)
    except struct.error:
        return False
    return sides[TILE_WIDTH] * sides[TILE_HEIGHT] > PIXELS
