"""Golden pixels: what each policy gives for one file of each kind, to the last level.

Lossy files stand here as they are, because encoders change; lossless ones are made, because their pixels are known. The
decoders of lossy files are exact by their standards' reference or by the pinned library.
"""

from __future__ import annotations

import hashlib
import io
from base64 import b64decode
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from tasks.inference.decoding.policies import Decoder
from tasks.models.bundle import Preprocessing

LOSSY = {
    "jpeg": b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
        "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
        "Y2NjY2NjY2P/wAARCAAQABgDASIAAhEBAxEB/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAUGBP/EAB8QAAEEAgIDAAAAAAAAAAAAAAAC"
        "AwRhASEFERIxUf/EABcBAAMBAAAAAAAAAAAAAAAAAAADBAX/xAAeEQABAwQDAAAAAAAAAAAAAAACAAESAwQRgQUhMf/aAAwDAQAC"
        "EQMRAD8AlGYNGpEVCbHbEGhixA9aIwJ6vjoseRphmYy3hJGeOoCpREwjXj3n4AwjtweJF3tbFK+eK//Z"
    ),
    "jpeg-progressive": b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
        "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
        "Y2NjY2NjY2P/wgARCAAQABgDASIAAhEBAxEB/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAQFA//EABcBAAMBAAAAAAAAAAAAAAAAAAAC"
        "AwT/2gAMAwEAAhADEAAAAZOrzERIqDbP/8QAGBAAAwEBAAAAAAAAAAAAAAAAAAECEgP/2gAIAQEAAQUCUGRcxQKDJ//EABsRAAEE"
        "AwAAAAAAAAAAAAAAAAABAgMEESEx/9oACAEDAQE/AYLDU6mRs+j/xAAYEQEBAAMAAAAAAAAAAAAAAAABAAMSIf/aAAgBAgEBPwEd"
        "pcZxb//EABQQAQAAAAAAAAAAAAAAAAAAACD/2gAIAQEABj8CX//EABgQAQEAAwAAAAAAAAAAAAAAAAEAESBB/9oACAEBAAE/IbCa"
        "XmPL/9oADAMBAAIAAwAAABDQz//EABcRAAMBAAAAAAAAAAAAAAAAAAABEaH/2gAIAQMBAT8Qq7IOH//EABcRAAMBAAAAAAAAAAAA"
        "AAAAAAABMYH/2gAIAQIBAT8QdLGtGn//xAAZEAADAQEBAAAAAAAAAAAAAAAAIWEBMVH/2gAIAQEAAT8QgWiJI5ozVt8P/9k="
    ),
    "jpeg-grey": b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
        "Z2hnPk1xeXBkeFxlZ2P/wAALCAAQABgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABAUG/8QAHxAAAQQCAgMAAAAAAAAAAAAAAAID"
        "BGEBIQUREjFR/9oACAEBAAA/AMozBoUiKhNlFnjqFMQaKLED1ociJhGvHvPw/9k="
    ),
    "jpeg-cmyk": b64decode(
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAQCwwODAoQDg0OEhEQExgoGhgWFhgxIyUdKDozPTw5Mzg3QEhcTkBEV0U3OFBtUVdfYmdo"
        "Zz5NcXlwZHhcZWdj/8AAFAgAEAAYBEMRAE0RAFkRAEsRAP/EABoAAAIDAQEAAAAAAAAAAAAAAAAGBAUHAgP/xAAsEAABAgMFBQkA"
        "AAAAAAAAAAAAAQUDEUECBBIVYgYTITGBIiQyQlODosHh/9oADgRDAE0AWQBLAAA/AFBuoLOUaRFgwsZoBpl32V3Eu+4val9lXvIX"
        "o/L8OUtw05w59QPVuoWmUaS+gsOPyAZc3UHzKNJBbIWOQDQ3UDKNI3Njdjl2QGluoGUaSY4OVyZYiXfc2r1e5IqwrCoiWeXiWnDi"
        "iSXpNFA//9k="
    ),
    "webp": b64decode(
        "UklGRnwAAABXRUJQVlA4IHAAAABQBACdASoYABAAPxF0tFEsJqUisAgBgCIJbACdMoRwN5XbgBpYXbQ65suAAP77lBN2pQRNEggP"
        "mDj53zBbB1COVztDT4JvkXH8+gTH/BvKSnNJ1J32Jq/rYdX6mWTLFyr0MYPIJzcPcJbcdrFVIAAA"
    ),
}


