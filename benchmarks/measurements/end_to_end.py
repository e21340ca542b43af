"""From a folder of photographs to rows in SQL, beside the peers: process start to committed rows, nothing cached but the
converted network and the operating system's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

from benchmarks import gate, photographs, rounds
from benchmarks.contestants import DAFT, DATALOADER, FAMILIES, FP32, INT8, LOOP, RAY, SPDL, Contestant, ours, peers
from benchmarks.gate import Agreement
from benchmarks.meter import CommandFailed, Usage
from benchmarks.networks import MOBILENET, SQUEEZENET, Network, prepare
from benchmarks.report import Report, contestants_table, plain
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import Workplace

Runs = Mapping[str, Sequence[Usage]]

TARGETS = {
    MOBILENET: {
        (FP32, DATALOADER): Target(2.8, 3.5),
        (INT8, DATALOADER): Target(3.3, 4.3),
        (FP32, RAY): Target(8.0, 12.0),
        (FP32, DAFT): Target(3.2, 4.5),
    },
    SQUEEZENET: {(FP32, DATALOADER): Target(2.6, 3.0), (INT8, DATALOADER): Target(3.8, 4.7)},
}


def mobilenet(place: Workplace, report: Report) -> None:
    """MobileNetV3-Small: decoding weighs as much as the network."""
    _measure(place, report, prepare(place, MOBILENET), place.families or FAMILIES)


def squeezenet(place: Workplace, report: Report) -> None:
    """SqueezeNet 1.0 with real weights: the network weighs most, so the loaders matter less and fewer of them take part."""
    _measure(place, report, prepare(place, SQUEEZENET), place.families or (LOOP, DATALOADER))


def _measure(place: Workplace, report: Report, network: Network, families: tuple[str, ...]) -> None:
    everybody = [*ours(network), *peers(network, families)]
    agreements = admit(place, report, network, everybody)
    folder = photographs.many(place, place.images)
    taking_part = {one.name: partial(one.run, place, folder) for one in everybody if one.name in agreements}
    runs = rounds.in_turn(taking_part, place.rounds, report.say)
    report.keep(network.name, {"runs": plain(runs), "answers": {name: str(one) for name, one in agreements.items()}})
    report.say(f"\n{network.name}\n{contestants_table(place.images, runs, agreements, FP32)}\n")
    untuned = {one.name: one.family for one in everybody if not one.is_tuned and one.name in runs}
    for (own, family), target in _targets(network, families).items():
        names = [name for name, its in untuned.items() if its == family]
        if names:
            report.add(_against(network, runs, own, names, target, str(agreements[own])))
    tuned = [one.name for one in everybody if one.is_tuned and one.name in runs]
    if tuned:
        report.add(_against(network, runs, FP32, tuned, Target(), "the fastest tuned form of all peers, with OpenVINO"))


def admit(place: Workplace, report: Report, network: Network, everybody: Sequence[Contestant]) -> dict[str, Agreement]:
    """{name: agreement} of those whose answers are right. Raises Disagreement; who fails to run is left out.

    It is the warm-up as well: afterwards every contestant's code and files are in the page cache.
    """
    (reference,) = [one for one in peers(network, (LOOP,)) if not one.is_tuned]
    folder = photographs.real(place)
    reference.run(place, folder)
    expected = gate.read_answers(reference.database(place))
    if network.is_trained:
        truth = photographs.labels(place)
        right = sum(answer.label == truth[key] for key, answer in expected.items())
        report.say(f"{network.name}: eager torch is right on {right} of {len(expected)} photographs")
    agreements = {}
    for one in everybody:
        try:
            one.run(place, folder)
        except CommandFailed as error:
            if one.name in (FP32, INT8):
                raise
            report.leave_out(f"{network.name}, {one.name}", str(error))
            continue
        only = photographs.held_out(place) if one.name == INT8 else None
        agreements[one.name] = gate.agreement(gate.read_answers(one.database(place)), expected, only)
        gate.demand(one.name, agreements[one.name], one.bar)
        report.say(f"{network.name}, {one.name}: {agreements[one.name]}")
    return agreements


def _targets(network: Network, families: tuple[str, ...]) -> dict[tuple[str, str], Target]:
    """The bars, and the families without one, which are told all the same."""
    told = {(FP32, family): Target() for family in (LOOP, RAY, DAFT, SPDL) if family in families}
    return {**TARGETS[network.name], **{pair: bar for pair, bar in told.items() if pair not in TARGETS[network.name]}}


def _against(network: Network, runs: Runs, own: str, names: Sequence[str], target: Target, note: str) -> Finding:
    """Ours against the best of some forms."""
    seconds = {name: [usage.seconds for usage in runs[name]] for name in (*names, own)}
    best = rounds.best({name: seconds[name] for name in names})
    found = rounds.ratio(seconds[best], seconds[own])
    # CPU seconds hardly depend on what else the machine does, so they tell whether a ratio of wall seconds was luck.
    cpu = rounds.ratio(*([usage.cpu_seconds for usage in runs[name]] for name in (best, own)))
    medians = median(seconds[best]) / median(seconds[own])
    what = f"photographs to rows, {network.name}, {own}, against {best}"
    details = {"ratio_of_cpu_seconds": cpu, "ratio_of_medians": medians}
    return Finding(what, found, target, f"{cpu:.2f}x in CPU seconds; {note}", details)
