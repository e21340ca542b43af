"""What runs the forward pass: OpenVINO on a CPU, torch on a GPU.

The device is the worker's choice, the precision is not: a bundle declares it, and a CPU runs fp32 through OpenVINO
and the half precisions through torch.

openvino_runtime.py   fp32 on a CPU
torch_runtime.py      lanes of one classifier on one torch device
lanes.py              a stream, its buffers and its CUDA graph
programs.py           a classifier compiled once, and kept
private.py            the folder that compiled code is loaded from
batches.py            the batch size that is best, and remembered
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle

if TYPE_CHECKING:
    from tasks.settings import Settings

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Runtime(Protocol):
    """A loaded model."""

    device: str
    """What it runs on, as it stands in the shard row: "cpu", or the GPU's name."""

    batch_size: int
    """The most images that one forward pass takes."""

    streams: int
    """How many threads may be in `forward` at the same time."""

    def buffer(self) -> Pixels:
        """Memory for one batch, uint8 [batch_size, crop, crop, 3], as the device wants it (aligned, pinned).

        The caller makes one for each stream.
        """
        ...

    def forward(self, pixels: Pixels) -> Logits:
        """uint8 RGB [n <= batch_size, crop, crop, 3] to float32 logits [n, classes], which are the caller's to keep."""
        ...


def open_runtime(bundle: Bundle, settings: Settings) -> Runtime:
    """Load a bundle on the device that the settings name. Raises ModelError or ConfigurationError."""
    device = choose_device(settings)
    if device == "cpu" and bundle.spec.precision == "fp32":
        from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(bundle, settings.compiled, settings.batch_size)
    from tasks.models.runtimes.torch_runtime import open_torch

    return open_torch(bundle, device, settings.compiled, settings.batch_size)


def choose_device(settings: Settings) -> str:
    """`cpu`, `cuda` or `cuda:N`: one worker, one device. Raises ConfigurationError where torch does not find it.

    `cuda` is the first of those that CUDA_VISIBLE_DEVICES leaves to this process.
    """
    wanted = settings.device
    if wanted == "cpu" or (wanted == "auto" and not os.path.exists("/dev/nvidiactl")):
        return "cpu"
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if there else "cpu"
    if not there:
        raise ConfigurationError(
            f"AFTERIMAGE_DEVICE is {wanted!r}, and torch finds no CUDA device. Set it to auto or cpu."
        )
    if int(wanted.partition(":")[2] or 0) >= there:
        raise ConfigurationError(
            f"AFTERIMAGE_DEVICE is {wanted!r}, and torch finds {there} CUDA devices, which are numbered from 0. "
            "Name one of them, or look at CUDA_VISIBLE_DEVICES."
        )
    return wanted
