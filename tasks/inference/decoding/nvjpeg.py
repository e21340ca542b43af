"""JPEG decoded on the GPU in groups, resized and cropped there: the policy nvjpeg-1.

nvJPEG's inverse cosine transform and upsampling round otherwise than libjpeg-turbo's, and the resize here keeps floats
where Pillow rounds between its two passes, so the pixels differ by a few levels from those of exact-1. That is why it
is a policy of its own, part of model_id, and why nothing that depends on a moment decides which decoder a picture gets:

    baseline JPEG, 8 bits, grey or YCbCr, 4:4:4, 4:2:2 or 4:2:0, whole, at most MOST_PIXELS   nvJPEG, turned there by EXIF
    everything else, and what nvJPEG refuses                                                 exact-1 on the CPU

Out of memory is no refusal: the group is halved, and a single picture that does not fit fails the shard. The pixels
come back to host memory, so that the stages know of one kind of pixels (docs/decisions/0009-*.md).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError, GlobalFault, ImageError
from tasks.inference.decoding.geometry import Geometry, crop_of
from tasks.inference.decoding.header import JpegHeader, read_header
from tasks.inference.decoding.jpeg import SIDEWAYS, orientation_of
from tasks.models.spec import Preprocessing

if TYPE_CHECKING:
    import torch

GROUP = 64  # hardware decoders work on several pictures at once; more than this is only memory
MOST_PIXELS = 50_000_000  # of a picture on the device, where it takes 15 bytes a pixel for a moment
_TAIL = 64  # bytes at the end among which a whole file has its end marker; some cameras add zeros

Pixels = npt.NDArray[np.uint8]
Fallback = Callable[[bytes, Pixels], None]
DecodeJpegs = Callable[[list["torch.Tensor"]], list["torch.Tensor"]]
Found = tuple[int, Geometry, int]  # number in the group, where the crop lies, EXIF orientation


class NvjpegDecoder:
    """A Decoder that wants groups. Threads may share it: each has a stream and a buffer of its own.

    On the device `cpu` the same code runs with torchvision's CPU decoder, which is how it is tested without a GPU.
    """

    def __init__(self, spec: Preprocessing, device: str, fallback: Fallback) -> None:
        """`fallback` decodes by exact-1: it fills an array or raises ImageError."""
        import torch

        self.group = GROUP
        self._spec = spec
        self._device = torch.device(device)
        self._decode_jpegs = _decode_jpegs(self._device)
        self._fallback = fallback
        self._local = threading.local()

    @staticmethod
    def version() -> str:
        """What a verdict of this decoder depends on, besides its fallback."""
        return f"torchvision-{version('torchvision').partition('+')[0]}"

    def decode(self, data: bytes, out: Pixels) -> None:
        """A group of one. Raises ImageError."""
        (error,) = self.decode_group([data], [out])
        if error is not None:
            raise error

    def decode_group(self, data: Sequence[bytes], out: Sequence[Pixels]) -> list[ImageError | None]:
        """Fill each array, uint8 RGB [crop, crop, 3], or give the ImageError of its picture."""
        found = [plan for number, each in enumerate(data) if (plan := self._plan(number, each)) is not None]
        decoded = self._on_device(data, found, out)
        errors: list[ImageError | None] = [None] * len(data)
        for number in sorted(set(range(len(data))) - decoded):
            try:
                self._fallback(data[number], out[number])
            except ImageError as error:
                errors[number] = error
        return errors

    def _plan(self, number: int, data: bytes) -> Found | None:
        """What is to be done with a picture on the device; None where it is the fallback's by the policy."""
        header = read_header(data)
        if header is None or not header.is_common or b"\xff\xd9" not in data[-_TAIL:]:
            return None
        orientation = orientation_of(data)
        where = crop_of(*_upright_size(header, orientation), self._spec.resize, self._spec.crop)
        if max(header.width * header.height, where.size[0] * where.size[1]) > MOST_PIXELS:
            return None
        return number, where, orientation

    def _on_device(self, data: Sequence[bytes], found: list[Found], out: Sequence[Pixels]) -> set[int]:
        """Decode what nvJPEG takes, and return the numbers of it. A group that fails is tried in halves."""
        if not found:
            return set()
        try:
            self._fill(data, found, out)
            return {number for number, _, _ in found}
        except RuntimeError as error:
            no_memory = _is_memory(error)
        self._settle()
        if len(found) == 1:
            if no_memory:
                raise _too_large_for_now(found[0][1], self._device)
            return set()
        middle = len(found) // 2
        return self._on_device(data, found[:middle], out) | self._on_device(data, found[middle:], out)

    def _fill(self, data: Sequence[bytes], found: list[Found], out: Sequence[Pixels]) -> None:
        """Decode, turn, resize, crop, and copy back.

        It ends with everything done on this thread's stream. That matters: torchvision's decoder writes on a stream of
        its own into memory of this one, without waiting for it, so no work of an earlier group may be under way.
        """
        import torch

        with torch.inference_mode(), self._stream():
            encoded = [torch.frombuffer(bytearray(data[number]), dtype=torch.uint8) for number, _, _ in found]
            pictures = self._decode_jpegs(encoded)
            plans = zip(pictures, found, strict=True)
            crops = [self._crop(picture, where, orientation) for picture, (_, where, orientation) in plans]
            host = self._back(torch.stack(crops))
        for (number, _, _), pixels in zip(found, host, strict=True):
            out[number][...] = pixels

    def _crop(self, picture: torch.Tensor, where: Geometry, orientation: int) -> torch.Tensor:
        """uint8 [3, height, width] to uint8 [crop, crop, 3]."""
        import torch
        from torch.nn.functional import interpolate

        if tuple(picture.shape[1:]) != _stored_size(where, orientation):
            raise RuntimeError(f"the decoder gives {tuple(picture.shape)} for {where.width} x {where.height} pixels")
        levels = _turn(picture, orientation).to(torch.float32)[None]
        width, height = where.size
        if where.size != (where.width, where.height):
            levels = interpolate(levels, (height, width), mode=self._spec.interpolation, antialias=True)
        cropped = levels[0, :, where.top : where.top + where.crop, where.left : where.left + where.crop]
        return cropped.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)

    def _back(self, crops: torch.Tensor) -> Pixels:
        """uint8 [n, crop, crop, 3] in host memory of this thread's, valid until its next group."""
        import torch

        if self._device.type != "cuda":
            return crops.numpy()
        kept: torch.Tensor | None = getattr(self._local, "host", None)
        if kept is None or len(kept) < len(crops):
            kept = self._local.host = torch.empty(crops.shape, dtype=torch.uint8, pin_memory=True)
        kept[: len(crops)].copy_(crops, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return kept[: len(crops)].numpy()

    def _settle(self) -> None:
        """Wait for what a failed group left under way. Raises where not the picture but the device is lost."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _stream(self) -> AbstractContextManager[object]:
        """This thread's stream on the device."""
        import torch

        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._local.stream)


