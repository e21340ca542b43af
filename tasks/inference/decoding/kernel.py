"""The resize and crop of resampling.py as machine code sees it: Python that numba compiles.

No objects, no exceptions, no index below zero. Only a process that compiles imports this module.
"""

# mypy: disable-error-code="attr-defined"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from tasks.inference.decoding.resampling import STRIP

LANES = 4 * STRIP

ONE, HALF, BITS = float(1 << 22), np.int32(1 << 21), np.int32(22)
NONE, FULL = np.int32(0), np.int32(255)

_helper = njit(error_model="numpy")


def resample(
    pixels: Any,
    height: int,
    width: int,
    crop: int,
    left: int,
    top: int,
    scale_x: float,
    scale_y: float,
    support: float,
    taps: int,
    shares: Any,
    weights: Any,
    first: Any,
    count: Any,
    strip: Any,
    sums: Any,
    levels: Any,
    between: Any,
    out: Any,
) -> None:
    shares, weights = carray(shares, (taps,), np.float64), carray(weights, (crop, taps), np.int32)
    first, count = carray(first, (crop,), np.int64), carray(count, (crop,), np.int64)
    sums = carray(sums, (LANES * crop,), np.int32)
    between_pixels = carray(between, (height, crop), np.uint32)
    between_levels = carray(between, (height, 4 * crop), np.uint8)

    begin, _ = _reach(height, top + 0.5, scale_y, support)
    _, end = _reach(height, top + crop - 0.5, scale_y, support)
    _weigh(width, float(left), scale_x, support, shares, weights, first, count)
    _across(
        carray(pixels, (height, width), np.uint32),
        begin,
        end,
        weights,
        first,
        count,
        carray(strip, (STRIP * width,), np.uint32),
        carray(strip, (LANES * width,), np.uint8),
        sums,
        carray(levels, (STRIP * crop,), np.uint32),
        carray(levels, (LANES * crop,), np.uint8),
        between_pixels,
    )
    _weigh(height, float(top), scale_y, support, shares, weights, first, count)
    _down(between_levels, weights, first, count, sums, carray(out, (crop, crop, 3), np.uint8))


@_helper
def _reach(pixels: int, position: float, scale: float, support: float) -> tuple[int, int]:
    """The first source pixel of a place in the resized picture, and the one behind the last."""
    centre, reach = position * scale, support * max(scale, 1.0)
    return max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), pixels)


@_helper
def _weigh(
    pixels: int, offset: float, scale: float, support: float, shares: Any, weights: Any, first: Any, count: Any
) -> None:
    """Pillow's precompute_coeffs for the pixels of the crop: a triangle (support 1) or a cubic with a = -0.5 (2).

    For each pixel of the crop: the weights of its source pixels, the first of them, and how many they are.
    """
    stretch = max(scale, 1.0)
    for index in range(len(first)):
        centre = (offset + index + 0.5) * scale
        low, high = _reach(pixels, offset + index + 0.5, scale, support)
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
            shares[step] = weight
            total += weight
        for step in range(high - low):
            share = shares[step] / total * ONE
            weights[index, step] = np.int32(share - 0.5 if share < 0.0 else share + 0.5)
        first[index] = low
        count[index] = high - low


@_helper
def _across(
    pixels: Any,
    begin: int,
    end: int,
    weights: Any,
    first: Any,
    count: Any,
    strip: Any,
    strip_levels: Any,
    sums: Any,
    levels_pixels: Any,
    levels: Any,
    between: Any,
) -> None:
    """The rows from `begin` to `end`, each to the columns of the crop; a strip of rows at a time, side by side."""
    crop, height, start = len(first), len(pixels), first[0]
    stop = first[crop - 1] + count[crop - 1]
    for y in range(begin, end, STRIP):
        for row in range(STRIP):
            line = pixels[min(y + row, height - 1)]
            for x in range(stop - start):
                strip[STRIP * x + row] = line[start + x]
        for x in range(crop):
            at, to = np.uint64(LANES * (first[x] - start)), np.uint64(LANES * x)
            for lane in range(LANES):
                sums[to + np.uint64(lane)] = HALF
            for step in range(count[x]):
                weight = weights[x, step]
                for lane in range(LANES):
                    product = weight * np.int32(strip_levels[at + np.uint64(lane)])
                    sums[to + np.uint64(lane)] = np.int32(sums[to + np.uint64(lane)] + product)
                at += np.uint64(LANES)
        _clamp(sums, LANES * crop, levels)
        for row in range(min(STRIP, end - y)):
            line = between[y + row]
            for x in range(crop):
                line[x] = levels_pixels[STRIP * x + row]


@_helper
def _down(between: Any, weights: Any, first: Any, count: Any, sums: Any, out: Any) -> None:
    """The columns of the crop, each to its rows."""
    crop = len(first)
    for y in range(crop):
        for index in range(4 * crop):
            sums[index] = HALF
        for step in range(count[y]):
            weight, line = weights[y, step], between[first[y] + step]
            for index in range(4 * crop):
                sums[index] = np.int32(sums[index] + weight * np.int32(line[index]))
        _clamp(sums, 4 * crop, sums)
        for x in range(crop):
            for channel in range(3):
                out[y, x, channel] = sums[4 * x + channel]


@_helper
def _clamp(sums: Any, size: int, levels: Any) -> None:
    """Pillow's clip8: fixed point to whole levels."""
    for index in range(size):
        level = sums[index] >> BITS
        level = level if level > NONE else NONE
        levels[index] = level if level < FULL else FULL
