"""The demo's bucket: scikit-learn's 1,797 scans of handwritten digits, and the objects that make a bucket real.

Besides the scans: 3 twins (the same bytes under another key), 2 corrupt files, 1 text file named .jpg, and one key with
spaces, an emoji and `#?%`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32  # pixels: each scan is 8 x 8, enlarged four times
SPECIAL_KEY = "odd names/a digit 🖊 with #?% in its name.png"
DAYS, LAST_DAY = 30, datetime(2026, 10, 30, 12, tzinfo=UTC)
NOT_SCANS = ("twins/", "damaged/", "odd names/")

Scans = npt.NDArray[np.uint8]


def scans() -> tuple[Scans, npt.NDArray[np.int64]]:
    """All scans as uint8 [1797, 8, 8] in 0..255, and the digit that each one shows."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return pixels, digits.target.astype(np.int64)


def is_training(number: int) -> bool:
    """Every second scan is for training; the others judge the network."""
    return number % 2 == 0


def key_of(number: int, digit: int) -> str:
    """The key says what the scan shows, so that accuracy can be computed from the rows in the cache."""
    suffix = "jpg" if number % 3 == 0 else "png"
    return f"{'train' if is_training(number) else 'test'}/{digit}/scan-{number:04d}.{suffix}"


def objects() -> Iterator[tuple[str, bytes]]:
    """Every object of the bucket: key and bytes."""
    pixels, digits = scans()
    keys = [key_of(number, int(digit)) for number, digit in enumerate(digits)]
    encoded = [encode(scan, key) for scan, key in zip(pixels, keys, strict=True)]
    yield from zip(keys, encoded, strict=True)
    for number in (1, 2, 3):
        yield f"twins/{number}{Path(keys[number]).suffix}", encoded[number]
    yield "damaged/cut-off.png", encoded[1][: len(encoded[1]) // 2]
    yield "damaged/cut-off.jpg", encoded[0][: len(encoded[0]) // 3]
    yield "damaged/not-an-image.jpg", b"This is a text file that somebody named .jpg.\n"
    yield SPECIAL_KEY, encode(np.rot90(pixels[0], 2), SPECIAL_KEY)


def encode(scan: Scans, key: str) -> bytes:
    """One scan as PNG or JPEG, enlarged so that JPEG does not blur it away."""
    image = Image.fromarray(np.kron(scan, np.ones((SIDE // 8, SIDE // 8), np.uint8)))
    out = io.BytesIO()
    image.save(out, "JPEG" if key.endswith(".jpg") else "PNG", quality=95)
    return out.getvalue()


def write_folder(root: Path) -> int:
    """Write the bucket as a folder; files that are there already stay as they are. Returns the number of objects.

    The files are spread over the DAYS before LAST_DAY, as if some had come in on each of them.
    """
    count = 0
    for key, data in objects():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
            written = (LAST_DAY - timedelta(days=count % DAYS)).timestamp()
            os.utime(path, (written, written))
        count += 1
    return count
