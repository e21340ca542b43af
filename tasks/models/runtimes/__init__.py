"""What runs the forward pass: OpenVINO on a CPU, torch on a GPU.

The device is the worker's choice, the precision is not: a bundle declares it, and a CPU runs fp32 through OpenVINO
and the half precisions through torch.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle
from tasks.settings import Settings

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Runtime(Protocol):
    """A loaded model.

    `device` is what stands in the shard's row, `batch_size` the most images of one forward pass, and `streams` how many
    threads may be in `forward` at the same time.
    """

    device: str
    batch_size: int
    streams: int

    def buffer(self) -> Pixels:
        """Memory for one batch as the device wants it, uint8 [batch_size, crop, crop, 3]; make one for each stream."""
        ...

    def forward(self, pixels: Pixels) -> Logits:
        """uint8 RGB [n, crop, crop, 3] to float32 logits [n, classes]."""
        ...


def open_runtime(bundle: Bundle, settings: Settings) -> Runtime:
    """Load a bundle on the device that the settings name. Raises ModelError or ConfigurationError."""
    device = choose_device(settings)
    if device == "cpu" and bundle.spec.precision == "fp32":
        from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(bundle, settings.compiled, settings.batch_size)
    from tasks.models.runtimes.torch_runtime import TorchRuntime

    return TorchRuntime(bundle, device, settings.batch_size)


def choose_device(settings: Settings) -> str:
    """`cpu` or `cuda`. Raises ConfigurationError where cuda is asked for and torch finds none."""
    if settings.device == "cpu" or (settings.device == "auto" and not os.path.exists("/dev/nvidiactl")):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if settings.device == "auto":
        return "cpu"
    raise ConfigurationError("AFTERIMAGE_DEVICE is 'cuda', and torch finds no CUDA device. Set it to auto or cpu.")
