"""docs/formats.md, line by line: what becomes of each kind of file under the policy, on real files."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from tasks.errors import ImageError
from tasks.inference.decoding.header import scans
from tasks.inference.decoding.policies import MAX_PIXELS, decode, is_costly
from tasks.models.bundle import Preprocessing
from tests.fuzz.samples import deep, encoded, picture, turned
from tests.unit.test_costs import with_scans

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SIDE = 32
SPEC = Preprocessing(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Pixels = npt.NDArray[np.uint8]


def square(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of the size of the crop, so that what is decoded is what was stored."""
    return picture(mode, SIDE, SIDE, seed)


def stored(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as error:
        decode(data, SPEC)
    assert str(error.value).endswith(".")
    return error.value


def near(found: Pixels, wanted: tuple[int, int, int], levels: int = 6) -> bool:
    return bool((np.abs(found.astype(int) - wanted) <= levels).all())


RED = (220, 30, 40)


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), RED).convert(mode)


def test_a_cmyk_jpeg_has_the_colours_that_were_put_in() -> None:
    """Adobe's CMYK is stored inverted, and so is Pillow's."""
    assert b"Adobe" in encoded(red("CMYK"), "JPEG")
    assert near(decode(encoded(red("CMYK"), "JPEG"), SPEC), RED)


def test_a_ycck_jpeg_has_them_too() -> None:
    import simplejpeg

    inverted = np.ascontiguousarray(255 - np.asarray(red("CMYK")))
    data = simplejpeg.encode_jpeg(inverted, colorspace="CMYK", quality=95)

    assert data[data.index(b"Adobe") + 11] == 2  # Adobe's number for YCCK
    assert near(decode(data, SPEC), RED)


def test_a_cmyk_tiff_has_them_too() -> None:
    assert near(decode(encoded(red("CMYK"), "TIFF"), SPEC), RED, levels=1)


def png(colour: int, bits: int, rows: bytes, *chunks: tuple[bytes, bytes], width: int = SIDE) -> bytes:
    """A PNG by hand; `rows` without their filter bytes."""
    length = len(rows) // SIDE
    lines = b"".join(b"\0" + rows[at : at + length] for at in range(0, len(rows), length))
    header = struct.pack(">IIBBBBB", width, SIDE, bits, colour, 0, 0, 0)
    whole = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in whole
    )


def sixteen(channels: int) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 65_536, (SIDE, SIDE, channels)).astype(np.uint16)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_colours_of_16_bits_keep_their_upper_8(colour: int, channels: int) -> None:
    levels = sixteen(channels)

    np.testing.assert_array_equal(
        decode(png(colour, 16, levels.astype(">u2").tobytes()), SPEC), (levels >> 8)[..., :3].astype(np.uint8)
    )


def test_so_does_grey_of_16_bits_that_has_alpha() -> None:
    levels = sixteen(2)

    np.testing.assert_array_equal(
        decode(png(4, 16, levels.astype(">u2").tobytes()), SPEC)[..., 0], (levels[..., 0] >> 8).astype(np.uint8)
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_refused_where_it_would_be_clipped(form: str) -> None:
    """Pillow gives white for all above 255: a picture that nobody has seen, and a confident label for it."""
    data = encoded(deep(SIDE, SIDE), form)
    assert (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) == 255).mean() > 0.99

    assert refused(data).reason == "unsupported_format"
    assert "0..255" in str(refused(data))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_that_holds_levels_of_8_is_what_it_says(form: str) -> None:
    levels = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) % 256

    np.testing.assert_array_equal(decode(encoded(Image.fromarray(levels), form), SPEC)[..., 1], levels)


def test_grey_of_16_bits_in_the_order_of_motorola_is_judged_alike() -> None:
    high = Image.frombytes("I;16B", (SIDE, SIDE), deep(SIDE, SIDE).tobytes())

    assert refused(encoded(high, "TIFF")).reason == "unsupported_format"


