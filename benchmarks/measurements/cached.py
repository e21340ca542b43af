"""A second run over photographs that are all known, against the first one, in one process."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks import meter, photographs, rounds
from benchmarks.networks import MOBILENET, Network, environment, prepare
from benchmarks.report import Report
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace

AGAIN = Target(50.0, 150.0)


def measure(place: Workplace, report: Report) -> None:
    """The road, twice."""
    network = prepare(place, MOBILENET)
    found = rounds.in_turn({"twice": partial(_twice, place, network)}, place.rounds, report.say)["twice"]
    report.keep("cached", found)
    times = rounds.ratio([one["first"] for one in found], [one["second"] for one in found])
    seconds = " to ".join(f"{second:.2f}" for second in rounds.spread([one["second"] for one in found]))
    what = f"the first run against the second, {place.cached_images:,} photographs, all cached"
    report.add(Finding(what, times, AGAIN, f"the second one takes {seconds} s"))


def _twice(place: Workplace, network: Network) -> dict[str, Any]:
    database = place.folder("databases") / "cached.db"
    for leftover in database.parent.glob(f"{database.name}*"):
        leftover.unlink()
    folder = photographs.many(place, place.cached_images)
    command = [str(OURS), "-m", "benchmarks.probes.cached", network.uri, str(folder), str(database)]
    return meter.run(command, environment(network.home), place.folder("logs") / "cached").result
