"""torch, in channels_last: the runtime for GPUs, and for the half precisions on a CPU.

Only uint8 crosses to the device; normalisation and network are one program there (programs.py), and each thread in
`forward` has a lane of its own (lanes.py). Memory that runs out is the fault of no image: the batch is halved, the
smaller size is remembered, and the work goes on.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from tasks.errors import GlobalFault
from tasks.models.bundle import Bundle
from tasks.models.loading import Classifier, load_classifier
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.batches import Remembered, best_batch
from tasks.models.runtimes.lanes import CpuLane, CudaLane, Lane, pinned
from tasks.models.runtimes.programs import Program, Target, eager, open_program
from tasks.private import private_folder

if TYPE_CHECKING:
    from tasks.settings import Settings

Result = TypeVar("Result")

log = logging.getLogger(__name__)

CPU_BATCH = 32  # larger ones bring nothing there, and cost memory
GPU_STREAMS = 2
PROBE_SECONDS = 0.3
MEMORY_SHARE = 0.8  # of what is free: decoding on the device wants some too


def load(bundle: Bundle, device: str, settings: Settings) -> TorchRuntime:
    """See tasks/models/runtimes."""
    return open_torch(bundle, device, settings.compiled, settings.batch_size)


def open_torch(bundle: Bundle, device: str, compiled: Path, batch_size: int | None) -> TorchRuntime:
    """A bundle on `cpu`, `cuda` or `cuda:N`. Compiling for a CPU takes a minute and brings it little, so a CPU runs eagerly."""
    classifier = load_classifier(bundle)
    crop = bundle.spec.preprocessing.crop
    is_compiled = device != "cpu"
    return TorchRuntime(
        classifier,
        crop,
        device,
        identity=bundle.model_id,
        compiled=compiled,
        batch_size=batch_size,
        is_compiled=is_compiled,
    )


class TorchRuntime:
    """A classifier on one torch device; see Runtime."""

    def __init__(
        self,
        classifier: Classifier,
        crop: int,
        device: str = "cpu",
        *,
        identity: str = "unnamed",
        compiled: Path | None = None,
        batch_size: int | None = None,
        streams: int | None = None,
        is_compiled: bool = True,
    ) -> None:
        """`identity` is the model_id, or what else tells this classifier from all others; `compiled` keeps programs."""
        # TF32 keeps 10 bits of the mantissa. A bundle that declares fp32 gets fp32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        self.device = torch.cuda.get_device_name(self._device) if self._on_gpu else "cpu"
        self.streams = streams or (GPU_STREAMS if self._on_gpu else 1)
        self._classifier = classifier.eval().to(self._device).to(memory_format=torch.channels_last)
        self._crop = crop
        self._is_compiled = is_compiled
        folder = private_folder(compiled, "torch") if compiled is not None else None
        self._target = Target(identity, self._device, self.streams, folder)
        key = self._target.key(crop=crop, dtype=str(classifier.dtype), streams=self.streams)
        self._remembered = Remembered(folder / f"{key}.json" if folder is not None and batch_size is None else None)
        self._lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        self._shrinking = threading.Lock()
        self._is_closed = False
        self.program = "none yet"  # package, compiled or eager
        self.batch_size = batch_size or self._best_batch()
        self._open_lanes()

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        if self._on_gpu:
            with torch.cuda.device(self._device):  # Pinning makes a context, and not on another worker's GPU.
                return pinned(self.batch_size, self._crop).numpy()
        return np.empty((self.batch_size, self._crop, self._crop, 3), np.uint8)

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict. More images than a batch takes, as after memory ran out, go in several."""
        done: list[Logits] = []
        at = 0
        while at < len(pixels) or not done:
            size, found = self._one_batch(pixels[at:])
            if found is None:
                self._halve(size)
                continue
            done.append(found)
            at += size
        return done[0] if len(done) == 1 else np.concatenate(done)

    def close(self) -> None:
        """See Runtime.close."""
        with self._shrinking:
            for _ in range(self.streams):
                self._lanes.get()
            self._is_closed = True
            for _ in range(self.streams):
                self._lanes.put(None)
        self._classifier.to("meta")
        _let_go()

    def _one_batch(self, pixels: Pixels) -> tuple[int, Logits | None]:
        """The batch size, and the logits of as many images; None where memory ran out, and then no lane is held."""
        with self._lane() as lane:
            return lane.batch, _unless_full(lambda: lane.forward(pixels[: lane.batch]))

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane for this thread; it waits while others have them all."""
        lane = self._lanes.get()
        try:
            if lane is None:
                raise RuntimeError("this network is closed") if self._is_closed else _no_memory(self.device)
            yield lane
        finally:
            self._lanes.put(lane)
            del lane

    def _halve(self, failed: int) -> None:
        """Take all lanes out of use and make smaller ones, unless another thread has done so since."""
        with self._shrinking:
            if self.batch_size < failed:
                return
            for _ in range(self.streams):
                self._lanes.get()
            _let_go()
            try:
                self.batch_size = self._half_of(failed)
                self._open_lanes()
            except BaseException:
                for _ in range(self.streams):
                    self._lanes.put(None)  # Whoever waits for a lane must hear of it.
                raise
            self._remembered.write(self.batch_size)

    def _half_of(self, size: int) -> int:
        if size == 1:
            raise _no_memory(self.device)
        log.warning("%s has no memory for batches of %d: going on with %d", self.device, size, size // 2)
        return size // 2

    def _open_lanes(self) -> None:
        """Program and lanes for the batch size, halved until they fit."""
        while (lanes := _unless_full(self._make_lanes)) is None:
            self.batch_size = self._half_of(self.batch_size)
            self._remembered.write(self.batch_size)
        for lane in lanes:
            self._lanes.put(lane)

    def _make_lanes(self) -> list[Lane]:
        program = self._program()
        self.program = program.kind
        if self._on_gpu:
            return [CudaLane(program, self.batch_size, self._crop, self._device) for _ in range(self.streams)]
        return [CpuLane(program, self.batch_size, self._crop) for _ in range(self.streams)]

    def _program(self) -> Program:
        if not self._is_compiled:
            return eager(self._classifier)
        example = self._example(self.batch_size)
        return open_program(self._classifier, example, self._target)

    def _example(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, self._crop, self._crop, 3, dtype=torch.uint8, device=self._device)

    def _best_batch(self) -> int:
        """As remembered, or probed now. The eager network is probed: compiling one for each size would take minutes."""
        if not self._on_gpu:
            return self._remembered.read() or CPU_BATCH
        if (known := self._remembered.read()) is not None:
            return known
        found = best_batch(lambda size: _unless_full(lambda: self._rate(size)))
        log.info("%s: batches of %d", self.device, found)
        self._remembered.write(found)
        return found

    def _rate(self, batch: int) -> float | None:
        """Images/s of eager forward passes; None where all lanes together would have too little memory."""
        with torch.cuda.device(self._device), torch.inference_mode():
            free, _ = torch.cuda.mem_get_info()
            torch.cuda.reset_peak_memory_stats()
            before, pixels, passes = torch.cuda.memory_allocated(), self._example(batch), 0
            self._classifier(pixels)
            torch.cuda.synchronize()
            if (torch.cuda.max_memory_allocated() - before) * self.streams > MEMORY_SHARE * free:
                return None
            started = time.perf_counter()
            while (spent := time.perf_counter() - started) < PROBE_SECONDS:
                self._classifier(pixels)
                torch.cuda.synchronize()
                passes += 1
        return batch * passes / spent


def _unless_full(call: Callable[[], Result]) -> Result | None:
    """What `call` returns, or None where the device's memory ran out; then what it had allocated is let go."""
    try:
        return call()
    except torch.OutOfMemoryError:
        pass  # The error's traceback holds tensors: only behind this block are they free.
    _let_go()
    return None


def _let_go() -> None:
    """Give memory that nobody holds back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _no_memory(device: str) -> GlobalFault:
    return GlobalFault(
        f"{device} has not enough memory for a single image of this model. Free the GPU of other programs (nvidia-smi), "
        "take a smaller model or crop, or set AFTERIMAGE_DEVICE to cpu. Then clear the task: it goes on where it stopped."
    )
