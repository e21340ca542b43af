"""From the start of a shard to its first forward pass, in a fresh process as a worker would start it.

    python -m benchmarks.probes.first_forward stage MODEL-URI PHOTOGRAPHS DATABASE
    python -m benchmarks.probes.first_forward predict SHARD.json DATABASE STARTED

`stage` lists and deduplicates, and prints the shard. `predict` runs it and prints the seconds until the end of the first forward
pass over photographs: since STARTED, a reading of the machine's monotonic clock that its parent took before it started the
process, and since the call of predict_shard. The pass over a blank image that tries the model does not count.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any


def stage(uri: str, folder: str, database: str) -> None:
    """The steps before the shard."""
    from tasks import road
    from tasks.cache.runs import RunKey
    from tasks.pipelines import Pipeline
    from tasks.plan import RunRequest
    from tasks.settings import load_settings

    settings = load_settings(database=f"sqlite:///{database}")
    pipeline = Pipeline(name="start", images=folder, model=uri)
    request = RunRequest(RunKey("benchmark", str(uuid.uuid4())), "cli", pipeline, None)
    road.list_images(request, settings)
    (shard,) = road.deduplicate(request, settings)
    print(json.dumps(shard.to_dict()))


def predict(shard: str, database: str, started: float) -> None:
    """What a worker does: import, predict."""
    from tasks import road
    from tasks.models import runtimes
    from tasks.plan import ShardDescriptor
    from tasks.settings import load_settings

    ends: list[float] = []
    open_runtime = runtimes.open_runtime

    def watched(*arguments: Any) -> Any:
        runtime = open_runtime(*arguments)
        forward = runtime.predict

        def timed(pixels: Any) -> Any:
            logits = forward(pixels)
            if not (pixels == pixels.flat[0]).all():
                ends.append(time.monotonic())
            return logits

        runtime.predict = timed  # type: ignore[method-assign]
        return runtime

    runtimes.open_runtime = watched  # type: ignore[assignment]
    settings = load_settings(database=f"sqlite:///{database}")
    descriptor = ShardDescriptor.from_dict(json.loads(Path(shard).read_text()))
    called = time.monotonic()
    outcomes = road.predict_shard(descriptor, settings)
    since = {"since_process": ends[0] - started, "since_call": ends[0] - called}
    print(json.dumps({**since, "outcomes": outcomes}))


if __name__ == "__main__":
    if sys.argv[1] == "stage":
        stage(*sys.argv[2:5])
    else:
        predict(sys.argv[2], sys.argv[3], float(sys.argv[4]))
