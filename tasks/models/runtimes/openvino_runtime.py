"""OpenVINO: fp32 on a CPU, two to three times the rate of eager torch at equal top-1 (docs/performance.md).

The converted network is kept on disk under the model_id, so only the first shard on a machine imports torch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import warnings
from importlib.metadata import version
from pathlib import Path

from tasks.models.bundle import Bundle
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.unreported import ov, unreported

# torch traces one module at a time.
_TRACING = threading.Lock()


class OpenVinoRuntime:
    """A compiled network on the CPU."""

    device = "cpu"

    def __init__(self, bundle: Bundle, compiled: Path) -> None:
        core = ov.Core()
        folder = compiled / f"{bundle.model_id}-openvino-{version('openvino')}"
        with _TRACING:
            if not (folder / "model.xml").exists():
                _convert(bundle, folder)
        model = core.read_model(folder / "model.xml")
        precision = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._request = core.compile_model(model, "CPU", precision).create_infer_request()

    def forward(self, pixels: Pixels) -> Logits:
        """See Runtime.forward."""
        return self._request.infer([pixels])[0].copy()  # type: ignore[no-any-return]


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    ov.save_model(model, scratch / "model.xml", compress_to_fp16=False)
    scratch.chmod(0o755)  # mkdtemp gives it to this user alone; workers may run as others
    try:
        os.rename(scratch, folder)
    except OSError:
        shutil.rmtree(scratch)
