"""What a JPEG file says of itself: frame, size, colours, and how many scans its pixels come in. Nothing is decoded here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

BASELINE = 0xC0
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the gaps are tables, not frames
APP1 = 0xE1  # EXIF and XMP
START_OF_SCAN, _APP14 = 0xDA, 0xEE
_END_OF_IMAGE = 0xD9
SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # a first scan that holds all components is the only one that is read
_NEXT_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # not the zeros and restarts between coded pixels
MOST_SCANS = 500  # what libjpeg-turbo's own fuzzers stop at; cameras and the web write at most about ten
_RGB_TRANSFORM = 0  # Adobe's mark for three components that are RGB as they stand
_RGB_NAMES = tuple(b"RGB")  # the mark of others


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The frame: SOF marker (0xC0 is baseline), bits of a sample, pixels, names and sampling factors (h, v) of the components."""

    frame: int
    bits: int
    width: int
    height: int
    names: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]
    adobe_transform: int | None = None

    @property
    def is_common(self) -> bool:
        """Baseline with 8 bits, grey or YCbCr in one of the usual samplings: what cameras and the web make."""
        if self.frame != BASELINE or self.bits != 8 or not (self.width and self.height):
            return False
        if len(self.sampling) == 1:
            return True
        luma, *chroma = self.sampling
        usual = luma in ((1, 1), (2, 1), (2, 2)) and chroma == [(1, 1), (1, 1)]
        return usual and self.adobe_transform != _RGB_TRANSFORM and self.names != _RGB_NAMES


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG, or None where there is none, or no whole one."""
    adobe: int | None = None
    found: JpegHeader | None = None
    for marker, at, end in segments(data):
        if marker == _APP14 and data[at : at + 5] == b"Adobe" and end - at >= 12:
            adobe = data[at + 11]
        elif marker in FRAMES and found is None:
            found = _frame(marker, data[at:end])
    if found is None or adobe is None:
        return found
    return replace(found, adobe_transform=adobe)


def _frame(marker: int, body: bytes) -> JpegHeader | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    end = 6 + 3 * body[5]
    factors = tuple((both >> 4, both & 15) for both in body[7:end:3])
    return JpegHeader(marker, body[0], width, height, tuple(body[6:end:3]), factors)


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, end) of each segment up to the first scan, as far as they follow each other as they should."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == START_OF_SCAN or end > len(data):
            return
        yield marker, at + 4, end
        at = end


def scans(data: bytes) -> int:
    """How many times a decoder of this JPEG goes over its pixels, at most one more than MOST_SCANS; 0 where it has none.

    A damaged file is walked as libjpeg walks it: what stands between two markers is passed over.
    """
    frame, parts, count = 0, 0, 0
    for marker, at, _ in markers(data):
        if marker in FRAMES and not frame:
            frame, parts = marker, data[at + 5] if at + 5 < len(data) else 0
        if marker == START_OF_SCAN:
            count += 1
            is_whole = frame in SEQUENTIAL and at < len(data) and data[at] >= parts
            if is_whole or count > MOST_SCANS:
                return count
    return count


def markers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, end) of each segment up to the end of the image, those between scans too.

    As Pillow and libjpeg find them: over junk between segments, and over a length of less than its own two bytes.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and (found := _NEXT_MARKER.search(data, at)):
        marker, first = data[found.end() - 1], found.end() + 2
        if marker == _END_OF_IMAGE:
            return
        at = max(first, found.end() + int.from_bytes(data[found.end() : first], "big"))
        yield marker, first, at
