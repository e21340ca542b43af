"""Seconds per photograph of the two things that cannot be left out: decoding on one core, and the forward pass on all cores.

    python -m benchmarks.probes.ceiling MODEL-URI PHOTOGRAPHS

The ceiling of a pipeline is 1 / (decode / cores + forward): every core always busy with one of the two, and nothing else to do.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.decoding import by_policy
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import Runtime, open_runtime
from tasks.settings import load_settings

BATCH, PASSES = 32, 7


def main(uri: str, folder: Path) -> None:
    """Decode in one thread, from memory; then forward passes over the pixels."""
    settings = load_settings()
    decode = by_policy("exact", settings.home)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    pixels = [decode(data) for data in files]  # the first pass compiles and warms up
    started = time.thread_time()
    for data in files:
        decode(data)
    decoding = (time.thread_time() - started) / len(files)
    runtime = open_runtime(resolve_model(uri, settings), settings)
    print(
        json.dumps(
            {"decode_seconds": decoding, "forward_seconds": seconds_of_forward(runtime, np.stack(pixels[:BATCH]))}
        )
    )


def seconds_of_forward(runtime: Runtime, batch: np.ndarray) -> float:
    """For each image, the median of some passes after a warm-up."""
    found = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        runtime.forward(batch)
        found.append((time.perf_counter() - started) / len(batch))
    return median(found[1:])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
