"""The same run twice in one process: first into an empty cache, then with everything known.

python -m benchmarks.probes.cached MODEL-URI PHOTOGRAPHS DATABASE
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from tasks import road
from tasks.cache.runs import RunKey
from tasks.pipelines import Pipeline
from tasks.plan import RunRequest
from tasks.settings import Settings, load_settings


def main(uri: str, folder: Path, database: Path) -> None:
    """Both runs; the second one must read nothing and predict nothing."""
    settings = load_settings(database=f"sqlite:///{database}")
    first_seconds, first = timed(uri, folder, settings)
    second_seconds, second = timed(uri, folder, settings)
    if first["predicted"] != first["listed"] or second["cached"] != first["listed"]:
        raise SystemExit(f"The runs did not do what is measured here: {first}, then {second}")
    if second["reads"] or second["forward_passes"]:
        raise SystemExit(f"The second run read or predicted something: {second}")
    print(json.dumps({"first": first_seconds, "second": second_seconds, "images": first["listed"]}))


def timed(uri: str, folder: Path, settings: Settings) -> tuple[float, dict[str, Any]]:
    """Seconds of one run, with its counts."""
    pipeline = Pipeline(name="cached", images=str(folder), model=uri)
    started = time.perf_counter()
    counts = road.run(RunRequest(RunKey("benchmark", str(uuid.uuid4())), "cli", pipeline, None), settings)
    return time.perf_counter() - started, counts


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
