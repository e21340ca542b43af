"""JPEG through libjpeg-turbo into a buffer that is there already, then resize and crop in one go."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from itertools import takewhile
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from tasks.inference.decoding.geometry import crop_of
from tasks.inference.decoding.header import APP1, START_OF_SCAN, markers
from tasks.inference.decoding.resampling import Resampler
from tasks.models.bundle import Preprocessing

log = logging.getLogger(__name__)

MAGIC = b"\xff\xd8\xff"

# A picture of more pixels gets a buffer of its own, which is let go afterwards: each decoding thread keeps one.
KEPT_PIXELS = 16_000_000

Turn = Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.uint32]]

# EXIF orientation -> what brings stored pixels upright.
_TURNS: dict[int, Turn] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored.T[:, ::-1],
    7: lambda stored: stored.T[::-1, ::-1],
    8: lambda stored: stored.T[::-1],
}
SIDEWAYS = (5, 6, 7, 8)  # orientations in which stored rows are columns


class JpegDecoder:
    """Decodes the JPEG files that need nothing special; threads may share it."""

    def __init__(self, spec: Preprocessing, compiled: Path, *, shrink: bool) -> None:
        """With `shrink` a picture of at least twice the size is decoded at a half, a quarter or an eighth of it.

        It decodes nothing until the kernel is there: from the start where it was compiled on this machine before, or
        after `prepare`.
        """
        import simplejpeg

        self._simplejpeg = simplejpeg
        self._spec = spec
        self._shrink = shrink
        self._resampler = Resampler(spec.interpolation, compiled)
        self._local = threading.local()

    @property
    def is_ready(self) -> bool:
        """Whether the kernel is there."""
        return self._resampler.is_ready

    def prepare(self) -> None:
        """Compile the kernel if need be, in about three seconds."""
        if not self.is_ready:
            self._resampler.prepare()

    def prepare_beside(self) -> None:
        """The same in a thread of its own; the pictures that come meanwhile are for another decoder."""
        if not self.is_ready:
            threading.Thread(target=self._try_to_prepare, daemon=True).start()

    @staticmethod
    def is_possible() -> bool:
        """Whether its two packages are there; on a bare image with torch alone, Pillow gives the pixels of exact-1."""
        return all(find_spec(name) is not None for name in ("simplejpeg", "numba"))

    @classmethod
    def version(cls) -> str:
        """What a verdict of this decoder depends on."""
        return f"simplejpeg-{version('simplejpeg')}" if cls.is_possible() else "no-simplejpeg"

    def decode(self, data: bytes, max_pixels: int, out: npt.NDArray[np.uint8]) -> bool:
        """Fill `out`, uint8 RGB [crop, crop, 3]. False where this is for another decoder, which then has the last word.

        That is: no JPEG, damaged or odd in any way, CMYK, too large, tall, or too early.
        """
        if not data.startswith(MAGIC) or not self.is_ready:
            return False
        try:
            height, width, colours, _ = self._simplejpeg.decode_jpeg_header(data)
            orientation = orientation_of(data)
            upright = (height, width) if orientation in SIDEWAYS else (width, height)
            where = crop_of(*upright, self._spec.resize, self._spec.crop)
            fits = width * height <= max_pixels and where.size[0] * where.size[1] <= max_pixels
            if not (fits and where.rows_first) or colours not in ("YCbCr", "Gray", "RGB"):
                return False
            shrunk = self._shrunk(min(width, height))
            pixels = self._read(data, width, height, shrunk)
        except ValueError:
            return False
        if orientation != 1:
            turned = _TURNS[orientation](pixels.view(np.uint32)[..., 0])
            pixels = np.ascontiguousarray(turned).view(np.uint8).reshape(*turned.shape, 4)
        self._resampler.resample(pixels, where, shrunk, out)
        return True

    def _try_to_prepare(self) -> None:
        try:
            self.prepare()
        except Exception as error:  # Whatever numba or the disk say, Pillow gives the same pixels.
            log.warning(
                "JPEG is decoded by Pillow, at two thirds of the speed: the resize could not be compiled: %s", error
            )

    def _read(self, data: bytes, width: int, height: int, shrunk: int) -> npt.NDArray[np.uint8]:
        """RGBX. The library takes the smallest size that it can that is not below the least: this one exactly."""
        found: npt.NDArray[np.uint8] = self._simplejpeg.decode_jpeg(
            data,
            "RGBX",
            min_height=ceil(height / shrunk),
            min_width=ceil(width / shrunk),
            buffer=self._buffer(width * height),
        )
        return found

    def _shrunk(self, short: int) -> int:
        """1, 2, 4 or 8: the factors for which libjpeg-turbo has vector code."""
        factor = 1
        while self._shrink and factor < 8 and short >= 2 * factor * self._spec.resize:
            factor *= 2
        return factor

    def _buffer(self, pixels: int) -> bytearray:
        if pixels > KEPT_PIXELS:
            return bytearray(4 * pixels)
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < 4 * pixels:
            buffer = self._local.buffer = bytearray(4 * pixels)
        return buffer


def orientation_of(data: bytes) -> int:
    """1 to 8, by EXIF or XMP as Pillow reads them; 1 where neither says anything that makes sense."""
    before = takewhile(lambda segment: segment[0] != START_OF_SCAN, markers(data))
    told = (data[at:end] for marker, at, end in before if marker == APP1)
    if not any(segment.startswith(b"Exif") or b"tiff:Orientation" in segment for segment in told):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return stated_orientation(image)
    except Exception:  # A header that Pillow cannot read is for Pillow to refuse, when it is asked for the pixels.
        return 1


def stated_orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF or XMP of an open picture say; 1 where neither says anything that makes sense."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    except Exception:  # Broken EXIF says nothing about the orientation; the pixels may still be whole.
        return 1
