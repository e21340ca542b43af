"""Seconds per photograph of the two things that cannot be left out, each alone on all cores: decoding and the forward pass.

    python -m benchmarks.probes.ceiling MODEL-URI PHOTOGRAPHS

The ceiling of a pipeline is 1 / (decode + forward): every core always busy with one of the two, and nothing else to do. Both are
measured on all cores at once, because two busy cores share memory and clock: one alone decodes a fifth more than half of two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.decoding import Decode, by_policy
from benchmarks.runtimes import on_all_streams
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import open_runtime
from tasks.processors import cores
from tasks.settings import load_settings

IMAGES, PASSES = 128, 7


def main(uri: str, folder: Path) -> None:
    """Decode from memory; then forward passes over the pixels."""
    settings = load_settings()
    decode = by_policy("exact", settings.home)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    pixels = np.stack([decode(data) for data in files[:IMAGES]])  # the first pass compiles and warms up
    runtime = open_runtime(resolve_model(uri, settings), settings)
    decoders = [by_policy("exact", settings.home) for _ in range(cores())]
    with ThreadPoolExecutor(len(decoders)) as pool:
        decoding = seconds_each(lambda: decode_all(pool, decoders, files), len(files))
    with ThreadPoolExecutor(runtime.streams) as pool:
        forward = seconds_each(lambda: on_all_streams(runtime, pool, pixels), len(pixels))
    print(json.dumps({"decode_seconds": decoding, "forward_seconds": forward}))


def decode_all(pool: ThreadPoolExecutor, decoders: Sequence[Decode], files: Sequence[bytes]) -> None:
    """Each decoder takes its share of the files; they work at the same time."""
    shares = [files[number :: len(decoders)] for number in range(len(decoders))]
    for _ in pool.map(lambda decoder, share: [decoder(data) for data in share], decoders, shares):
        pass


def seconds_each(work: Callable[[], object], images: int) -> float:
    """Wall seconds for each image, the median of some passes after a warm-up."""
    found = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) / images)
    return median(found[1:])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