def _decode_jpegs(device: torch.device) -> DecodeJpegs:
    """torchvision's decoder: encoded pictures, uint8 [bytes] on the CPU, to uint8 [3, height, width] on the device.

    torchvision calls it deprecated since 0.29; it is what there is beside torch alone, so it is asked for here only.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise ConfigurationError(
            f'This bundle declares decode = "nvjpeg-1", and torchvision {version("torchvision")} has no '
            f"torchvision.io.decode_jpeg: {error}. Install a torchvision that has it, or declare exact-1."
        ) from None

    def decode(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)  # type: ignore[no-any-return]

    return decode


def _upright_size(header: JpegHeader, orientation: int) -> tuple[int, int]:
    return (header.height, header.width) if orientation in SIDEWAYS else (header.width, header.height)


def _stored_size(where: Geometry, orientation: int) -> tuple[int, int]:
    """Rows and columns as they are stored."""
    return (where.width, where.height) if orientation in SIDEWAYS else (where.height, where.width)


def _turn(stored: torch.Tensor, orientation: int) -> torch.Tensor:
    """Bring stored pixels, [3, rows, columns], upright as EXIF says."""
    turned = stored.transpose(1, 2) if orientation in SIDEWAYS else stored
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return turned if flipped is None else turned.flip(flipped)


def _is_memory(error: RuntimeError) -> bool:
    """Whether memory ran out. torchvision wraps torch's error into another, and nvJPEG's own is status 5."""
    import torch

    first = str(error).partition("\n")[0]
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in first or first.endswith(": 5")


def _too_large_for_now(where: Geometry, device: torch.device) -> GlobalFault:
    return GlobalFault(
        f"{device} has no memory to decode one picture of {where.width} x {where.height} pixels. Free the GPU of other "
        "programs, or lower AFTERIMAGE_BATCH_SIZE. Then clear the task: it goes on where it stopped."
    )
