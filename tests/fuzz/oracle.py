"""What must hold of the decoder for any bytes: pixels or an ImageError, and the same ones on both roads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.errors import ImageError
from tasks.inference.decoding.jpeg import JpegDecoder
from tasks.inference.decoding.policies import MAX_PIXELS, Decoder, decode, is_costly
from tasks.models.spec import Preprocessing

SPEC = Preprocessing(32, 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COSTLY = "left to a process with limits"


class Oracle:
    """The decoder of exact-1 as workers have it, its fast road for JPEG alone, and Pillow alone."""

    def __init__(self, compiled: Path) -> None:
        self._decoder = Decoder(SPEC, compiled, 1)
        self._jpeg = JpegDecoder(SPEC, compiled, shrink=False)
        self._decoder.prepare()
        self._jpeg.prepare()

    def check(self, data: bytes) -> str:
        """What became of the bytes: `pixels`, a reason, or COSTLY. Raises whatever must not be raised, and
        AssertionError where the two roads differ.
        """
        if is_costly(data):
            return COSTLY
        out, error = np.zeros((SPEC.crop, SPEC.crop, 3), np.uint8), None
        try:
            self._decoder.decode(data, out)
        except ImageError as refused:
            error = refused
        assert error is None or str(error).endswith("."), f"an error without an end: {error}"
        found = "pixels" if error is None else error.reason
        self._compare(data, out, found)
        return found

    def _compare(self, data: bytes, out: np.ndarray, found: str) -> None:
        """Whether a worker without the compiled kernel comes to the same."""
        if not self._jpeg.decode(data, MAX_PIXELS, np.empty_like(out)):
            return
        try:
            expected = decode(data, SPEC)
        except ImageError as error:
            raise AssertionError(f"Pillow refuses what libjpeg-turbo decodes: {error}") from None
        assert found == "pixels"
        assert np.array_equal(out, expected), "libjpeg-turbo's pixels are not Pillow's"
