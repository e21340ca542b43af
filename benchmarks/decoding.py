"""JPEG to the crop that a network sees: this project's policies against Pillow with torchvision's transforms, in turn.

    .venv/bin/python -m benchmarks.decoding FOLDER [WEIGHTS] [--rounds 7] [--json]

FOLDER holds JPEG photographs. Before a time is printed, `exact` must give the pixels of the reference on each. Times are
CPU seconds of one thread, medians over rounds in turn. With WEIGHTS, a safetensors file of SqueezeNet 1.0, it prints how many
photographs keep their top-1 label under each policy. With --json the last line has the rates of every round.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torchvision.transforms import v2

from tasks.inference.decoding.jpeg import JpegDecoder
from tasks.inference.decoding.policies import MAX_PIXELS
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import Pixels, open_runtime
from tasks.models.spec import NEWEST, Preprocessing
from tasks.settings import load_settings

RESIZE, CROP = 256, 224

Decode = Callable[[bytes], Pixels]


def main(folder: Path, weights: Path | None, rounds: int) -> dict[str, list[float]]:
    """Check, measure, and compare labels; {way: images a second and core, for each round}."""
    files = [path.read_bytes() for path in sorted(folder.glob("*.JPEG"))]
    print(f"{len(files)} photographs of {sum(map(len, files)) / len(files) / 1000:.0f} kB on average, {rounds} rounds")
    with tempfile.TemporaryDirectory() as home:
        ways = {"reference": reference, **{name: by_policy(name, Path(home)) for name in ("exact", "fast")}}
        pictures = {name: [way(data) for data in files] for name, way in ways.items()}
        for name in ("exact", "fast"):
            levels = [difference(*pair) for pair in zip(pictures[name], pictures["reference"], strict=True)]
            print(f"{name}: largest difference {max(levels)} levels")
            assert name == "fast" or max(levels) == 0
        rates = measure(ways, files, rounds)
        if weights is not None:
            agree(pictures, weights, Path(home))
    return rates


def reference(data: bytes) -> Pixels:
    """As torchvision's documentation decodes for evaluation, up to the tensor."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(v2.CenterCrop(CROP)(v2.Resize(RESIZE)(image)))


def by_policy(policy: str, home: Path) -> Decode:
    """A policy of ours, into memory that is used again."""
    half = (0.5, 0.5, 0.5)
    spec = Preprocessing(resize=RESIZE, crop=CROP, mean=half, std=half, decode=NEWEST[policy])
    decoder, out = JpegDecoder(spec, home, shrink=policy == "fast"), np.empty((CROP, CROP, 3), np.uint8)
    decoder.prepare()

    def decode(data: bytes) -> Pixels:
        assert decoder.decode(data, MAX_PIXELS, out)
        return out.copy()

    return decode


def difference(left: Pixels, right: Pixels) -> int:
    """The largest one, in levels."""
    return int(np.abs(left.astype(np.int16) - right.astype(np.int16)).max())


def measure(ways: dict[str, Decode], files: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    """Images a second of one core, and the ratio to the reference, which is measured beside each."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.thread_time()
            for data in files:
                way(data)
            rates[name].append(len(files) / (time.thread_time() - started))
    for name, found in rates.items():
        ratio = median(ours / theirs for ours, theirs in zip(found, rates["reference"], strict=True))
        print(f"{name}: {median(found):.0f} images/s and core, {ratio:.2f} times the reference")
    return rates


def agree(pictures: dict[str, list[Pixels]], weights: Path, home: Path) -> None:
    """Top-1 labels under each policy against those of the reference."""
    settings = load_settings(home=home, device="cpu")
    runtime = open_runtime(resolve_model(f"torchvision:squeezenet1_0?weights={weights}", settings), settings)
    labels = {name: runtime.predict(np.stack(found)).argmax(axis=1) for name, found in pictures.items()}
    for name, found in labels.items():
        same = int((found == labels["reference"]).sum())
        print(f"{name}: the same top-1 label on {same} of {len(found)} photographs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    measured = main(asked.folder, asked.weights, asked.rounds)
    if asked.json:
        print(json.dumps(measured))
