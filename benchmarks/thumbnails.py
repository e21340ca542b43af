"""What thumbnails cost: microseconds an image to make one, bytes to keep it, and the rate of a shard with and without, in turn.

    .venv/bin/python -m benchmarks.thumbnails FOLDER [--images 2000] [--rounds 5] [--json]

FOLDER holds JPEG photographs. Copies differ in the bytes behind the end of the picture, so that none is reused. One worker
does the same shard again and again (MobileNetV3-Small with weights by lot, `force`), without and with thumbnails in a folder; its
model stays loaded, and the first two rounds count for nothing. Times are those of the shard alone, wall and processor.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from tasks import road
from tasks.cache.runs import RunKey
from tasks.inference.thumbnails import encode
from tasks.models.runtimes import Pixels
from tasks.pipelines import Pipeline
from tasks.plan import RunRequest
from tasks.settings import Settings, load_settings
from tasks.worker import Worker

CROP = 224
MODEL = "torchvision:mobilenet_v3_small?weights=random&seed=0"
WITHOUT, WITH = "without", "with"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one shard: seconds, and seconds of the processor over all threads."""

    seconds: float
    processor: float


def main(folder: Path, images: int, rounds: int) -> dict[str, list[float]]:
    """Measure both, and print; {what: every figure}."""
    files = [path.read_bytes() for path in sorted(folder.glob("*.JPEG"))]
    print(f"{len(files)} photographs, load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    making = cost_of_making([crop_of(data) for data in files], rounds)
    with tempfile.TemporaryDirectory() as work:
        write_copies(Path(work) / "images", files, images)
        costs = in_turn(Path(work), rounds)
    tell(costs, images)
    return {
        "microseconds": making,
        **{name: [each.seconds for each in found] for name, found in costs.items()},
        **{f"{name}, processor": [each.processor for each in found] for name, found in costs.items()},
    }


def crop_of(data: bytes) -> Pixels:
    """What the decoder would give, nearly: the middle of a photograph."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((256, 256))
    return np.asarray(picture)[16 : 16 + CROP, 16 : 16 + CROP].copy()


def cost_of_making(crops: Sequence[Pixels], rounds: int) -> list[float]:
    """Microseconds of one thread's processor time for each, the median of each round; prints bytes as well."""
    found = []
    for _ in range(rounds):
        times = []
        for pixels in crops:
            started = time.thread_time()
            encode(pixels)
            times.append(1e6 * (time.thread_time() - started))
        found.append(median(times))
    sizes = [len(encode(pixels)) for pixels in crops]
    print(f"to make one: {median(found):.0f} microseconds; {sum(sizes) / len(sizes):,.0f} bytes on average")
    return found


def write_copies(folder: Path, files: Sequence[bytes], count: int) -> None:
    """So many photographs, no two with the same digest."""
    folder.mkdir()
    for number, data in enumerate(islice(cycle(files), count)):
        (folder / f"{number:06}.jpg").write_bytes(data + number.to_bytes(4, "big"))


def in_turn(work: Path, rounds: int) -> dict[str, list[Cost]]:
    """Without, with, without, with, ...: the shard each time."""
    settings = load_settings(home=work, database=f"sqlite:///{work / 'cache.db'}", device="cpu")
    table = {"name": "bench", "images": str(work / "images"), "model": MODEL}
    ways = {WITHOUT: Pipeline(**table), WITH: Pipeline(**table, thumbnails=str(work / "thumbnails"))}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    with Worker(settings) as worker:
        for number in range(2 + rounds):
            for name, pipeline in ways.items():
                cost = one_shard(worker, settings, pipeline)
                if number >= 2:
                    costs[name].append(cost)
    written = sum(1 for _ in (work / "thumbnails").rglob("*.jpg"))
    print(f"{written:,} thumbnails written")
    return costs


def one_shard(worker: Worker, settings: Settings, pipeline: Pipeline) -> Cost:
    """List and divide, then take the time of the shard."""
    request = RunRequest(RunKey("bench", str(uuid.uuid4())), "manual", pipeline, pipeline.name, force=True)
    road.list_images(request, settings)
    (shard,) = road.deduplicate(request, settings)
    started, processor = time.perf_counter(), time.process_time()
    worker.predict(shard)
    return Cost(time.perf_counter() - started, time.process_time() - processor)


def tell(costs: dict[str, list[Cost]], images: int) -> None:
    """Rates, and the medians of the ratios within rounds."""
    for name, found in costs.items():
        rate, processor = images / median(each.seconds for each in found), median(each.processor for each in found)
        print(f"{name}: {rate:.0f} images/s, {1e3 * processor / images:.2f} ms of the processor an image")
    pairs = list(zip(costs[WITH], costs[WITHOUT], strict=True))
    wall = median(ours.seconds for ours in costs[WITH]) / median(theirs.seconds for theirs in costs[WITHOUT])
    print(
        f"with / without: {wall:.3f} (ratio of medians), {median(a.seconds / b.seconds for a, b in pairs):.3f} (of ratios)"
    )
    print(f"processor, with / without: {median(a.processor / b.processor for a, b in pairs):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    measured = main(asked.folder, asked.images, asked.rounds)
    if asked.json:
        print(json.dumps(measured))
