"""ONNX Runtime on a CPU, where AFTERIMAGE_RUNTIME asks for it: a second opinion beside OpenVINO, from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.extras import require
from tasks.models.bundle import Bundle
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.converting import onnx_file
from tasks.processors import cores

if TYPE_CHECKING:
    from tasks.settings import Settings

BATCH_SIZE = 8  # as for OpenVINO: small batches stay in a core's cache

ERRORS_ONLY = 3


def load(bundle: Bundle, _device: str, settings: Settings) -> OnnxRuntime:
    """See tasks/models/runtimes."""
    return OnnxRuntime(bundle, settings.compiled, settings.batch_size)


class OnnxRuntime:
    """One session, run by as many threads as cores, each alone with its forward pass: they never wait for each other."""

    device = "cpu"

    def __init__(self, bundle: Bundle, compiled: Path, batch_size: int | None = None) -> None:
        runtime = require("onnxruntime", "AFTERIMAGE_RUNTIME=onnxruntime")
        self.streams, self.batch_size = cores(), batch_size or BATCH_SIZE
        crop = bundle.spec.preprocessing.crop
        self._shape = (self.batch_size, crop, crop, 3)
        file = onnx_file(bundle, compiled)
        self._session: Any = runtime.InferenceSession(str(file), _options(runtime), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        return np.empty(self._shape, np.uint8)

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict. A batch that is not full is filled up, so rows do not depend on what they come with."""
        session = self._session
        if session is None:
            raise RuntimeError("this network is closed")
        batch = pixels
        if len(pixels) < self.batch_size:
            batch = self.buffer()
            batch[: len(pixels)], batch[len(pixels) :] = pixels, 0
        return session.run(None, {self._input: batch})[0][: len(pixels)].copy()  # type: ignore[no-any-return]

    def close(self) -> None:
        """See Runtime.close. Forward passes that are under way keep the session until they end."""
        self._session = None


def _options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # On processors without VNNI, products of uint8 and int8 are added up in 16 bits and may overflow; this avoids them.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options
