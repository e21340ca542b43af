"""A lane: what one thread needs to itself while it is in `forward`.

On a GPU that is a CUDA stream, a pinned buffer for pixels, one on the device, a pinned buffer for logits and a CUDA
graph of the full batch. With two lanes, one batch is copied while the other is computed.

A partial batch runs as a full one, and the rows beyond it are dropped. No row of a network in evaluation mode depends
on another row, so the padding changes nothing; and because the same kernels run for every count, an image gets the same
logits in a full batch and in a shard's last one. A shard has one partial batch, so it costs nothing that could be seen.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.programs import Program

log = logging.getLogger(__name__)

WARM_UPS = 2  # runs before a capture: libraries allocate and choose their kernels in the first ones


class Lane(Protocol):
    """Runs batches of at most `batch` images for one thread at a time."""

    batch: int

    def forward(self, pixels: Pixels) -> Logits:
        """uint8 [n <= batch, crop, crop, 3] to float32 [n, classes], in memory of the caller's."""
        ...


class CpuLane:
    """The same road without pinned memory, streams and graphs."""

    def __init__(self, program: Program, batch: int, crop: int) -> None:
        self.batch = batch
        self._program = program
        self._padded = torch.zeros(batch, crop, crop, 3, dtype=torch.uint8)

    def forward(self, pixels: Pixels) -> Logits:
        """See Lane.forward. An eager network takes any count; on a CPU the padding would cost what images cost."""
        with torch.inference_mode():
            if not self._program.is_fixed:
                given = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
                return self._program(given).numpy()
            self._padded.numpy()[: len(pixels)] = pixels
            return self._program(self._padded)[: len(pixels)].numpy().copy()


class CudaLane:
    """One stream of a GPU."""

    def __init__(self, program: Program, batch: int, crop: int, device: torch.device) -> None:
        self.batch = batch
        self._program = program
        self._device = device
        with torch.cuda.device(device), torch.inference_mode():
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # It waits asleep: the core is needed for decoding.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._staging = pinned(batch, crop)
            self._pixels = torch.zeros(batch, crop, crop, 3, dtype=torch.uint8, device=device)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._logits = program(self._pixels)
            self._kept = torch.empty(self._logits.shape, dtype=torch.float32, pin_memory=True)
            self._graph = self._capture()
            self._stream.synchronize()

    @property
    def replays(self) -> bool:
        """Whether it replays a captured graph."""
        return self._graph is not None

    def forward(self, pixels: Pixels) -> Logits:
        """See Lane.forward. Pixels in pinned memory, as Runtime.buffer gives it, are copied from where they lie."""
        count = len(pixels)
        source = self._pinned(pixels)
        with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._pixels[:count].copy_(source, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._logits = self._program(self._pixels)
            self._kept[:count].copy_(self._logits[:count], non_blocking=True)
            self._done.record(self._stream)
            self._done.synchronize()
        return self._kept[:count].numpy().copy()

    def _pinned(self, pixels: Pixels) -> Tensor:
        if pixels.flags.c_contiguous and pixels.flags.writeable:
            given = torch.from_numpy(pixels)
            if given.is_pinned():
                return given
        staging = self._staging[: len(pixels)]
        staging.numpy()[...] = pixels
        return staging

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """A graph of the full batch: one launch in place of a hundred.

        Only what this thread does is judged while it is captured: another worker thread may be allocating.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._logits = self._program(self._pixels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("no CUDA graph, kernels are launched one by one: %s", str(error).partition("\n")[0])
            return None
        return graph


def pinned(batch: int, crop: int) -> Tensor:
    """Page-locked memory for one batch, uint8 [batch, crop, crop, 3]: the device copies from it by itself."""
    return torch.empty(batch, crop, crop, 3, dtype=torch.uint8, pin_memory=True)
