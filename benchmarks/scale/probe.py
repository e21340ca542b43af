"""One run's first two steps in a process of their own: `python -m benchmarks.scale.probe BUCKET MODEL`, with AFTERIMAGE_* set.

It prints JSON: the seconds of list_images and of deduplicate, what was listed and what is left to do, and the most memory that
the process has held, in MB (its own pages and those that it shares).
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

from tasks import road
from tasks.cache.runs import RunKey
from tasks.pipelines import Pipeline
from tasks.plan import RunRequest
from tasks.settings import load_settings


def peak_megabytes() -> float:
    """The most that this process has held in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def main(bucket: str, model: str) -> None:
    """List, deduplicate, tell."""
    settings = load_settings()
    pipeline = Pipeline(name="scale", images=f"s3://{bucket}/raw/", model=model)
    request = RunRequest(RunKey("cli", str(uuid.uuid4())), "manual", pipeline, None)
    engine = road.open_cache(settings)
    started = time.perf_counter()
    listed = road.list_images(request, settings, engine)
    between = time.perf_counter()
    shards = road.deduplicate(request, settings, engine)
    ended = time.perf_counter()
    open_images = sum(shard.count for shard in shards)
    times = {"list": between - started, "deduplicate": ended - between}
    print(json.dumps({**times, "listed": listed["listed"], "open": open_images, "peak": peak_megabytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
