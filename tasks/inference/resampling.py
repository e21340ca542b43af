"""Resize and crop in one go: Pillow's antialiased filters, computed for the pixels of the crop only.

The same pixels as Pillow's, because it is the same arithmetic (src/libImaging/Resample.c): weights rounded to 22 bits,
first along the rows, then down the columns, with whole levels between. Doubles hold those sums exactly, and four bytes a
pixel, RGBX, fill one vector register with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.inference.geometry import Geometry

Pixels = npt.NDArray[np.uint8]
Weights = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # in pixels of the coarser grid

Loop = Callable[..., None]
Loops = tuple[Loop, Loop, Loop]

_COMPILING = threading.Lock()
_LOOPS: dict[Path, Loops] = {}


class Resampler:
    """Resizes pictures with one filter; threads may share it."""

    def __init__(self, interpolation: str, folder: Path) -> None:
        """`folder` keeps the compiled loops, so that only the first worker on a machine compiles them.

        They are loaded by `load`, or with the first picture, which takes half a second of processor time.
        """
        self._support = SUPPORT[interpolation]
        self._folder = folder
        self._local = threading.local()

    def load(self) -> None:
        """Have the loops ready."""
        _compiled(self._folder)

    def resample(self, pixels: Pixels, where: Geometry, shrunk: int, out: Pixels) -> None:
        """Fill `out`, uint8 RGB [crop, crop, 3], from RGBX pixels [height / shrunk, width / shrunk, 4]."""
        height, width = pixels.shape[:2]
        weigh, go_across, go_down = _compiled(self._folder)
        across = self._weights(weigh, width, where.crop, where.left, where.scale[0] / shrunk)
        down = self._weights(weigh, height, where.crop, where.top, where.scale[1] / shrunk)
        between = self._scratch("between", np.uint8, height * where.crop * 4).reshape(height, where.crop * 4)
        row, sums = self._scratch("row", np.float64, width * 8), self._scratch("sums", np.float64, where.crop * 8)
        first, last = down[1][0], down[1][-1] + down[2][-1] - 1
        go_across(pixels.reshape(height, width * 4), first, last, row, sums, *across, between)
        go_down(between, sums, *down, out)

    def _weights(self, weigh: Loop, pixels: int, crop: int, offset: int, scale: float) -> Weights:
        """For each pixel of the crop: the weights of its source pixels, the first of them, and how many they are."""
        weights = np.empty((crop, ceil(self._support * max(scale, 1.0)) * 2 + 1))
        first, count = np.empty(crop, np.int64), np.empty(crop, np.int64)
        weigh(pixels, float(offset), scale, self._support, weights, first, count)
        return weights, first, count

    def _scratch(self, name: str, dtype: Any, size: int) -> npt.NDArray[Any]:
        """Memory of this thread, used again for the next picture."""
        kept: npt.NDArray[Any] | None = getattr(self._local, name, None)
        if kept is None or len(kept) < size:
            kept = np.empty(size, dtype)
            setattr(self._local, name, kept)
        return kept[:size]


def _compiled(folder: Path) -> Loops:
    """The loops as machine code, from the folder or compiled now (about two seconds)."""
    with _COMPILING:
        if folder not in _LOOPS:
            _LOOPS[folder] = _compile(folder)
    return _LOOPS[folder]


def _compile(folder: Path) -> Loops:
    import numba

    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        compiler = numba.njit(nogil=True, cache=True, error_model="numpy")
        loops = [compiler(function) for function in (_weigh, _across, _down)]
        for loop, signature in zip(loops, (_WEIGH, _ACROSS, _DOWN), strict=True):
            loop.compile(signature)
    finally:
        config.CACHE_DIR = before
    return loops[0], loops[1], loops[2]


_WEIGH = "void(int64, float64, float64, float64, float64[:, ::1], int64[::1], int64[::1])"
_ACROSS = "void(uint8[:, ::1], int64, int64, float64[::1], float64[::1], float64[:, ::1], int64[::1], int64[::1], uint8[:, ::1])"
_DOWN = "void(uint8[:, ::1], float64[::1], float64[:, ::1], int64[::1], int64[::1], uint8[:, :, ::1])"

ONE = float(1 << 22)
_1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(number) for number in range(1, 9))


def _weigh(pixels: int, offset: float, scale: float, support: float, weights: Any, first: Any, count: Any) -> None:
    """Pillow's precompute_coeffs for the pixels of the crop: a triangle (support 1) or a cubic with a = -0.5 (2)."""
    stretch = max(scale, 1.0)
    for index in range(len(first)):
        centre = (offset + index + 0.5) * scale
        low = max(int(centre - support * stretch + 0.5), 0)
        high = min(int(centre + support * stretch + 0.5), pixels)
        total = 0.0
        for step in range(high - low):
            x = abs((step + low - centre + 0.5) * (1.0 / stretch))
            if support == 1.0:
                weight = 1.0 - x if x < 1.0 else 0.0
            elif x < 1.0:
                weight = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                weight = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            else:
                weight = 0.0
            weights[index, step] = weight
            total += weight
        for step in range(high - low):
            share = weights[index, step] / total * ONE
            weights[index, step] = float(int(share - 0.5 if share < 0.0 else share + 0.5))
        first[index] = low
        count[index] = high - low


