"""OpenVINO on a CPU: two to three times the rate of eager torch at equal top-1 (docs/performance.md), and int8.

The converted network is kept on disk under the model_id, so only the first shard on a machine imports torch. A network that
comes as OpenVINO's own file, or as ONNX, is read as it is.
"""

from __future__ import annotations

import queue
import threading
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.models.bundle import Bundle
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.converting import TRACING, keep
from tasks.models.runtimes.unreported import ov, unreported
from tasks.processors import cores

if TYPE_CHECKING:
    from tasks.settings import Settings

# Small batches stay in a core's cache: measured rates rise up to 4 to 8 images and fall from 16 on.
BATCH_SIZE = 8

# One thread, and not tied to a core, because decoding needs the same ones.
ALONE: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
}

# OpenVINO runs the int8 of ONNX, signed as TensorRT wants it, wrong: SqueezeNet kept 4 of 64 top-1 labels, and 62 where it
# computes in float32 what the file rounds. That is right and no faster; int8 for CPUs is OpenVINO's own form.
ROUNDED: dict[str, Any] = {**ALONE, "LP_TRANSFORMS_MODE": "OFF"}

# What we give OpenVINO to convert; it rises when that changes, so that a home does not keep a slower network.
CONVERSION = 2

# OpenVINO's Python side fills its static variables at the first inference of a process. Two threads that meet there wait
# for each other for ever: one has the interpreter's lock, the other one that of the variable.
_FIRST = threading.Lock()


def load(bundle: Bundle, _device: str, settings: Settings) -> OpenVinoRuntime:
    """See tasks/models/runtimes."""
    return OpenVinoRuntime(bundle, settings.compiled, settings.batch_size)


class OpenVinoRuntime:
    """A network on the CPU, compiled once for each core and run there in one thread.

    Threads that share one forward pass wait for each other at the end of every layer, and longest where decoding takes
    the cores in between. Networks of one thread never wait, and the rule needs no tuning: as many as cores, and the
    bounded queues keep decoders back where the network is slower. OpenVINO's own streams would share the weights, and
    give wrong answers in int8 (docs/decisions/0010).
    """

    device = "cpu"

    def __init__(self, bundle: Bundle, compiled: Path, batch_size: int | None = None) -> None:
        core = ov.Core()
        path = network_file(bundle, compiled)
        self.streams, self.batch_size = cores(), batch_size or BATCH_SIZE
        crop = bundle.spec.preprocessing.crop
        self._shape = (self.batch_size, crop, crop, 3)
        self._options = ROUNDED if (bundle.spec.form, bundle.spec.precision) == ("onnx", "int8") else ALONE
        self._free = queue.SimpleQueue[Any]()
        self._closing, self._is_closed = threading.Lock(), False
        # Nobody waits for them before the first forward pass: there is a decoder to load meanwhile. No daemons: a process
        # that ends while OpenVINO compiles would abort.
        for _ in range(self.streams):
            threading.Thread(target=self._compile, args=(core, path), name="compile").start()

    def _compile(self, core: Any, path: Path) -> None:
        """One more request, or the error that the next forward pass raises."""
        try:
            model = core.read_model(path)
            model.reshape(list(self._shape))  # a batch of known size is a tenth faster (MobileNetV3-Small)
            request = core.compile_model(model, "CPU", self._options).create_infer_request()
            with _FIRST:
                request.infer([np.zeros(self._shape, np.uint8)])
            self._free.put(request)
        except Exception as error:
            self._free.put(error)

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        return np.empty(self._shape, np.uint8)

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict. A batch that is not full is filled up, so rows do not depend on what they come with."""
        batch = pixels
        if len(pixels) < self.batch_size:
            batch = self.buffer()
            batch[: len(pixels)], batch[len(pixels) :] = pixels, 0
        request = self._free.get()
        try:
            if isinstance(request, Exception):
                raise request
            return request.infer([batch])[0][: len(pixels)].copy()  # type: ignore[no-any-return]
        finally:
            self._free.put(request)

    def close(self) -> None:
        """See Runtime.close. Waits for networks that are still compiling: nothing else knows of them."""
        with self._closing:
            if not self._is_closed:
                for _ in range(self.streams):
                    self._free.get()
                self._free.put(RuntimeError("this network is closed"))
                self._is_closed = True


def network_file(bundle: Bundle, compiled: Path) -> Path:
    """The file that OpenVINO reads: the bundle's own, or what was converted from it. model_id checks the bundle's files."""
    folder = compiled / f"{bundle.model_id}-openvino-{version('openvino')}-{CONVERSION}"
    if bundle.spec.form != "torch":
        return bundle.network
    with TRACING:
        if not (folder / "model.xml").exists():
            _convert(bundle, folder)
    return folder / "model.xml"


def _convert(bundle: Bundle, folder: Path) -> None:
    """Trace the torch module once and keep the result; workers that race write the same bytes, and the first stays."""
    import torch

    from tasks.models.loading import load_classifier

    crop = bundle.spec.preprocessing.crop
    with torch.inference_mode(), warnings.catch_warnings(), unreported():
        # OpenVINO converts a trace, and torch calls tracing deprecated.
        warnings.simplefilter("ignore")
        example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
        model = ov.convert_model(load_classifier(bundle), example_input=example, input=[-1, crop, crop, 3])
    keep(folder, lambda scratch: ov.save_model(model, scratch / "model.xml", compress_to_fp16=False))
