"""Decoding by the policy exact-1: pixel for pixel what Pillow and torchvision's own transforms give."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from tasks.errors import ImageError
from tasks.inference.decoding import policies
from tasks.inference.decoding.policies import FORMATS, MAX_PIXELS, decode
from tasks.models.bundle import Preprocessing
from tests.pictures import picture

# Pillow warns of each picture whose EXIF it cannot read to the end.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

REASONS = {"empty", "not_an_image", "unsupported_format", "truncated", "too_many_pixels"}
ORIENTATIONS = range(1, 9)

Interpolation = Literal["bilinear", "bicubic"]


def spec(resize: int = 16, crop: int = 16, interpolation: Interpolation = "bilinear") -> Preprocessing:
    return Preprocessing(
        resize=resize, crop=crop, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


def reference(data: bytes, wanted: Preprocessing) -> npt.NDArray[np.uint8]:
    """What torchvision's evaluation transforms give for the picture as a browser shows it."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    transforms = v2.Compose(
        [v2.Resize(wanted.resize, InterpolationMode(wanted.interpolation)), v2.CenterCrop(wanted.crop)]
    )
    return np.asarray(transforms(upright))


def pixels(seed: int, width: int, height: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def reason(data: bytes, wanted: Preprocessing | None = None) -> str:
    with pytest.raises(ImageError) as refused:
        decode(data, wanted or spec())
    assert refused.value.reason in REASONS
    assert str(refused.value).endswith(".")
    return refused.value.reason


def same_as_reference(data: bytes, wanted: Preprocessing) -> bool:
    found = decode(data, wanted)
    return found.shape == (wanted.crop, wanted.crop, 3) and np.array_equal(found, reference(data, wanted))


@settings(deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 40),
    smaller=st.integers(0, 39),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_every_size_is_resized_and_cropped_as_torchvision_does(
    width: int, height: int, resize: int, smaller: int, interpolation: Interpolation
) -> None:
    data = encoded(Image.fromarray(pixels(0, width, height)))

    assert same_as_reference(data, spec(resize, max(1, resize - smaller), interpolation))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(224, 224), (500, 375), (333, 501), (225, 1000)])
def test_every_format_at_the_size_of_imagenet(form: str, size: tuple[int, int]) -> None:
    assert same_as_reference(picture(1, size, form), spec(256, 224))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_as_in_the_reference(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(Image.fromarray(pixels(2, 51, 34)), form, exif=exif)

    assert same_as_reference(data, spec(24, 20))


def stored_for(upright: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """How a camera stores a picture under an orientation; the table is that of the EXIF standard."""
    return {
        1: upright,
        2: upright[:, ::-1],  # its first row is the top, its first column the right side
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[orientation]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_comes_out_upright_whatever_way_the_camera_was_held(form: str, orientation: int) -> None:
    upright = pixels(3, 24, 24)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_for(upright, orientation)))

    np.testing.assert_array_equal(decode(encoded(stored, form, exif=exif), spec(24, 24)), upright)


def exif_with(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", exif_with([])])
def test_broken_exif_does_not_hurt_the_pixels(exif: bytes) -> None:
    image = Image.fromarray(pixels(4, 40, 30))

    np.testing.assert_array_equal(
        decode(encoded(image, "JPEG", exif=exif), spec()), reference(encoded(image, "JPEG"), spec())
    )


def test_an_orientation_beside_a_tag_that_cannot_be_written_anew_is_applied() -> None:
    """ImageOps.exif_transpose falls over the pointer to nowhere, after it has read the orientation."""
    image = Image.fromarray(pixels(4, 40, 30))
    nowhere = (0x8769, 9, 1, struct.pack("<i", -5))
    data = encoded(image, "JPEG", exif=exif_with([TURNED, nowhere]))
    with pytest.raises(ValueError, match="seek"):
        reference(data, spec())

    np.testing.assert_array_equal(
        decode(data, spec()), reference(encoded(image, "JPEG", exif=exif_with([TURNED])), spec())
    )


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_passed_over(orientation: int) -> None:
    image = Image.fromarray(pixels(4, 40, 30))
    odd = exif_with([(0x0112, 3, 1, struct.pack("<HH", orientation, 0))])

    np.testing.assert_array_equal(
        decode(encoded(image, "JPEG", exif=odd), spec()), reference(encoded(image, "JPEG"), spec())
    )


def rgb(width: int = 47, height: int = 31) -> Image.Image:
    return Image.fromarray(pixels(5, width, height))


def palette_with_transparency() -> bytes:
    return encoded(rgb().convert("P"), transparency=3)


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.arange(47 * 31, dtype=np.uint16).reshape(31, 47) % 256))


