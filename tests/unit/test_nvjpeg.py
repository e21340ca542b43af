"""nvjpeg-1 on the device `cpu`: the same road with torchvision's CPU decoder, against exact-1; and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tasks.errors import ConfigurationError, GlobalFault, ImageError
from tasks.inference.decoding.header import read_header
from tasks.inference.decoding.nvjpeg import GROUP, NvjpegDecoder
from tasks.inference.decoding.policies import Decoder, decode, decoder_version, open_decoder
from tasks.models.spec import Preprocessing

Pixels = npt.NDArray[np.uint8]

CROP = 40
# Levels between this road and exact-1 on a CPU, where both decode with a libjpeg-turbo: only the resize rounds otherwise.
# Measured: at most 1 here, and at most 1 (0.16 on average) on 200 photographs at 256 and 224. What nvJPEG itself rounds
# otherwise is judged in tests/gpu.
TOLERANCE = 1


def spec(**given: Any) -> Preprocessing:
    return Preprocessing(
        **{"resize": 48, "crop": CROP, "mean": (0.5,) * 3, "std": (0.5,) * 3, "decode": "nvjpeg", **given}
    )


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """Smooth, with some noise: what photographs are made of."""
    x, y = np.meshgrid(np.linspace(0, 6 * np.pi, width), np.linspace(0, 4 * np.pi, height))
    smooth = np.stack([127 + 110 * np.sin(x), 127 + 110 * np.cos(y), 127 + 60 * np.sin(x + y)], axis=2)
    noise = np.random.default_rng(seed).normal(0, 6, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, orientation: int = 1, **options: Any) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    (image or picture()).save(out, "JPEG", **{"quality": 92, "exif": exif, **options})
    return out.getvalue()


def canvas(count: int) -> Pixels:
    return np.zeros((count, CROP, CROP, 3), np.uint8)


class Fallback:
    """exact-1, which remembers what it was asked for."""

    def __init__(self, wanted: Preprocessing) -> None:
        self.wanted = wanted
        self.asked: list[bytes] = []

    def __call__(self, data: bytes, out: Pixels) -> None:
        self.asked.append(data)
        out[...] = decode(data, self.wanted)


def open_cpu(**given: Any) -> tuple[NvjpegDecoder, Fallback]:
    fallback = Fallback(spec(**given))
    return NvjpegDecoder(spec(**given), "cpu", fallback), fallback


def difference(found: Pixels, data: bytes, wanted: Preprocessing) -> int:
    return int(np.abs(found.astype(int) - decode(data, wanted)).max())


COMMON: dict[str, bytes] = {
    "4:2:0": jpeg(subsampling=2),
    "4:2:2": jpeg(subsampling=1),
    "4:4:4": jpeg(subsampling=0),
    "grey": jpeg(picture().convert("L")),
    "tall": jpeg(picture(50, 160)),
    "enlarged": jpeg(picture(30, 24)),
    "as it is": jpeg(picture(48, 48)),
    "zeros behind its end": jpeg() + bytes(32),
    **{f"turned {turn}": jpeg(orientation=turn) for turn in range(2, 9)},
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", COMMON)
def test_common_jpeg_goes_through_the_device_and_looks_as_by_exact_1(name: str, interpolation: str) -> None:
    decoder, fallback = open_cpu(interpolation=interpolation)
    out = canvas(1)

    assert decoder.decode_group([COMMON[name]], out) == [None]

    assert fallback.asked == []
    assert difference(out[0], COMMON[name], decoder._spec) <= TOLERANCE


def as_rgb_components() -> bytes:
    """Three components that are RGB as they stand, which Pillow marks with Adobe's segment."""
    return jpeg(keep_rgb=True, subsampling=0)


ODD: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: jpeg(progressive=True),
    "CMYK": lambda: jpeg(picture().convert("CMYK")),
    "RGB as it stands": as_rgb_components,
    "PNG": lambda: png(picture()),
    "a line": lambda: jpeg(picture(4_000, 1), subsampling=0),
}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("name", [name for name in ODD if name != "a line"])
def test_all_else_is_exact_1_to_the_level(name: str) -> None:
    decoder, fallback = open_cpu()
    data, out = ODD[name](), canvas(1)

    assert decoder.decode_group([data], out) == [None]

    assert fallback.asked == [data]
    np.testing.assert_array_equal(out[0], decode(data, decoder._spec))


