"""Peak memory of the whole tree of processes above the loaded model.

The loaded model is a run over one photograph: everything is imported, loaded and used once. What a run needs above that is
what the number of photographs, their size and the depth of queues decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import photographs, rounds
from benchmarks.contestants import DATALOADER, RAY, Contestant, ours, peers
from benchmarks.measurements.end_to_end import admit
from benchmarks.meter import Usage
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
    own, ray = ours(network)[0], _first(network, RAY)
    agreements = admit(place, report, network, [own, ray])
    few, most = place.sizes
    folders = {count: photographs.many(place, count) for count in (1, few, most)}
    runs = _runs(place, report, [one for one in (own, ray) if one.name in agreements], folders.values())
    peaks = {count: _peak(runs[own.name, folder]) for count, folder in folders.items()}
    loaded = f"the loaded model: {peaks[1]:,.0f} MiB"
    report.add(
        Finding(f"peak memory above the loaded model, {few:,} photographs", peaks[few] - peaks[1], TOLD, loaded),
        Finding(f"peak memory above the loaded model, {most:,} photographs", peaks[most] - peaks[1], TOLD, loaded),
        Finding(
            f"its growth from {few:,} to {most:,} photographs", peaks[most] - peaks[few], FLAT, "flat: within 32 MiB"
        ),
    )
    if ray.name in agreements:
        theirs = {count: _peak(runs[ray.name, folder]) for count, folder in folders.items()}
        report.add(*_beside_ray(place, peaks, theirs))
        rates = [
            _steady_rate(place, {count: runs[name, folders[count]] for count in folders})
            for name in (own.name, ray.name)
        ]
        note = f"{rates[0]:.0f} against {rates[1]:.0f} images/s: Ray's start-up is long, and no part of this"
        what = f"photographs to rows, {own.name}, against {ray.name}, start-up taken out by the difference of two sizes"
        report.add(Finding(what, rates[0] / rates[1], Target(), note))


def large(place: Workplace, report: Report) -> None:
    """Photographs of twelve megapixels: 36 MB each as RGB, and several MB as JPEG."""
    network = prepare(place, MOBILENET)
    contestants = [ours(network)[0], _first(network, DATALOADER, workers="2 workers")]
    agreements = admit(place, report, network, contestants)
    one, folder = photographs.many(place, 1), photographs.large(place, place.large_images)
    runs = _runs(place, report, [each for each in contestants if each.name in agreements], [one, folder])
    for name in agreements:
        loaded = _peak(runs[name, one])
        what = f"peak memory above the loaded model, {place.large_images} photographs of 12 megapixels, {name}"
        report.add(Finding(what, _peak(runs[name, folder]) - loaded, TOLD, f"the loaded model: {loaded:,.0f} MiB"))


def _beside_ray(place: Workplace, peaks: dict[int, float], theirs: dict[int, float]) -> list[Finding]:
    most = place.sizes[1]
    above, their_above = peaks[most] - peaks[1], max(theirs[most] - theirs[1], 1.0)
    note = f"Ray Data: {their_above:,.0f} MiB above its loaded model; in all {theirs[most]:,.0f} MiB, ours {peaks[most]:,.0f} MiB"
    return [Finding(f"ours above the loaded model, {most:,} photographs", above / their_above, OF_RAY, note)]


def _steady_rate(place: Workplace, runs: Mapping[int, Sequence[Usage]]) -> float:
    """Images a second between two sizes."""
    few, most = place.sizes
    return median(
        (most - few) / (long.seconds - short.seconds) for short, long in zip(runs[few], runs[most], strict=True)
    )


def _first(network: Network, family: str, workers: str = "") -> Contestant:
    return next(one for one in peers(network, (family,)) if workers in one.name and not one.is_tuned)


def _runs(
    place: Workplace, report: Report, contestants: Sequence[Contestant], folders: Iterable[Path]
) -> dict[tuple[str, Path], list[Usage]]:
    """{(contestant, folder): runs}, in turn."""
    steps = {(one.name, folder): partial(one.run, place, folder) for folder in folders for one in contestants}
    named = {f"{name}, {folder.name}": step for (name, folder), step in steps.items()}
    runs = rounds.in_turn(named, min(place.rounds, 3), report.say)
    report.keep(f"memory {' '.join(named)}", plain(runs))
    return dict(zip(steps, runs.values(), strict=True))


def _peak(runs: Sequence[Usage]) -> float:
    """MiB, the median over rounds."""
    return median(usage.peak_bytes for usage in runs) / MIB
