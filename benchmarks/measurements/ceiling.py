"""How much of what the machine could do at best arrives in the database."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from benchmarks import meter, photographs, rounds
from benchmarks.contestants import Contestant, ours
from benchmarks.measurements.end_to_end import admit
from benchmarks.networks import MOBILENET, SQUEEZENET, Network, environment, prepare
from benchmarks.report import Report
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace, cores

SHARE = Target(80.0, 92.0, unit="%")


def measure(place: Workplace, report: Report) -> None:
    """Both networks, in fp32."""
    for name in (MOBILENET, SQUEEZENET):
        _measure(place, report, prepare(place, name))


def _measure(place: Workplace, report: Report, network: Network) -> None:
    ours_fp32 = ours(network)[0]
    admit(place, report, network, [ours_fp32])
    few, many = place.sizes
    steps: dict[str, Any] = {
        "best": partial(best_rate, place, network),
        "few": partial(_seconds, place, ours_fp32, few),
        "many": partial(_seconds, place, ours_fp32, many),
    }
    found = rounds.in_turn(steps, place.rounds, report.say)
    report.keep(f"ceiling {network.name}", {**found, "sizes": place.sizes})
    in_turn = list(zip(found["best"], found["few"], found["many"], strict=True))
    whole = median(100 * many / seconds / best["rate"] for best, _, seconds in in_turn)
    steady = median(100 * (many - few) / (more - less) / best["rate"] for best, less, more in in_turn)
    note = f"1 / (decode + forward) on {cores()} cores = {median(best['rate'] for best in found['best']):.0f} images/s"
    what = f"share of the ceiling, {network.name}, fp32"
    report.add(
        Finding(f"{what}, {many:,} photographs, start-up included", whole, SHARE, note),
        Finding(f"{what}, start-up taken out by the difference to {few:,} photographs", steady, SHARE, note),
    )


def best_rate(place: Workplace, network: Network) -> dict[str, float]:
    """Images a second if every core were always decoding or in the forward pass."""
    command = [str(OURS), "-m", "benchmarks.probes.ceiling", network.uri, str(photographs.real(place))]
    cost = meter.run(command, environment(network.home), place.folder("logs") / "ceiling").result
    return {**cost, "rate": 1 / (cost["decode_seconds"] + cost["forward_seconds"])}


def _seconds(place: Workplace, contestant: Contestant, images: int) -> float:
    return contestant.run(place, photographs.many(place, images)).seconds
