"""Where the processor's time goes: CPU milliseconds an image by kind of thread; two sizes take the start-up out."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from benchmarks import meter, photographs, rounds
from benchmarks.networks import MOBILENET, Network, environment, prepare
from benchmarks.report import Report
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace

TOLD = Target(unit="ms")


def measure(place: Workplace, report: Report) -> None:
    """By kind of thread, and what both cores were idle."""
    network = prepare(place, MOBILENET)
    few, many = place.sizes
    steps = {size: partial(_run, place, network, size) for size in (few, many)}
    found = rounds.in_turn({f"{size:,}": step for size, step in steps.items()}, place.rounds, report.say)
    report.keep("processor", found)
    pairs = list(zip(found[f"{few:,}"], found[f"{many:,}"], strict=True))
    kinds = {kind for _, long in pairs for kind in long["seconds"]}
    each = {kind: median(_milliseconds(short, long, kind) for short, long in pairs) for kind in kinds}
    for kind, milliseconds in sorted(each.items(), key=lambda pair: -pair[1]):
        report.add(Finding(f"processor time an image, {network.name}, fp32: {kind}", milliseconds, TOLD))


def _milliseconds(short: dict[str, Any], long: dict[str, Any], kind: str) -> float:
    more = long["seconds"].get(kind, 0.0) - short["seconds"].get(kind, 0.0)
    return float(1000 * more / (long["images"] - short["images"]))


def _run(place: Workplace, network: Network, images: int) -> dict[str, Any]:
    database = place.folder("databases") / "processor.db"
    for leftover in database.parent.glob(f"{database.name}*"):
        leftover.unlink()
    folder = photographs.many(place, images)
    command = [str(OURS), "-m", "benchmarks.probes.processor", network.uri, str(folder), str(database)]
    return meter.run(command, environment(network.home), place.folder("logs") / "processor").result
