"""From bytes to pixels, by a policy that is part of model_id.

`exact-1` gives the pixels of Pillow's decoder, with EXIF orientation applied as browsers do, and of torchvision's reference
transforms: the shorter side resized to `resize` with Pillow's antialiased filter, and a centred crop. JPEG goes through
libjpeg-turbo and loops of our own that give the same pixels in less time (jpeg.py); all other formats, and what
libjpeg-turbo has any complaint about, go through Pillow itself.
`fast-1` is exact-1 with JPEG pictures of at least twice the size decoded at a half, a quarter or an eighth of it.
`nvjpeg-1` is exact-1 with common JPEG decoded, resized and cropped on a GPU (nvjpeg.py); it needs one.

A policy's number rises when golden pixels change (tests/unit/test_golden_pixels.py), not when a library's version does.
docs/formats.md says what becomes of each kind of file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tasks.errors import ConfigurationError, ImageError
from tasks.inference.decoding import costs
from tasks.inference.decoding.formats import FORMATS, unidentified
from tasks.inference.decoding.geometry import crop_of
from tasks.inference.decoding.jpeg import JpegDecoder, stated_orientation
from tasks.inference.decoding.nvjpeg import NvjpegDecoder
from tasks.inference.decoding.sizes import size_of
from tasks.models.spec import Preprocessing

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: a quarter of a gigabyte of RGB

# The resize of jpeg.py is compiled once on a machine, in three seconds of processor time, and saves a millisecond a
# picture there from then on (docs/performance.md). A smaller shard leaves that to a larger one.
WORTH_COMPILING = 1_000
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TURNS = {
    # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_costly(data: bytes) -> bool:
    """Whether decoding could take over some seconds or much memory, so that it belongs into a process with limits."""
    return costs.is_costly(data, MAX_PIXELS)


def decoder_version(policy: str) -> str:
    """Policy and decoders; a quarantined image is tried again when it changes."""
    both = f"{policy} pillow-{version('pillow')} {JpegDecoder.version()}"
    return f"{both} {NvjpegDecoder.version()}" if policy == "nvjpeg-1" else both


def open_decoder(spec: Preprocessing, compiled: Path, pictures: int, device: str) -> Decoder | NvjpegDecoder:
    """The decoder of a policy; `device` is what choose_device answers: cpu, cuda or cuda:N.

    Raises ConfigurationError where the policy needs a GPU and the worker has none: another decoder in its place would
    store other predictions under the same model_id.
    """
    if spec.decode != "nvjpeg-1":
        return Decoder(spec, compiled, pictures)
    if not device.startswith("cuda"):
        raise ConfigurationError(
            f'This bundle declares decode = "nvjpeg-1", which needs a CUDA device, and this worker runs on {device}. '
            'Send it to a worker with a GPU (AFTERIMAGE_DEVICE), or make a bundle with decode = "exact-1".'
        )
    return NvjpegDecoder(spec, device, Decoder(replace(spec, decode="exact-1"), compiled, pictures).decode)


class Decoder:
    """Bytes to pixels by a policy that needs a CPU only; threads may share it."""

    # How many pictures it wants at once: handing them on one by one took 3 % of a run with a small network.
    group = 4

    def __init__(self, spec: Preprocessing, compiled: Path, pictures: int) -> None:
        """`compiled` is the folder of compiled code, `pictures` how many there are to decode."""
        self._spec = spec
        shrink = spec.decode == "fast-1"
        self._jpeg = None
        if JpegDecoder.is_possible():
            self._jpeg = JpegDecoder(spec, compiled, shrink=shrink)
            if shrink:  # The pixels are others than Pillow's, so one decoder must give all of them.
                self._jpeg.prepare()
            elif pictures >= WORTH_COMPILING:
                self._jpeg.prepare_beside()

    def prepare(self) -> None:
        """Wait until it is as fast as it gets, where it would be compiled beside the first pictures."""
        if self._jpeg is not None:
            self._jpeg.prepare()

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out`, uint8 RGB [crop, crop, 3]. Raises ImageError as `decode` does."""
        if self._jpeg is None or not self._jpeg.decode(data, MAX_PIXELS, out):
            out[...] = decode(data, self._spec)

    def decode_group(self, data: Sequence[bytes], out: Sequence[npt.NDArray[np.uint8]]) -> list[ImageError | None]:
        """Fill each array, uint8 RGB [crop, crop, 3], or give the ImageError of its picture."""
        return [self._error(each, pixels) for each, pixels in zip(data, out, strict=True)]

    def _error(self, data: bytes, out: npt.NDArray[np.uint8]) -> ImageError | None:
        try:
            self.decode(data, out)
        except ImageError as error:
            return error
        return None


