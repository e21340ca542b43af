"""Peak memory of the whole tree of processes above the loaded model.

The loaded model is a run over one photograph: everything is imported, loaded and used once. What a run needs above that is
what the number of photographs, their size and the depth of queues decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import photographs, rounds
from benchmarks.contestants import DATALOADER, RAY, Contestant, ours, peers
from benchmarks.measurements.end_to_end import admit
from benchmarks.networks import MOBILENET, Network, prepare
from benchmarks.report import Report, plain
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import Workplace

MIB = 2**20
# Rows of results are some hundred bytes; a page cache inside SQLite and the allocator's own slack are some megabytes.
FLAT = Target(must=32.0, direction="at most", unit="MiB")
OF_RAY = Target(aim=0.25, direction="at most", unit="of Ray's")
TOLD = Target(unit="MiB")


def many(place: Workplace, report: Report) -> None:
    """Few and many photographs of ordinary size; Ray Data beside."""
    network = prepare(place, MOBILENET)
    own = ours(network)[0]
    ray = _first(network, RAY)
    agreements = admit(place, report, network, [own, ray])
    few, most = place.sizes
    folders = {0: photographs.many(place, 1), few: photographs.many(place, few), most: photographs.many(place, most)}
    peaks = _peaks(place, report, [one for one in (own, ray) if one.name in agreements], folders.values())
    above = {count: peaks[own.name, folder] - peaks[own.name, folders[0]] for count, folder in folders.items()}
    growth = (above[most] - above[few]) / MIB
    loaded = f"the loaded model: {peaks[own.name, folders[0]] / MIB:,.0f} MiB"
    report.add(
        Finding(f"peak memory above the loaded model, {few:,} photographs", above[few] / MIB, TOLD, loaded),
        Finding(f"peak memory above the loaded model, {most:,} photographs", above[most] / MIB, TOLD, loaded),
        Finding(f"its growth from {few:,} to {most:,} photographs", growth, FLAT, "flat: at most 32 MiB more"),
    )
    if ray.name in agreements:
        theirs = peaks[ray.name, folders[most]] - peaks[ray.name, folders[0]]
        note = (
            f"Ray Data: {theirs / MIB:,.0f} MiB above its loaded model; in all {peaks[ray.name, folders[most]] / MIB:,.0f} MiB, "
            f"ours {peaks[own.name, folders[most]] / MIB:,.0f} MiB"
        )
        report.add(Finding(f"ours above Ray Data's, {most:,} photographs", above[most] / max(theirs, 1), OF_RAY, note))


def large(place: Workplace, report: Report) -> None:
    """Photographs of twelve megapixels: 36 MB each as RGB, and several MB as JPEG."""
    network = prepare(place, MOBILENET)
    contestants = [ours(network)[0], _first(network, DATALOADER, workers="2 workers")]
    agreements = admit(place, report, network, contestants)
    one, folder = photographs.many(place, 1), photographs.large(place, place.large_images)
    peaks = _peaks(place, report, [each for each in contestants if each.name in agreements], [one, folder])
    for name in agreements:
        above = (peaks[name, folder] - peaks[name, one]) / MIB
        what = f"peak memory above the loaded model, {place.large_images} photographs of 12 megapixels, {name}"
        report.add(Finding(what, above, TOLD, f"the loaded model: {peaks[name, one] / MIB:,.0f} MiB"))


def _first(network: Network, family: str, workers: str = "") -> Contestant:
    return next(one for one in peers(network, (family,)) if workers in one.name and not one.is_tuned)


def _peaks(
    place: Workplace, report: Report, contestants: Iterable[Contestant], folders: Iterable[Path]
) -> dict[tuple[str, Path], float]:
    """{(contestant, folder): bytes}, medians over rounds in turn."""
    steps = {
        (one.name, folder): partial(one.run, place, folder) for one in contestants for folder in dict.fromkeys(folders)
    }
    named = {f"memory, {name}, {folder.name}": step for (name, folder), step in steps.items()}
    runs = rounds.in_turn(named, min(place.rounds, 3), report.say)
    report.keep(f"memory {next(iter(runs))}", plain(runs))
    usages = zip(steps, runs.values(), strict=True)
    return {step: median(usage.peak_bytes for usage in found) for step, found in usages}