def animation() -> bytes:
    frames = [Image.fromarray(pixels(seed, 47, 31)) for seed in (6, 7, 8)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def two_pictures_of_a_phone() -> bytes:
    return encoded(rgb(), "MPO", save_all=True, append_images=[Image.fromarray(pixels(9, 47, 31))])


KINDS = {
    "grey PNG": lambda: encoded(rgb().convert("L")),
    "grey JPEG": lambda: encoded(rgb().convert("L"), "JPEG"),
    "grey with alpha": lambda: encoded(rgb().convert("LA")),
    "one bit": lambda: encoded(rgb().convert("1")),
    "palette": lambda: encoded(rgb().convert("P")),
    "palette with transparency": palette_with_transparency,
    "RGBA PNG": lambda: encoded(Image.fromarray(pixels(5, 47, 31, channels=4))),
    "RGBA WebP": lambda: encoded(Image.fromarray(pixels(5, 47, 31, channels=4)), "WEBP"),
    "CMYK JPEG": lambda: encoded(rgb().convert("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: encoded(rgb().convert("CMYK"), "TIFF"),
    "progressive JPEG": lambda: encoded(rgb(), "JPEG", progressive=True),
    "JPEG without subsampling": lambda: encoded(rgb(), "JPEG", subsampling=0),
    "16-bit PNG of 256 levels": sixteen_bit,
    "float TIFF": lambda: encoded(rgb().convert("F"), "TIFF"),
    "JPEG in TIFF": lambda: encoded(rgb(), "TIFF", compression="jpeg"),
    "animated GIF": animation,
    "two pictures of a phone": two_pictures_of_a_phone,
    "interlaced GIF": lambda: encoded(rgb().convert("P"), "GIF", interlace=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_as_in_the_reference(kind: str) -> None:
    assert same_as_reference(KINDS[kind](), spec(20, 16))


def test_an_animation_is_its_first_frame() -> None:
    first = encoded(Image.fromarray(pixels(6, 47, 31)), "GIF")

    np.testing.assert_array_equal(decode(animation(), spec()), decode(first, spec()))


def test_alpha_is_dropped_and_not_blended() -> None:
    colours = pixels(5, 20, 20)
    clear = np.dstack([colours, np.zeros((20, 20), np.uint8)])

    np.testing.assert_array_equal(decode(encoded(Image.fromarray(clear)), spec(20, 20)), colours)


def test_a_crop_is_square_uint8_rgb() -> None:
    found = decode(picture(1, (100, 40)), spec(32, 24))

    assert (found.shape, found.dtype) == ((24, 24, 3), np.uint8)


def test_no_bytes_are_empty() -> None:
    assert reason(b"") == "empty"


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"hello, world", b"<!DOCTYPE html><html></html>", b"PK\x03\x04zip", b"{}", b"\xff", b"GIF"]
)
def test_what_no_decoder_knows_is_not_an_image(data: bytes) -> None:
    assert reason(data) == "not_an_image"


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>'


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (svg(), "SVG"),
        (b'\n  <?xml version="1.0"?>\n' + svg(), "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n' + svg(), "SVG"),
        (encoded(rgb(), "PDF"), "PDF"),
        (encoded(rgb(), "EPS"), "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + encoded(rgb(), "EPS"), "PostScript"),
        (encoded(rgb(), "JPEG2000"), "JPEG 2000"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40, "HEIC"),
        (encoded(rgb(), "AVIF"), "AVIF"),
        (b"8BPS\0\x01" + b"\0" * 40, "Photoshop"),
    ],
)
def test_other_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=rf"{name}.*Convert it to one of JPEG, PNG") as refused:
        decode(data, spec())

    assert refused.value.reason == "unsupported_format"


@pytest.mark.parametrize(
    ("form", "told"),
    [("ICO", "unsupported_format"), ("PPM", "unsupported_format"), ("TGA", "not_an_image"), ("PCX", "not_an_image")],
)
def test_formats_that_pillow_knows_and_the_policy_does_not_are_refused(form: str, told: str) -> None:
    assert reason(encoded(rgb(), form)) == told


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.98])
def test_a_picture_that_was_cut_short_is_truncated(form: str, part: float) -> None:
    data = picture(1, (60, 40), form)

    assert reason(data[: int(len(data) * part)]) == "truncated"


@pytest.mark.parametrize(("form", "magic"), [("PNG", 8), ("JPEG", 3), ("GIF", 6), ("WEBP", 12), ("TIFF", 4)])
def test_a_picture_that_ends_within_its_header_is_truncated(form: str, magic: int) -> None:
    data = picture(1, form=form)

    assert {reason(data[:length]) for length in range(magic, 60)} == {"truncated"}


def test_a_picture_whose_pixels_are_whole_is_decoded_without_its_last_chunk() -> None:
    data = picture(1)

    assert np.array_equal(decode(data[:-12], spec()), decode(data, spec()))


def broken_checksum() -> bytes:
    data = bytearray(picture(1))
    data[29] ^= 1  # in the checksum of IHDR
    return bytes(data)


def test_a_wrong_checksum_is_no_whole_picture() -> None:
    assert reason(broken_checksum()) == "truncated"


@settings(deadline=None, max_examples=300)
@given(form=st.sampled_from(FORMATS), place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_gives_the_references_pixels_or_a_reason(form: str, place: int, value: int) -> None:
    data = bytearray(picture(1, (20, 20), form))
    data[place % len(data)] = value

    found: npt.NDArray[np.uint8] | str
    try:
        found = decode(bytes(data), spec())
    except ImageError as refused:
        found = refused.reason

    if isinstance(found, str):
        assert found in REASONS
    else:
        np.testing.assert_array_equal(found, reference(bytes(data), spec()))


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(picture(1, form="JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    data = bytearray(picture(1, form="GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(picture(1, form="BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize("header", [png_header, jpeg_header, gif_header, bmp_header])
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header_alone(header: Any, size: tuple[int, int]) -> None:
    assert reason(header(*size)) == "too_many_pixels"


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_where_warnings_are_errors() -> None:
    assert reason(png_header(10_000, 9_000)) == "too_many_pixels"


def test_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MAX_PIXELS", 100)

    assert decode(picture(1, (10, 10)), spec(10, 10)).shape == (10, 10, 3)
    assert reason(picture(1, (10, 11)), spec(10, 10)) == "too_many_pixels"


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_line_that_would_grow_beyond_all_memory_is_refused(size: tuple[int, int]) -> None:
    assert 40 * MAX_PIXELS < 256 * 256 * 60_000
    assert reason(picture(1, size), spec(256, 224)) == "too_many_pixels"


def test_a_long_strip_within_the_limit_is_decoded() -> None:
    assert same_as_reference(picture(1, (3, 1_200)), spec(64, 64))