def pattern() -> Image.Image:
    """Counted, not drawn by a library: ramps, a product of both, and a patch of red."""
    rows, columns = np.mgrid[0:16, 0:24]
    levels = np.stack([columns * 10, rows * 15, (rows * columns) % 256], axis=2).astype(np.uint8)
    levels[4:8, 8:16] = (255, 0, 0)
    return Image.fromarray(levels)


def lossless(form: str, mode: str = "RGB", **options: Any) -> bytes:
    out, image = io.BytesIO(), pattern()
    if mode == "P":  # its own first channel as the index, so that no library chooses colours
        indexed = Image.frombytes("P", image.size, image.getchannel(0).tobytes())
        indexed.putpalette([value for level in range(256) for value in (level, 255 - level, level // 2)])
        image = indexed
    elif mode == "RGBA":
        image.putalpha(image.getchannel(2))
    else:
        image = image.convert(mode)
    image.save(out, form, **options)
    return out.getvalue()


FILES = {
    **LOSSY,
    "png": lossless("PNG"),
    "png-grey": lossless("PNG", "L"),
    "png-palette": lossless("PNG", "P", transparency=30),
    "png-alpha": lossless("PNG", "RGBA"),
    "png-bit": lossless("PNG", "1"),
    "gif": lossless("GIF", "P"),
    "bmp": lossless("BMP"),
    "tiff": lossless("TIFF"),
    "tiff-cmyk": lossless("TIFF", "CMYK"),
    "webp-lossless": lossless("WEBP", lossless=True),
}

GOLDEN = {
    "jpeg exact-1 bilinear": "eb5f200efb4497e8",
    "jpeg exact-1 bicubic": "29aaff01eec1a218",
    "jpeg fast-1 bilinear": "23b2c92fdb91f55c",
    "jpeg fast-1 bicubic": "5fd1e40ae9a8660e",
    "jpeg-progressive exact-1 bilinear": "eb5f200efb4497e8",
    "jpeg-progressive exact-1 bicubic": "29aaff01eec1a218",
    "jpeg-progressive fast-1 bilinear": "23b2c92fdb91f55c",
    "jpeg-progressive fast-1 bicubic": "5fd1e40ae9a8660e",
    "jpeg-grey exact-1 bilinear": "cd165bfe33aaffec",
    "jpeg-grey exact-1 bicubic": "1bb696c53da92e02",
    "jpeg-grey fast-1 bilinear": "79b90e47b5284f89",
    "jpeg-grey fast-1 bicubic": "7e33d03f5ec3ea42",
    "jpeg-cmyk exact-1 bilinear": "255af8c3db3a9281",
    "jpeg-cmyk exact-1 bicubic": "fd805e44b4706a78",
    "jpeg-cmyk fast-1 bilinear": "255af8c3db3a9281",
    "jpeg-cmyk fast-1 bicubic": "fd805e44b4706a78",
    "webp exact-1 bilinear": "4a65015ec5985235",
    "webp exact-1 bicubic": "ab5b1c3a50e6f7d2",
    "webp fast-1 bilinear": "4a65015ec5985235",
    "webp fast-1 bicubic": "ab5b1c3a50e6f7d2",
    "png exact-1 bilinear": "5a21ee0c78a8cdc9",
    "png exact-1 bicubic": "33e90217019ff1de",
    "png fast-1 bilinear": "5a21ee0c78a8cdc9",
    "png fast-1 bicubic": "33e90217019ff1de",
    "png-grey exact-1 bilinear": "b4a94514523ec2be",
    "png-grey exact-1 bicubic": "f655ce5534e9453e",
    "png-grey fast-1 bilinear": "b4a94514523ec2be",
    "png-grey fast-1 bicubic": "f655ce5534e9453e",
    "png-palette exact-1 bilinear": "5176c45516f678de",
    "png-palette exact-1 bicubic": "046a6ab11966e123",
    "png-palette fast-1 bilinear": "5176c45516f678de",
    "png-palette fast-1 bicubic": "046a6ab11966e123",
    "png-alpha exact-1 bilinear": "5a21ee0c78a8cdc9",
    "png-alpha exact-1 bicubic": "33e90217019ff1de",
    "png-alpha fast-1 bilinear": "5a21ee0c78a8cdc9",
    "png-alpha fast-1 bicubic": "33e90217019ff1de",
    "png-bit exact-1 bilinear": "d0919d8cc1cc88f1",
    "png-bit exact-1 bicubic": "d274470e69706576",
    "png-bit fast-1 bilinear": "d0919d8cc1cc88f1",
    "png-bit fast-1 bicubic": "d274470e69706576",
    "gif exact-1 bilinear": "5176c45516f678de",
    "gif exact-1 bicubic": "046a6ab11966e123",
    "gif fast-1 bilinear": "5176c45516f678de",
    "gif fast-1 bicubic": "046a6ab11966e123",
    "bmp exact-1 bilinear": "5a21ee0c78a8cdc9",
    "bmp exact-1 bicubic": "33e90217019ff1de",
    "bmp fast-1 bilinear": "5a21ee0c78a8cdc9",
    "bmp fast-1 bicubic": "33e90217019ff1de",
    "tiff exact-1 bilinear": "5a21ee0c78a8cdc9",
    "tiff exact-1 bicubic": "33e90217019ff1de",
    "tiff fast-1 bilinear": "5a21ee0c78a8cdc9",
    "tiff fast-1 bicubic": "33e90217019ff1de",
    "tiff-cmyk exact-1 bilinear": "5a21ee0c78a8cdc9",
    "tiff-cmyk exact-1 bicubic": "33e90217019ff1de",
    "tiff-cmyk fast-1 bilinear": "5a21ee0c78a8cdc9",
    "tiff-cmyk fast-1 bicubic": "33e90217019ff1de",
    "webp-lossless exact-1 bilinear": "5a21ee0c78a8cdc9",
    "webp-lossless exact-1 bicubic": "33e90217019ff1de",
    "webp-lossless fast-1 bilinear": "5a21ee0c78a8cdc9",
    "webp-lossless fast-1 bicubic": "33e90217019ff1de",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def digest(name: str, policy: str, interpolation: Literal["bilinear", "bicubic"], compiled: Path) -> str:
    half = (0.5, 0.5, 0.5)
    spec = Preprocessing(7, 6, half, half, decode=policy, interpolation=interpolation)  # type: ignore[arg-type]
    decoder, out = Decoder(spec, compiled, 1), np.zeros((6, 6, 3), np.uint8)
    decoder.prepare()
    decoder.decode(FILES[name], out)
    return hashlib.sha256(out.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("policy", ["exact-1", "fast-1"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_golden_pixels(name: str, policy: str, interpolation: Literal["bilinear", "bicubic"], compiled: Path) -> None:
    found, wanted = digest(name, policy, interpolation, compiled), GOLDEN[f"{name} {policy} {interpolation}"]

    assert found == wanted, (
        f"{policy} gives other pixels for {name} than it did. Predictions that are stored under its name would not come "
        f"again: put the pixels back, or raise the policy's number (NEWEST in tasks/models/spec.py) for exact, fast and nvjpeg."
    )
