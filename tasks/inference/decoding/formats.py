"""Formats: which are decoded, and what to say of bytes that are none of them. Content decides, never a name."""

from __future__ import annotations

import codecs
import re

from tasks.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What begins so and is not recognised ends within its header, or has one that Pillow cannot make sense of.
_OURS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II[*+]\x00|MM\x00[*+]|BM.{4}\x00\x00\x00\x00", re.DOTALL
)

# Others that people keep among their pictures, as they begin. TGA and PCX have nothing to tell them by.
_OTHERS = {
    re.compile(pattern, re.DOTALL): name
    for pattern, name in {
        rb"%PDF": "PDF",
        rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript",
        rb"<svg|<!DOCTYPE svg": "SVG",
        rb"<\?xml": "XML or SVG",
        rb"8BPS": "Photoshop",
        rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51": "JPEG 2000",
        rb"\xff\x0a|\x00\x00\x00\x0cJXL ": "JPEG XL",
        rb"....ftyp": "HEIC, AVIF or video",
        rb"\x00\x00[\x01\x02]\x00[^\x00]\x00": "an icon",
        rb"icns": "an icon",
        rb"P[1-7Ff][\s#]": "PNM",
        rb"DDS ": "DDS",
        rb"\x01\xda[\x00\x01][\x01\x02]": "SGI",
        rb"v/1\x01": "OpenEXR",
        rb"qoif": "QOI",
        rb"SIMPLE  =": "FITS",
        rb".{128}DICM": "DICOM",
    }.items()
}


def unidentified(data: bytes) -> ImageError:
    """What is to be said of bytes that no decoder here knows."""
    if _OURS.match(data):
        what = f"The file's header is damaged or ends too early ({len(data):,} bytes in all)"
        return ImageError("truncated", f"{what}. Upload it again, or save it anew.")
    start = data[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    for pattern, name in _OTHERS.items():
        if pattern.match(data) or pattern.match(start):
            return ImageError("unsupported_format", f"This is {name}. Convert it to one of {', '.join(FORMATS)}.")
    return ImageError("not_an_image", f"The bytes begin with {data[:16]!r}, which no decoder knows. Upload an image.")
