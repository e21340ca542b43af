"""From the start of a shard to its first forward pass; the converted network is on disk."""

from __future__ import annotations

import json
import time
from functools import partial
from statistics import median
from typing import Any

from benchmarks import meter, photographs, rounds
from benchmarks.networks import MOBILENET, Network, environment, prepare
from benchmarks.report import Report
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace

START = Target(3.0, 1.0, direction="at most", unit="s")
PROBE = "benchmarks.probes.first_forward"


def measure(place: Workplace, report: Report) -> None:
    """A fresh process each time."""
    network = prepare(place, MOBILENET)
    _start(place, network)  # the first one warms the files
    found = rounds.in_turn({"start": partial(_start, place, network)}, max(place.rounds, 5), report.say)["start"]
    report.keep("start", found)
    what = "seconds to the end of the first forward pass over photographs, since"
    report.add(
        Finding(f"{what} the process started", median(one["since_process"] for one in found), START),
        Finding(f"{what} predict_shard was called", median(one["since_call"] for one in found), START),
    )


def _start(place: Workplace, network: Network) -> dict[str, Any]:
    database = place.folder("databases") / "start.db"
    for leftover in database.parent.glob(f"{database.name}*"):
        leftover.unlink()
    folder, log = photographs.real(place), place.folder("logs") / "start"
    stage = [str(OURS), "-m", PROBE, "stage", network.uri, str(folder), str(database)]
    shard = place.folder("databases") / "shard.json"
    shard.write_text(json.dumps(meter.run(stage, environment(network.home), log).result))
    predict = [str(OURS), "-m", PROBE, "predict", str(shard), str(database), repr(time.monotonic())]
    return meter.run(predict, environment(network.home), log).result
