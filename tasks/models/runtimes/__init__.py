"""What runs the forward pass. A runtime is a file here and an entry in RUNTIMES.

Its module has `load(bundle, device, settings)`, which gives a Runtime. The device is the worker's choice, the precision is
not: a bundle declares it. Of the runtimes that take the bundle on that device the first one is used, or the one that
AFTERIMAGE_RUNTIME names.

openvino_runtime.py      a CPU: fp32, and int8 that was made for it
torch_runtime.py         lanes of one classifier on one torch device
onnxruntime_runtime.py   a CPU, where it is asked for
tensorrt_runtime.py      a GPU: networks in ONNX, and others where it is asked for
converting.py            a bundle in the form that a runtime reads, made once and kept
lanes.py                 a stream, its buffers and its CUDA graph
programs.py              a classifier compiled once, and kept
batches.py               the batch size that is best, and remembered
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle
from tasks.models.spec import Form, Precision

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
    """How many threads may be in `predict` at the same time."""

    def buffer(self) -> Pixels:
        """Memory for one batch, uint8 [batch_size, crop, crop, 3], as the device wants it (aligned, pinned).

        The caller makes one for each stream.
        """
        ...

    def predict(self, pixels: Pixels) -> Logits:
        """uint8 RGB [n <= batch_size, crop, crop, 3] to float32 logits [n, classes], which are the caller's to keep."""
        ...

    def close(self) -> None:
        """Let go of the network and of the device's memory; nothing is predicted behind it. May be called twice."""
        ...


@dataclass(frozen=True)
class Entry:
    """A runtime that there is: its name in AFTERIMAGE_RUNTIME, its module, and what it takes."""

    name: str
    module: str
    devices: tuple[str, ...]
    forms: tuple[Form, ...]
    precisions: tuple[Precision, ...]
    on_request: tuple[Form, ...] = ()
    """Forms that it takes only where AFTERIMAGE_RUNTIME names it."""

    def takes(self, bundle: Bundle, device: str, by_name: bool) -> bool:
        """Whether it runs this bundle on `cpu`, `cuda` or `cuda:N`; `by_name`, where it was asked for."""
        forms = self.forms + (self.on_request if by_name else ())
        is_for_it = bundle.spec.form in forms and bundle.spec.precision in self.precisions
        return is_for_it and device.partition(":")[0] in self.devices


HALVES: tuple[Precision, ...] = ("bf16", "fp16")

# The first that takes a bundle is used.
RUNTIMES = (
    Entry("openvino", "openvino_runtime", ("cpu",), ("torch", "openvino", "onnx"), ("fp32", "int8")),
    Entry("onnxruntime", "onnxruntime_runtime", ("cpu",), (), ("fp32", "int8"), on_request=("torch", "onnx")),
    Entry("tensorrt", "tensorrt_runtime", ("cuda",), ("onnx",), ("fp32", *HALVES, "int8"), on_request=("torch",)),
    Entry("torch", "torch_runtime", ("cpu", "cuda"), ("torch", "torch.export"), ("fp32", *HALVES)),
)


def open_runtime(bundle: Bundle, settings: Settings) -> Runtime:
    """Load a bundle on the device that the settings name. Raises ModelError or ConfigurationError."""
    device = choose_device(settings)
    entry = choose_runtime(bundle, device, settings.runtime)
    load: Callable[[Bundle, str, Settings], Runtime] = import_module(f"{__name__}.{entry.module}").load
    return load(bundle, device, settings)


def choose_runtime(bundle: Bundle, device: str, wanted: str = "auto") -> Entry:
    """The runtime for a bundle on a device. Raises ConfigurationError where none takes it, with those that would."""
    for entry in RUNTIMES:
        by_name = wanted == entry.name
        if (by_name or wanted == "auto") and entry.takes(bundle, device, by_name):
            return entry
    what = f"{bundle.spec.name} ({bundle.spec.form}, {bundle.spec.precision})"
    if wanted != "auto":
        raise ConfigurationError(
            f"AFTERIMAGE_RUNTIME is {wanted!r}, which does not run {what} on {device}. Set it to auto, or to one of "
            f"{_names_of(bundle, device)}."
        )
    elsewhere = "cpu" if device != "cpu" else "cuda"
    raise ConfigurationError(
        f"No runtime takes {what} on {device}. On {elsewhere} it is {_names_of(bundle, elsewhere)}: set AFTERIMAGE_DEVICE, "
        "or make a bundle for this device with ./afterimage models optimise."
    )


def runtimes_of(bundle: Bundle, device: str) -> list[str]:
    """Names of the runtimes that take a bundle on a device, on request too; the first one is what is used without one."""
    return [entry.name for entry in RUNTIMES if entry.takes(bundle, device, by_name=True)]


def _names_of(bundle: Bundle, device: str) -> str:
    return ", ".join(runtimes_of(bundle, device)) or "none"


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
