"""The engine `ray`, whose actors read, decode and predict whole shards, against Ray Data, whose tasks decode for an actor.

Each has a cluster of one node on this machine; its start is taken out by the difference of two sizes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import gate, networks, photographs, rounds
from benchmarks.contestants import OURS as OURSELVES
from benchmarks.contestants import RAY, Contestant, peers
from benchmarks.measurements.end_to_end import admit
from benchmarks.networks import MOBILENET, Network, prepare
from benchmarks.report import Report, plain
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace


def measure(place: Workplace, report: Report) -> None:
    """Images a second, and CPU seconds an image, of shards on Ray and of pixels through Ray."""
    network = prepare(place, MOBILENET)
    shards, pixels = _on_ray(network), next(one for one in peers(network, (RAY,)) if one.is_tuned)
    admit(place, report, network, [shards, pixels])
    few, most = place.sizes
    steps = {
        (one.name, size): partial(one.run, place, photographs.many(place, size))
        for size in place.sizes
        for one in (shards, pixels)
    }
    named = {f"{name}, {size:,} photographs": step for (name, size), step in steps.items()}
    found = rounds.in_turn(named, place.rounds, report.say)
    report.keep("ray", plain(found))
    runs = dict(zip(steps, found.values(), strict=True))
    rates, costs = {}, {}
    for name in (shards.name, pixels.name):
        pairs = list(zip(runs[name, few], runs[name, most], strict=True))
        rates[name] = [(most - few) / (long.seconds - short.seconds) for short, long in pairs]
        costs[name] = [(long.cpu_seconds - short.cpu_seconds) / (most - few) for short, long in pairs]
    note = f"{median(rates[shards.name]):.0f} against {median(rates[pixels.name]):.0f} images/s, without the start"
    cpu = f"{median(costs[shards.name]) * 1e3:.1f} against {median(costs[pixels.name]) * 1e3:.1f} ms of CPU an image"
    report.add(
        Finding(
            "shards on Ray against pixels through Ray Data",
            rounds.ratio(rates[shards.name], rates[pixels.name]),
            Target(),
            note,
        ),
        Finding(
            "the same, CPU seconds of Ray Data", rounds.ratio(costs[pixels.name], costs[shards.name]), Target(), cpu
        ),
    )


def _on_ray(network: Network) -> Contestant:
    def command(folder: Path, database: Path) -> list[str]:
        return [str(OURS), "-m", "benchmarks.probes.on_ray", network.uri, str(folder), str(database)]

    return Contestant(f"{OURSELVES} on Ray", OURSELVES, False, gate.EXACT, command, networks.environment(network.home))
