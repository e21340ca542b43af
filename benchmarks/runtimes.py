"""Forward passes on this machine's CPU: OpenVINO against eager torch, in turn, with the same weights and pixels.

    .venv/bin/python -m benchmarks.runtimes mobilenet_v3_small squeezenet1_0

Prints, for each network, the median images a second of both and the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tasks.models.loading import load_classifier
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import Logits, Pixels, open_runtime
from tasks.settings import load_settings

BATCH = 32
ROUNDS = 7


def main(networks: list[str]) -> None:
    """Measure each network."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {ROUNDS} rounds in turn")
    for name in networks:
        measure(name)


def measure(name: str) -> None:
    """Both runtimes in turn, after a warm-up."""
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(home=Path(home), device="cpu")
        bundle = resolve_model(f"torchvision:{name}?weights=random&seed=0", settings)
        crop = bundle.spec.preprocessing.crop
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, crop, crop, 3), dtype=np.uint8)
        classifier, runtime = load_classifier(bundle), open_runtime(bundle, settings)

        def eager(batch: Pixels) -> Logits:
            with torch.inference_mode():
                return classifier(torch.from_numpy(batch)).numpy()  # type: ignore[no-any-return]

        assert np.array_equal(eager(pixels).argmax(1), runtime.forward(pixels).argmax(1)), "top-1 differs"
        pairs = [(rate(runtime.forward, pixels), rate(eager, pixels)) for _ in range(ROUNDS)]
        fast, slow = (median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = median(left / right for left, right in pairs)
        print(f"{name}: OpenVINO {fast:.0f} images/s, eager torch {slow:.0f} images/s, ratio {ratio:.2f}")


def rate(forward: Callable[[Pixels], Logits], pixels: Pixels) -> float:
    """Images a second of one forward pass."""
    started = time.perf_counter()
    forward(pixels)
    return len(pixels) / (time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1:] or ["mobilenet_v3_small", "squeezenet1_0"])
