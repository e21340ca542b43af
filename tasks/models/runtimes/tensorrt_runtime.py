"""TensorRT on an NVIDIA GPU: networks in ONNX, int8 among them, and others where AFTERIMAGE_RUNTIME asks for it.

The engine (engines.py) is a program like those of torch, so it runs in the same lanes: two streams, pinned memory and a
CUDA graph for each, and full batches only. Its memory is taken when the lanes are made, so that is when it may run out; then
the batch is halved.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.errors import ConfigurationError, GlobalFault
from tasks.models.bundle import Bundle
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.converting import onnx_file
from tasks.models.runtimes.engines import NoMemory, engine_program, open_engine, tensorrt
from tasks.models.runtimes.lanes import CudaLane, pinned
from tasks.models.runtimes.programs import Target
from tasks.private import private_folder

if TYPE_CHECKING:
    from tasks.settings import Settings

log = logging.getLogger(__name__)

BATCH_SIZE = 128  # an engine holds for one size and is built for minutes, so sizes are not probed
STREAMS = 2


def load(bundle: Bundle, device: str, settings: Settings) -> TensorRtRuntime:
    """See tasks/models/runtimes."""
    return TensorRtRuntime(bundle, device, settings.compiled, settings.batch_size)


class TensorRtRuntime:
    """An engine with a context for each of two streams; see Runtime."""

    def __init__(self, bundle: Bundle, device: str, compiled: Path, batch_size: int | None = None) -> None:
        tensorrt()
        if not torch.cuda.is_available():
            raise ConfigurationError(
                "TensorRT needs a CUDA device, and torch finds none. Set AFTERIMAGE_RUNTIME to auto."
            )
        self._device = torch.device(device)
        self.device = torch.cuda.get_device_name(self._device)
        self.streams, self.batch_size = STREAMS, batch_size or BATCH_SIZE
        self._crop = bundle.spec.preprocessing.crop
        self._network = onnx_file(bundle, compiled)
        self._target = Target(bundle.model_id, self._device, STREAMS, private_folder(compiled, "tensorrt"))
        self._closing, self._is_closed = threading.Lock(), False
        self._lanes = queue.SimpleQueue[CudaLane | None]()
        for lane in self._fitting_lanes():
            self._lanes.put(lane)

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        with torch.cuda.device(self._device):  # Pinning makes a context, and not on another worker's GPU.
            return pinned(self.batch_size, self._crop).numpy()

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict."""
        lane = self._lanes.get()
        try:
            if lane is None:
                raise RuntimeError("this network is closed")
            return lane.forward(pixels)
        finally:
            self._lanes.put(lane)
            del lane

    def close(self) -> None:
        """See Runtime.close. Waits for the forward passes that are under way."""
        with self._closing:
            if not self._is_closed:
                for _ in range(self.streams):
                    self._lanes.get()
                self._lanes.put(None)
                self._is_closed = True
        _let_go()

    def _fitting_lanes(self) -> list[CudaLane]:
        """Lanes of the batch size, or of half of it, until they fit into the device's memory."""
        while (lanes := self._make_lanes()) is None:
            _let_go()
            if self.batch_size == 1:
                raise GlobalFault(
                    f"{self.device} has not enough memory for a single image of this model. Free the GPU of other programs "
                    "(nvidia-smi), or take a smaller model or crop. Then clear the task: it goes on where it stopped."
                )
            self.batch_size //= 2
            log.warning("%s has no memory for twice as many: going on with batches of %d", self.device, self.batch_size)
        return lanes

    def _make_lanes(self) -> list[CudaLane] | None:
        """A lane for each stream; None where memory ran out."""
        try:
            engine = open_engine(self._network, self._target, self.batch_size)
            programs = [engine_program(engine, self._device) for _ in range(self.streams)]
            return [CudaLane(program, self.batch_size, self._crop, self._device) for program in programs]
        except (NoMemory, torch.OutOfMemoryError):
            return None  # The error's traceback holds tensors: only behind this block are they free.


def _let_go() -> None:
    """Give memory that nobody holds back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