def _across(
    pixels: Any, top: int, bottom: int, row: Any, sums: Any, weights: Any, first: Any, count: Any, between: Any
) -> None:
    """The rows from `top` to `bottom`, each to the columns of the crop.

    Two rows at a time, so that each weight is fetched once for eight numbers that stand side by side. Indices are
    unsigned, because for signed ones every access would first be asked whether it counts from the end.
    """
    crop, start = len(first), first[0]
    end = first[crop - 1] + count[crop - 1]
    for y in range(top, bottom + 1, 2):
        beside = min(y + 1, bottom)
        for x in range(end - start):
            for channel in range(4):
                row[8 * x + channel] = pixels[y, 4 * (start + x) + channel]
                row[8 * x + channel + 4] = pixels[beside, 4 * (start + x) + channel]
        for x in range(crop):
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.5 * ONE
            at = np.uint64(8 * (first[x] - start))
            for step in range(count[x]):
                weight = weights[x, step]
                a0 += weight * row[at]
                a1 += weight * row[at + _1]
                a2 += weight * row[at + _2]
                a3 += weight * row[at + _3]
                b0 += weight * row[at + _4]
                b1 += weight * row[at + _5]
                b2 += weight * row[at + _6]
                b3 += weight * row[at + _7]
                at += _8
            to = np.uint64(4 * x)
            sums[to], sums[to + _1], sums[to + _2], sums[to + _3] = a0, a1, a2, a3
            to += np.uint64(4 * crop)
            sums[to], sums[to + _1], sums[to + _2], sums[to + _3] = b0, b1, b2, b3
        for half in range(2):
            target = between[y] if half == 0 else between[beside]
            source = sums[4 * crop * half : 4 * crop * (half + 1)]
            for index in range(4 * crop):
                level = np.int32(source[index] * (1.0 / ONE))
                level = level if level > 0 else np.int32(0)
                target[index] = level if level < 255 else np.int32(255)


def _down(between: Any, sums: Any, weights: Any, first: Any, count: Any, out: Any) -> None:
    """The columns of the crop, each to its rows."""
    crop = len(first)
    for y in range(crop):
        for index in range(4 * crop):
            sums[index] = 0.5 * ONE
        for step in range(count[y]):
            weight, line = weights[y, step], between[first[y] + step]
            for index in range(4 * crop):
                sums[index] += weight * line[index]
        for x in range(crop):
            for channel in range(3):
                level = np.int32(sums[4 * x + channel] * (1.0 / ONE))
                level = level if level > 0 else np.int32(0)
                out[y, x, channel] = level if level < 255 else np.int32(255)
