"""A process that runs one model's forward pass when it is told to, so that its memory is its own.

    python -m tasks.optimisation.rounds

Standard input and output are lines of JSON. The first line says what to load: {"bundle": FOLDER, "home", "device",
"runtime", "batch_size"}; the answer is {"device", "runtime"}. Each further line {"seconds": S} is a round of about S
seconds; the answer is {"images_per_second", "peak_bytes"}. What goes wrong is answered as {"error": MESSAGE}.

The heavy imports stand in functions: the memory of the empty process is taken before them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.models.runtimes import Runtime


def main() -> None:
    """Answer until standard input ends."""
    empty = resident_bytes("VmRSS")
    # Libraries that print must not print between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    from tasks.errors import AfterimageError

    try:
        runtime, about = _open(json.loads(sys.stdin.readline()))
        _round(runtime, 0.0)  # the first pass compiles and allocates
        answer(**about)
        for line in sys.stdin:
            rate = _round(runtime, float(json.loads(line)["seconds"]))
            peak = resident_bytes("VmHWM")
            answer(images_per_second=rate, peak_bytes=None if peak is None or empty is None else peak - empty)
        runtime.close()
    except AfterimageError as error:
        answer(error=str(error))


def resident_bytes(name: str) -> int | None:
    """VmRSS, the memory of this process, or VmHWM, the most that it had; None where there is no Linux to ask."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _open(asked: Mapping[str, Any]) -> tuple[Runtime, dict[str, str]]:
    from tasks.models.bundle import read_bundle
    from tasks.models.runtimes import choose_device, choose_runtime, open_runtime
    from tasks.settings import load_settings

    bundle = read_bundle(Path(asked["bundle"]))
    settings = load_settings(**{name: asked[name] for name in ("home", "device", "runtime", "batch_size")})
    runtime = open_runtime(bundle, settings)
    name = choose_runtime(bundle, choose_device(settings), settings.runtime).name
    return runtime, {"device": runtime.device, "runtime": name}


def _round(runtime: Runtime, seconds: float) -> float:
    """Images per second of full batches in all streams, for so long and at least one batch in each."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    started = time.perf_counter()

    def stream(seed: int) -> int:
        pixels = runtime.buffer()
        pixels[...] = np.random.default_rng(seed).integers(0, 256, pixels.shape, np.uint8)
        images = 0
        while images == 0 or time.perf_counter() - started < seconds:
            images += len(runtime.predict(pixels))
        return images

    with ThreadPoolExecutor(runtime.streams) as pool:
        images = sum(pool.map(stream, range(runtime.streams)))
    return images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
