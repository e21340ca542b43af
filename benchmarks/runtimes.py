"""Forward passes on this machine's CPU: OpenVINO against eager torch, in turn, with the same weights and pixels.

    .venv/bin/python -m benchmarks.runtimes mobilenet_v3_small squeezenet1_0 [--rounds 7] [--json]

Eager torch runs as its documentation shows it, on a contiguous float batch, and once in channels_last. Prints, for each
network, the median images a second and the median of the ratios of neighbouring runs. With --json the
last line has the rates of every round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tasks.models.loading import load_classifier
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import Logits, Pixels, Runtime, open_runtime
from tasks.settings import load_settings

BATCH = 32
IMAGES = 128
NETWORKS = ["mobilenet_v3_small", "squeezenet1_0"]

Rates = dict[str, list[float]]


def main(networks: list[str], rounds: int) -> dict[str, Rates]:
    """Measure each network; {network: {runtime: images a second, for each round}}."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH}; {rounds} rounds in turn")
    return {name: measure(name, rounds) for name in networks}


def measure(name: str, rounds: int) -> Rates:
    """Both runtimes in turn, after a warm-up."""
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(home=Path(home), device="cpu")
        bundle = resolve_model(f"torchvision:{name}?weights=random&seed=0", settings)
        spec = bundle.spec.preprocessing
        crop = spec.crop
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, crop, crop, 3), dtype=np.uint8)
        classifier, runtime = load_classifier(bundle), open_runtime(bundle, settings)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))

        def eager(images: Pixels, layout: torch.memory_format = torch.contiguous_format) -> Logits:
            found = []
            with torch.inference_mode():
                for batch in np.split(images, IMAGES // BATCH):
                    values = torch.from_numpy(batch).permute(0, 3, 1, 2).to(torch.float32) / 255.0
                    normal = ((values - mean) / std).contiguous(memory_format=layout)
                    found.append(classifier.network(normal))
            return torch.cat(found).numpy()

        with ThreadPoolExecutor(runtime.streams) as pool:
            ours = partial(on_all_streams, runtime, pool)
            assert np.array_equal(eager(pixels).argmax(1), ours(pixels).argmax(1)), "top-1 differs"
            ways: dict[str, Callable[[Pixels], Logits]] = {
                "openvino": ours,
                "eager": eager,
                "channels_last": partial(eager, layout=torch.channels_last),
            }
            rates: Rates = {way: [] for way in ways}
            for _ in range(rounds):
                for way, forward in ways.items():
                    rates[way].append(rate(forward, pixels))
    fast = rates["openvino"]
    for way in ("eager", "channels_last"):
        ratio = median(left / right for left, right in zip(fast, rates[way], strict=True))
        print(
            f"{name}: OpenVINO {median(fast):.0f} images/s, {way} {median(rates[way]):.0f} images/s, ratio {ratio:.2f}"
        )
    return rates


def on_all_streams(runtime: Runtime, pool: ThreadPoolExecutor, images: Pixels) -> Logits:
    """Logits of many images, in batches of the runtime's size and on all of its streams, as a shard runs them."""
    batches = [images[start : start + runtime.batch_size] for start in range(0, len(images), runtime.batch_size)]
    return np.concatenate(list(pool.map(runtime.predict, batches)))


def rate(forward: Callable[[Pixels], Logits], pixels: Pixels) -> float:
    """Images a second."""
    started = time.perf_counter()
    forward(pixels)
    return len(pixels) / (time.perf_counter() - started)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    measured = main(asked.networks, asked.rounds)
    if asked.json:
        print(json.dumps(measured))
