"""torch, in channels_last: the runtime for GPUs, and for the half precisions on a CPU."""

from __future__ import annotations

import numpy as np
import torch

from tasks.models.bundle import Bundle
from tasks.models.loading import load_classifier
from tasks.models.runtimes import Logits, Pixels


class TorchRuntime:
    """A classifier on one torch device."""

    streams = 1

    def __init__(self, bundle: Bundle, device: str, batch_size: int | None = None) -> None:
        self.batch_size = batch_size or 32
        self._crop = bundle.spec.preprocessing.crop
        self.device = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self._device = torch.device(device)
        # TF32 keeps 10 bits of the mantissa. A bundle that declares fp32 gets fp32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._classifier = load_classifier(bundle).to(self._device).to(memory_format=torch.channels_last)

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        return np.empty((self.batch_size, self._crop, self._crop, 3), np.uint8)

    def forward(self, pixels: Pixels) -> Logits:
        """See Runtime.forward."""
        with torch.inference_mode():
            logits = self._classifier(torch.from_numpy(pixels).to(self._device))
        return logits.cpu().numpy()  # type: ignore[no-any-return]