def test_a_picture_of_too_many_pixels_for_the_device_is_exact_1s(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, fallback = open_cpu()
    monkeypatch.setattr("tasks.inference.decoding.nvjpeg.MOST_PIXELS", 90 * 70 - 1)

    decoder.decode_group([jpeg()], canvas(1))

    assert len(fallback.asked) == 1


def test_a_picture_that_grows_beyond_all_bounds_never_reaches_the_device() -> None:
    decoder, _ = open_cpu(resize=4_096, crop=CROP)

    (error,) = decoder.decode_group([ODD["a line"]()], canvas(1))

    assert error is not None
    assert error.reason == "too_many_pixels"


def broken_inside(data: bytes) -> bytes:
    """A whole file whose tables are nonsense: a decoder refuses it."""
    at = data.index(b"\xff\xc4")
    return data[: at + 5] + b"\xff" * 16 + data[at + 21 :]


def test_what_is_damaged_fails_alone() -> None:
    decoder, _ = open_cpu()
    good = [jpeg(picture(seed=seed)) for seed in range(4)]
    group = [good[0], good[1][:900], good[2], b"", b"hello", broken_inside(good[1]), good[3]]
    out = canvas(len(group))

    errors = decoder.decode_group(group, out)

    assert [error and error.reason for error in errors] == [
        None, "truncated", None, "empty", "not_an_image", "truncated", None,
    ]  # fmt: skip
    for number in (0, 2, 6):
        assert difference(out[number], group[number], decoder._spec) <= TOLERANCE


@pytest.mark.parametrize("lost", [2, 40, 1_000])
def test_a_file_without_its_end_never_reaches_the_device(lost: int) -> None:
    """nvJPEG may fill what is missing with grey, and say nothing."""
    decoder, fallback = open_cpu()
    device = decoder._decode_jpegs = Device(decoder, lambda _: None)
    cut = jpeg()[:-lost]

    decoder.decode_group([cut], canvas(1))

    assert (device.groups, fallback.asked) == ([], [cut])


def test_one_picture_is_a_group_of_one() -> None:
    decoder, _ = open_cpu()
    alone, out = canvas(1)[0], canvas(1)
    decoder.decode(jpeg(), alone)
    decoder.decode_group([jpeg()], out)

    np.testing.assert_array_equal(alone, out[0])
    with pytest.raises(ImageError) as refused:
        decoder.decode(b"", alone)
    assert refused.value.reason == "empty"


class Device:
    """A decoder that fails as a device does, and counts how large the groups were."""

    def __init__(self, decoder: NvjpegDecoder, refuses: Callable[[Sequence[Any]], Exception | None]) -> None:
        self.decode, self.refuses = decoder._decode_jpegs, refuses
        self.groups: list[int] = []

    def __call__(self, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        self.groups.append(len(encoded))
        if (error := self.refuses(encoded)) is not None:
            raise error
        return self.decode(encoded)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "Error while decoding JPEG images: CUDA out of memory. Tried to allocate"
        ),  # as torchvision says it
        RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5"),  # NVJPEG_STATUS_ALLOCATOR_FAILED
    ],
)
def test_memory_that_runs_out_halves_the_group_and_changes_no_pixels(error: Exception) -> None:
    decoder, fallback = open_cpu()
    data, before, after = [jpeg(picture(seed=seed)) for seed in range(5)], canvas(5), canvas(5)
    decoder.decode_group(data, before)
    device = Device(decoder, lambda group: error if len(group) > 2 else None)
    decoder._decode_jpegs = device

    assert decoder.decode_group(data, after) == [None] * 5

    assert device.groups == [5, 2, 3, 1, 2]
    assert fallback.asked == []
    np.testing.assert_array_equal(after, before)


def test_memory_for_not_even_one_picture_fails_the_shard_and_no_picture() -> None:
    """exact-1 in its place would make the pixels depend on what else ran on the GPU."""
    decoder, fallback = open_cpu()
    decoder._decode_jpegs = Device(decoder, lambda _: torch.OutOfMemoryError("CUDA out of memory"))

    with pytest.raises(GlobalFault, match="no memory to decode one picture of 90 x 70"):
        decoder.decode_group([jpeg()], canvas(1))
    assert fallback.asked == []


