"""nvjpeg-1 on a CUDA device, against exact-1 on the CPU."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tasks.inference.decoding.nvjpeg import GROUP, NvjpegDecoder
from tasks.inference.decoding.policies import decode, open_decoder
from tasks.models.spec import Preprocessing

pytestmark = pytest.mark.gpu

Pixels = npt.NDArray[np.uint8]
SPEC = Preprocessing(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="nvjpeg-1")

# Levels between nvJPEG and exact-1: its chroma is upsampled without libjpeg-turbo's triangle filter, so colours differ
# along edges, and their mean hardly. Bounds, not measurements: tighten them where a GPU is measured.
MEAN_LEVELS, MOST_LEVELS = 2.0, 40


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A photograph's make: large areas, some edges, some noise."""
    random = np.random.default_rng(seed)
    areas = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.normal(0, 4, (height, width, 1))
    return Image.fromarray((np.asarray(areas) + grain).clip(0, 255).astype(np.uint8))


def jpeg(width: int = 500, height: int = 375, orientation: int = 1, seed: int = 0, **options: Any) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture(width, height, seed).save(out, "JPEG", **{"quality": 92, "exif": exif, **options})
    return out.getvalue()


@pytest.fixture
def decoder(tmp_path: Path) -> NvjpegDecoder:
    opened = open_decoder(SPEC, tmp_path, 1, "cuda")
    assert isinstance(opened, NvjpegDecoder)
    return opened


def canvas(count: int) -> Pixels:
    return np.zeros((count, 224, 224, 3), np.uint8)


def close(found: Pixels, data: bytes) -> bool:
    levels = np.abs(found.astype(int) - decode(data, SPEC))
    return float(levels.mean()) <= MEAN_LEVELS and int(levels.max()) <= MOST_LEVELS


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1920, 1281), (120, 90), (256, 256), (501, 377)])
def test_pixels_are_close_to_those_of_exact_1(size: tuple[int, int], subsampling: int, decoder: NvjpegDecoder) -> None:
    data = [jpeg(*size, subsampling=subsampling, seed=seed) for seed in range(3)]
    out = canvas(3)
    refused: list[bytes] = []
    decoder._fallback = lambda each, _: refused.append(each)

    assert decoder.decode_group(data, out) == [None] * 3

    assert refused == [], "nvJPEG takes them"
    assert all(close(found, each) for found, each in zip(out, data, strict=True))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_turned_on_the_device(orientation: int, decoder: NvjpegDecoder) -> None:
    data, out = jpeg(orientation=orientation), canvas(1)

    assert decoder.decode_group([data], out) == [None]
    assert close(out[0], data)


def test_a_corrupt_picture_inside_a_group_fails_alone(decoder: NvjpegDecoder) -> None:
    whole = [jpeg(seed=seed) for seed in range(8)]
    group = [*whole[:3], whole[3][:2_000], b"hello", *whole[5:], jpeg(progressive=True)]
    at = whole[4].index(b"\xff\xc4")
    group.append(whole[4][: at + 5] + b"\xff" * 16 + whole[4][at + 21 :])
    out = canvas(len(group))

    errors = decoder.decode_group(group, out)

    reasons = [error and error.reason for error in errors]
    assert reasons == [None, None, None, "truncated", "not_an_image", None, None, None, None, "truncated"]
    assert all(close(out[number], group[number]) for number in (0, 1, 2, 5, 6, 7))
    np.testing.assert_array_equal(out[8], decode(group[8], SPEC))


def test_groups_in_two_threads_give_the_pixels_of_one(decoder: NvjpegDecoder) -> None:
    groups = [[jpeg(300 + 10 * seed, 300, seed=seed + number) for seed in range(12)] for number in range(8)]

    def pixels(group: list[bytes]) -> Pixels:
        out = canvas(len(group))
        assert decoder.decode_group(group, out) == [None] * len(group)
        return out

    alone = [pixels(group) for group in groups]
    with ThreadPoolExecutor(3) as pool:
        for left, right in zip(alone, pool.map(pixels, groups), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_picture_has_the_same_pixels_in_every_group(decoder: NvjpegDecoder) -> None:
    data, alone = [jpeg(seed=seed) for seed in range(GROUP)], canvas(1)
    together = canvas(GROUP)
    decoder.decode_group(data, together)

    for number in (0, GROUP // 2, GROUP - 1):
        decoder.decode_group([data[number]], alone)
        np.testing.assert_array_equal(alone[0], together[number])