@pytest.mark.parametrize(
    "values", [np.linspace(0, 1, SIDE * SIDE), np.linspace(-9, 200, SIDE * SIDE), np.full(SIDE * SIDE, np.nan)]
)
def test_floats_that_are_no_levels_are_refused(values: npt.NDArray[np.float64]) -> None:
    image = Image.fromarray(values.astype(np.float32).reshape(SIDE, SIDE))

    assert refused(encoded(image, "TIFF")).reason == "unsupported_format"


def test_floats_and_integers_that_are_levels_are_decoded() -> None:
    grey = square("L")

    for mode in ("F", "I"):
        np.testing.assert_array_equal(decode(encoded(grey.convert(mode), "TIFF"), SPEC), stored(grey))


def test_lab_is_converted_by_its_own_definition() -> None:
    assert near(decode(encoded(Image.new("LAB", (SIDE, SIDE), (255, 128, 128)), "TIFF"), SPEC), (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_lies_under_transparency_is_what_is_seen(mode: str) -> None:
    clear = square(mode)
    clear.putalpha(0)

    np.testing.assert_array_equal(decode(encoded(clear, "PNG"), SPEC), stored(square(mode[:-1])))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_that_colour(form: str) -> None:
    few = square().quantize(16)

    np.testing.assert_array_equal(decode(encoded(few, form, transparency=3), SPEC), stored(few))


def test_the_transparent_colour_of_a_png_without_palette_is_that_colour() -> None:
    image = square()
    data = encoded(image, "PNG", transparency=image.getpixel((0, 0)))

    np.testing.assert_array_equal(decode(data, SPEC), stored(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "GIF"])
def test_bits_greys_and_palettes_become_rgb(mode: str, form: str) -> None:
    options = {"WEBP": {"lossless": True, "exact": True}}.get(form, {})
    image = square(mode)

    np.testing.assert_array_equal(decode(encoded(image, form, **options), SPEC), stored(image))


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_lzw"})]
)
def test_of_several_pictures_the_first_one_is_taken(form: str, options: dict[str, Any]) -> None:
    first, *others = [square("P" if form == "GIF" else "RGB", seed) for seed in range(3)]
    data = encoded(first, form, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3

    np.testing.assert_array_equal(decode(data, SPEC), stored(first))


def test_of_a_phones_pictures_the_first_one_is_taken() -> None:
    first, second = square(seed=1), square(seed=2)
    both = encoded(first, "MPO", save_all=True, append_images=[second])

    np.testing.assert_array_equal(decode(both, SPEC), decode(encoded(first, "JPEG"), SPEC))


def test_a_jpeg_of_many_scans_is_decoded() -> None:
    many = with_scans(encoded(square(), "JPEG", progressive=True), 60)

    assert scans(many) == 70
    assert not is_costly(many)
    assert decode(many, SPEC).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", ["real", "broken"])
def test_colour_profiles_are_passed_over(form: str, profile: str) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes() if profile == "real" else b"no profile"

    np.testing.assert_array_equal(
        decode(encoded(square(), form, icc_profile=lab), SPEC), decode(encoded(square(), form), SPEC)
    )


@pytest.mark.parametrize("damage", ["swapped", "missing", "doubled"])
def test_wrong_restart_markers_are_got_over_as_every_viewer_does(damage: str) -> None:
    whole = encoded(square(), "JPEG", restart_marker_blocks=1)
    assert whole.count(b"\xff\xd0") == whole.count(b"\xff\xd1") == 1
    data = {
        "swapped": whole.replace(b"\xff\xd0", b"\xff\xd7").replace(b"\xff\xd1", b"\xff\xd0"),
        "missing": whole.replace(b"\xff\xd1", b""),
        "doubled": whole.replace(b"\xff\xd1", b"\xff\xd1\xff\xd1"),
    }[damage]

    found = decode(data, SPEC)

    np.testing.assert_array_equal(found, stored(Image.open(io.BytesIO(data))))
    assert not np.array_equal(found, decode(whole, SPEC))


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("program.txt", "x" * 100)
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("tail", [zipped(), b"<script>alert(1)</script>", bytes(5_000), b"\xff\xd8\xff\xe0"])
def test_what_follows_a_picture_is_passed_over(form: str, tail: bytes) -> None:
    data = encoded(square(), form)

    np.testing.assert_array_equal(decode(data + tail, SPEC), decode(data, SPEC))


def test_html_inside_a_jpegs_comment_is_passed_over() -> None:
    data = encoded(square(), "JPEG", comment=b"<html><body onload=alert(1)>")

    np.testing.assert_array_equal(decode(data, SPEC), decode(encoded(square(), "JPEG"), SPEC))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_that_is_text_is_passed_over(form: str) -> None:
    text = b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, 2, 4) + b"6\0\0\0" + bytes(4)
    options = {"tiffinfo": {0x0112: 1}} if form == "TIFF" else {"exif": text}

    np.testing.assert_array_equal(
        decode(encoded(square(), form, **options), SPEC), decode(encoded(square(), form), SPEC)
    )


@pytest.mark.parametrize("length", range(6, 30, 3))
def test_exif_that_ends_too_early_does_not_hurt_the_pixels(length: int) -> None:
    whole = turned(1).tobytes()

    np.testing.assert_array_equal(
        decode(encoded(square(), "JPEG", exif=whole[:length]), SPEC), decode(encoded(square(), "JPEG"), SPEC)
    )


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_that_unfolds_to_much_is_refused_before_it_does(name: bytes) -> None:
    """Pillow stops at one megabyte of a chunk and at 64 of a file."""
    much = zlib.compress(bytes(50_000_000))
    body = b"x\0\1\0\0\0" + much if name == b"iTXt" else b"x\0\0" + much

    assert "too large" in str(refused(png(0, 8, bytes(SIDE * SIDE), (name, body)))) or name == b"iCCP"


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_a_bomb_is_refused_without_a_warning_and_without_the_processs_own_limit(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters of warnings belong to the whole process, and so does MAX_IMAGE_PIXELS: neither is touched or relied on."""
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert refused(data).reason == "too_many_pixels"
    assert seen == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert refused(data).reason == "too_many_pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_a_gif_whose_first_picture_is_larger_than_its_screen_is_judged_by_the_picture(size: tuple[int, int]) -> None:
    """What the header does not say, Pillow finds out before it decodes; up to twice its limit it only warns."""
    data = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, *size, 0)

    assert size[0] * size[1] > MAX_PIXELS
    assert refused(data + b"\x08\x01\x00\x00;").reason == "too_many_pixels"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x4f\xff\x51" + bytes(40), "JPEG 2000"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (encoded(square(), "ICO"), "an icon"),
        (encoded(square(), "ICNS"), "an icon"),
        (encoded(square(), "PPM"), "PNM"),
        (encoded(square(), "DDS"), "DDS"),
        (encoded(square(), "SGI"), "SGI"),
        (b"<!DOCTYPE svg><svg/>", "SVG"),
        (bytes(128) + b"DICM" + bytes(40), "DICOM"),
        (b"v/1\x01" + bytes(40), "OpenEXR"),
    ],
)
def test_other_formats_are_told_by_their_content(data: bytes, name: str) -> None:
    error = refused(data)

    assert error.reason == "unsupported_format"
    assert f"This is {name}." in str(error)


@pytest.mark.parametrize("form", ["BMP", "TIFF"])
def test_a_bmp_or_big_tiff_that_ends_within_its_header_is_truncated(form: str) -> None:
    data = encoded(square(), form, **({"big_tiff": True} if form == "TIFF" else {}))

    assert {refused(data[:length]).reason for length in range(12, 24)} == {"truncated"}


@pytest.mark.parametrize(("place", "value"), [(14, 66), (28, 2), (30, 6)])
def test_a_kind_of_bmp_that_pillow_does_not_read_is_unsupported(place: int, value: int) -> None:
    """Another header, 2 bits a pixel, another compression: nothing is damaged, and uploading it again is no help."""
    data = bytearray(encoded(square(), "BMP"))
    data[place : place + 2] = struct.pack("<H", value)

    assert refused(bytes(data)).reason == "unsupported_format"
    assert "Save it as" in str(refused(bytes(data)))
