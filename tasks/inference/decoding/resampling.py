"""Resize and crop in one go: Pillow's antialiased filters, computed for the pixels of the crop only.

The same pixels as Pillow's, because it is the same arithmetic (src/libImaging/Resample.c): weights rounded to 22 bits,
first along the rows, then down the columns, with whole levels between. Four bytes a pixel, RGBX, so that a pixel is
moved as one number.
"""

from __future__ import annotations

import threading
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.inference.decoding.geometry import Geometry
from tasks.inference.decoding.machine_code import INTEGER, POINTER, REAL, Call, Kernel

Pixels = npt.NDArray[np.uint8]

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # in pixels of the coarser grid

# Rows that are resized side by side: 64 levels stand next to each other and take the same weight, which is what vector
# registers are for. 16 were the fastest of 2 to 128.
STRIP = 16

# Beside the pictures and their geometry it is given memory to work in.
KERNEL = Kernel(
    "tasks.inference.decoding.kernel",
    "resample",
    (POINTER, *(INTEGER,) * 5, *(REAL,) * 3, INTEGER, *(POINTER,) * 9),
    constants=(STRIP,),
)


class Resampler:
    """Resizes pictures with one filter; threads may share it."""

    def __init__(self, interpolation: str, folder: Path) -> None:
        """`folder` keeps the compiled kernel, so that only the first worker on a machine compiles it."""
        self._support = SUPPORT[interpolation]
        self._folder = folder
        self._call: Call | None = KERNEL.kept(folder)
        self._local = threading.local()

    @property
    def is_ready(self) -> bool:
        """Whether the kernel is loaded: from the start where it was compiled on this machine before."""
        return self._call is not None

    def prepare(self) -> None:
        """Have the kernel, compiled if need be."""
        self._call = KERNEL.compiled(self._folder)

    def resample(self, pixels: Pixels, where: Geometry, shrunk: int, out: Pixels) -> None:
        """Fill `out`, uint8 RGB [crop, crop, 3], from RGBX pixels [height / shrunk, width / shrunk, 4]."""
        assert self._call is not None
        assert pixels.flags.c_contiguous
        assert out.flags.c_contiguous
        height, width = pixels.shape[:2]
        across, down = where.scale[0] / shrunk, where.scale[1] / shrunk
        taps = ceil(self._support * max(across, down, 1.0)) * 2 + 1
        self._call(
            *(_address(pixels), height, width, where.crop, where.left, where.top, across, down, self._support, taps),
            *self._scratch(height, width, where.crop, taps),
            _address(out),
        )

    def _scratch(self, height: int, width: int, crop: int, taps: int) -> list[int]:
        """Addresses of this thread's memory, which is used again for the next picture."""
        sizes = {
            "shares": 8 * taps,
            "weights": 4 * crop * taps,
            "first": 8 * crop,
            "count": 8 * crop,
            "strip": 4 * STRIP * width,
            "sums": 16 * STRIP * crop,
            "levels": 4 * STRIP * crop,
            "between": 4 * height * crop,
        }
        return [self._memory(name, size) for name, size in sizes.items()]

    def _memory(self, name: str, size: int) -> int:
        kept: tuple[int, int, Any] | None = getattr(self._local, name, None)
        if kept is None or kept[1] < size:
            memory = np.empty(ceil(size / 8), np.uint64)  # aligned for every type
            kept = _address(memory), size, memory
            setattr(self._local, name, kept)
        return kept[0]


def _address(array: npt.NDArray[Any]) -> int:
    found: int = array.__array_interface__["data"][0]
    return found