def decode(data: bytes, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Bytes of an image to uint8 RGB [crop, crop, 3], by exact-1 and Pillow alone.

    Raises ImageError with reason empty, not_an_image, unsupported_format, truncated or too_many_pixels.
    """
    if not data:
        raise ImageError("empty", "The object has no bytes. Upload it again.")
    _check_size(size_of(data) or (0, 0))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size)
            return np.asarray(_crop(_rgb(_upright(image)), spec))
    except UnidentifiedImageError:
        raise unidentified(data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_many_pixels", _too_many(str(error))) from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error on broken files.
        raise _broken(error) from None


def _check_size(size: tuple[int, int]) -> None:
    """First by the header as it stands, so that Pillow is not asked to open a bomb; then as Pillow reads it.

    Pillow's own limit only warns up to twice its number, and belongs to the process, where others may have lifted it.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError("too_many_pixels", _too_many(f"{size[0]:,} x {size[1]:,}"))


def _rgb(image: Image.Image) -> Image.Image:
    """The colours as Pillow converts them. Raises ImageError where they would not be the picture's."""
    if image.mode.startswith(("I", "F")):
        _check_levels(np.asarray(image), image.mode)
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(
            "unsupported_format", f"The colours are {image.mode}, which have no road to RGB here. Save it as RGB."
        ) from None


def _check_levels(values: npt.NDArray[np.generic], mode: str) -> None:
    """Pillow clips deep greys to 0..255: nearly all of a picture of 16 bits would be white, and one of 0..1 black."""
    low, high = float(values.min()), float(values.max())
    is_fraction = mode == "F" and 0 < high <= 1
    if not (low >= 0 and high <= 255) or is_fraction:  # so that what is no number is refused too
        raise ImageError(
            "unsupported_format",
            f"Its greys go from {low:g} to {high:g}, and nothing says which of them is white. "
            "Scale them to 0..255 and save it with 8 bits.",
        )


def _upright(image: Image.Image) -> Image.Image:
    """The pixels of ImageOps.exif_transpose; that one also writes the EXIF anew, and falls over odd tags in it."""
    image.load()
    turn = _TURNS.get(stated_orientation(image))
    return image if turn is None else image.transpose(turn)


def _crop(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """torchvision's Resize(resize) and CenterCrop(crop) on a PIL image, without torch."""
    where = crop_of(*image.size, spec.resize, spec.crop)
    # A line of 1 x 60,000 pixels is small until its shorter side is resized.
    if where.size[0] * where.size[1] > MAX_PIXELS:
        becomes = f"{where.width} x {where.height} becomes {where.size[0]} x {where.size[1]}"
        raise ImageError("too_many_pixels", _too_many(becomes))
    if where.size != image.size:
        image = image.resize(where.size, _FILTERS[spec.interpolation])
    return image.crop((where.left, where.top, where.left + spec.crop, where.top + spec.crop))


def _broken(error: Exception) -> ImageError:
    """Pillow says of whole files too that it has no decoder for their kind, in BMP above all."""
    if str(error).startswith("Unsupported"):
        others = "JPEG, PNG or WebP"
        return ImageError(
            "unsupported_format", f"Pillow does not read this kind of file: {error}. Save it as {others}."
        )
    return ImageError("truncated", f"The file is damaged: {error}. Upload it again.")


def _too_many(found: str) -> str:
    return f"The image has too many pixels ({found}; at most {MAX_PIXELS:,}). Scale it down."
