"""Small files of every format and kind that is decoded, made by code, so that nothing of them is stored."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image


def picture(mode: str = "RGB", width: int = 47, height: int = 31, seed: int = 0) -> Image.Image:
    """Smooth noise with a hard edge: it compresses, and no two rows are the same."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 255, 0), (width // 2, 0, width, height // 3))
    return image.convert(mode)


def deep(width: int = 47, height: int = 31) -> Image.Image:
    """Grey of 16 bits."""
    levels = np.linspace(0, 65_535, width * height).reshape(height, width)
    return Image.fromarray(levels.astype(np.uint16))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of a file."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how the camera was held."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Afterimage"
    return exif


def _frames(form: str, mode: str = "RGB", **options: Any) -> bytes:
    first, *others = [picture(mode, seed=seed) for seed in range(3)]
    return encoded(first, form, save_all=True, append_images=others, **options)


SAMPLES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "jpeg-grey": lambda: encoded(picture("L"), "JPEG"),
    "jpeg-cmyk": lambda: encoded(picture("CMYK"), "JPEG"),
    "jpeg-444": lambda: encoded(picture(), "JPEG", subsampling=0),
    "jpeg-422": lambda: encoded(picture(), "JPEG", subsampling=1),
    "jpeg-progressive": lambda: encoded(picture(), "JPEG", progressive=True),
    "jpeg-restarts": lambda: encoded(picture(), "JPEG", restart_marker_blocks=2),
    "jpeg-exif": lambda: encoded(picture(), "JPEG", exif=turned(6)),
    "jpeg-rgb": lambda: encoded(picture(), "JPEG", keep_rgb=True),
    "mpo": lambda: _frames("MPO"),
    "png": lambda: encoded(picture(), "PNG"),
    "png-grey": lambda: encoded(picture("L"), "PNG"),
    "png-grey-alpha": lambda: encoded(picture("LA"), "PNG"),
    "png-bit": lambda: encoded(picture("1"), "PNG"),
    "png-palette": lambda: encoded(picture("P"), "PNG", transparency=3),
    "png-alpha": lambda: encoded(picture("RGBA"), "PNG", exif=turned(8)),
    "png-16": lambda: encoded(deep(), "PNG"),
    "png-animated": lambda: _frames("PNG"),
    "gif": lambda: encoded(picture(), "GIF"),
    "gif-animated": lambda: _frames("GIF", comment=b"three frames"),
    "webp": lambda: encoded(picture(), "WEBP", exif=turned(3)),
    "webp-lossless": lambda: encoded(picture("RGBA"), "WEBP", lossless=True),
    "webp-animated": lambda: _frames("WEBP"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "bmp-palette": lambda: encoded(picture("P"), "BMP"),
    "bmp-bit": lambda: encoded(picture("1"), "BMP"),
    "tiff": lambda: encoded(picture(), "TIFF", exif=turned(5)),
    "tiff-big": lambda: encoded(picture(), "TIFF", big_tiff=True),
    "tiff-lzw": lambda: encoded(picture(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encoded(picture("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": lambda: encoded(picture("L"), "TIFF", compression="packbits"),
    "tiff-jpeg": lambda: encoded(picture(), "TIFF", compression="jpeg"),
    "tiff-fax": lambda: encoded(picture("1"), "TIFF", compression="group4"),
    "tiff-cmyk": lambda: encoded(picture("CMYK"), "TIFF"),
    "tiff-lab": lambda: encoded(picture("LAB"), "TIFF"),
    "tiff-16": lambda: encoded(deep(), "TIFF"),
    "tiff-float": lambda: encoded(picture("F"), "TIFF"),
    "tiff-pages": lambda: _frames("TIFF", compression="tiff_lzw"),
}


def samples() -> dict[str, bytes]:
    """All of them, by name."""
    return {name: make() for name, make in SAMPLES.items()}
