"""How many pixels a file says it has. Only the first bytes are looked at, so that nothing is decoded or allocated for it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from tasks.inference.decoding.header import FRAMES, markers

MOST_SEGMENTS = 1_000  # of a JPEG before its pixels; more than that is no photograph
MOST_TAGS = 10_000  # of a TIFF's directory; scientific ones have about a hundred
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_BIG_TIFF_ORDERS = {b"II+\0": "<", b"MM\0+": ">"}
_TIFF_VALUES = {1: 1, 3: 2, 4: 4, 16: 8}  # unsigned types of TIFF -> bytes of one value
WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT = 256, 257, 322, 323

Size = tuple[int, int]


def size_of(data: bytes) -> Size | None:
    """Width and height by the header, as stored. None where no format that is decoded here says any."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", data, 6)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        return _tiff(data)
    except struct.error:  # It ends within its header.
        return None


def _jpeg(data: bytes) -> Size | None:
    for marker, at, _ in islice(markers(data), MOST_SEGMENTS):
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 1)
            return width, height
    return None


def _bmp(data: bytes) -> Size:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # of OS/2
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: the first row is the top


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":  # 24 bits each, less one
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":  # 14 bits each, less one, after the signature
        (both,) = struct.unpack_from("<I", data, 21)
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":  # 14 bits each, and two of scaling, after the frame's start code
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(data: bytes) -> Size | None:
    found: dict[int, int] = {}
    for tag, _, _, value in islice(tiff_entries(data), MOST_TAGS):
        found.setdefault(tag, value)  # of two that contradict each other Pillow takes the first
    return (found[WIDTH], found[HEIGHT]) if WIDTH in found and HEIGHT in found else None


def tiff_entries(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, how many values, the first where it stands in the entry itself) of a TIFF's first directory."""
    big = data[:4] in _BIG_TIFF_ORDERS
    order = _BIG_TIFF_ORDERS.get(data[:4]) or _TIFF_ORDERS.get(data[:4])
    if order is None:
        return
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if at > len(data):
        return
    (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    for place in range(at, min(at + number * entry.size, len(data) - entry.size + 1), entry.size):
        tag, kind, count, value = entry.unpack_from(data, place)
        width = _TIFF_VALUES.get(kind, 0)
        yield tag, kind, count, int.from_bytes(value[:width], "little" if order == "<" else "big")