def test_what_the_device_refuses_is_exact_1s_and_the_others_stay_on_the_device() -> None:
    decoder, fallback = open_cpu()
    data = [jpeg(picture(seed=seed)) for seed in range(4)]
    refused = torch.frombuffer(bytearray(data[2]), dtype=torch.uint8)
    decoder._decode_jpegs = Device(
        decoder, lambda group: RuntimeError("Failed: 4") if any(torch.equal(refused, each) for each in group) else None
    )

    assert decoder.decode_group(data, canvas(4)) == [None] * 4
    assert fallback.asked == [data[2]]


def test_a_lost_device_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, fallback = open_cpu()
    decoder._decode_jpegs = Device(decoder, lambda _: RuntimeError("Failed to decode batch: 6"))

    def settle() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(decoder, "_settle", settle)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        decoder.decode_group([jpeg()], canvas(1))
    assert fallback.asked == []


def test_a_worker_without_a_gpu_refuses_the_policy_and_takes_the_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'decode = "nvjpeg-1", which needs a CUDA device.*runs on cpu'):
        open_decoder(spec(), tmp_path, 1, "cpu")
    for policy in ("exact-1", "fast-1"):
        decoder = open_decoder(spec(decode=policy), tmp_path, 1, "cpu")
        assert isinstance(decoder, Decoder)
        assert decoder.group == 4


def test_a_cpu_policy_decodes_a_group_one_by_one(tmp_path: Path) -> None:
    decoder = open_decoder(spec(decode="exact"), tmp_path, 1, "cpu")
    out = canvas(3)

    errors = decoder.decode_group([jpeg(), b"hello", jpeg(picture(seed=1))], out)

    assert [error and error.reason for error in errors] == [None, "not_an_image", None]
    np.testing.assert_array_equal(out[2], decode(jpeg(picture(seed=1)), spec()))


def test_a_gpus_decoder_falls_back_to_exact_1_and_wants_groups(tmp_path: Path) -> None:
    decoder = open_decoder(spec(), tmp_path, 1, "cuda:0")

    assert isinstance(decoder, NvjpegDecoder)
    assert decoder.group == GROUP > 1
    out = canvas(1)[0]
    decoder._fallback(png(picture()), out)
    np.testing.assert_array_equal(out, decode(png(picture()), spec()))


def test_the_decoders_version_tells_of_both_decoders() -> None:
    from importlib.metadata import version

    assert decoder_version("nvjpeg-1").startswith(f"nvjpeg-1 pillow-{version('pillow')} ")
    assert decoder_version("nvjpeg-1").endswith(f"torchvision-{version('torchvision').partition('+')[0]}")
    assert "torchvision" not in decoder_version("exact-1")


def test_a_header_is_read_without_the_pixels() -> None:
    header = read_header(jpeg(picture(90, 70), subsampling=2))

    assert header is not None
    assert (header.frame, header.bits, header.width, header.height) == (0xC0, 8, 90, 70)
    assert header.sampling == ((2, 2), (1, 1), (1, 1))


def test_either_mark_of_rgb_is_enough() -> None:
    """By Adobe's transform 0, or by components that are named R, G and B: libjpeg-turbo and browsers go by both."""
    both = as_rgb_components()
    adobe, frame = both.index(b"Adobe"), both.index(b"\xff\xc0")
    named = both[: adobe + 11] + b"\x01" + both[adobe + 12 :]
    marked = bytearray(both)
    for number in range(3):
        marked[frame + 10 + 3 * number] = number + 1
    unmarked = bytearray(named)
    unmarked[frame:] = marked[frame:]

    found = [read_header(bytes(data)) for data in (both, named, marked, unmarked)]
    assert [header is not None and header.is_common for header in found] == [False, False, False, True]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 20, 150, 170])
def test_half_a_header_is_none(cut: int) -> None:
    data = jpeg()
    assert cut < data.index(b"\xff\xc0") + 10
    assert read_header(data[:cut]) is None


def test_noise_behind_the_magic_is_no_header() -> None:
    for seed in range(200):
        noise = np.random.default_rng(seed).integers(0, 256, 300, dtype=np.uint8).tobytes()
        read_header(b"\xff\xd8\xff" + noise)
        read_header(b"\xff\xd8\xff\xc0\x00\x0b" + noise)
