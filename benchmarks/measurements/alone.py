"""Decoding alone and the forward pass alone, each beside the reference's."""

from __future__ import annotations

from benchmarks import meter
from benchmarks.networks import MOBILENET, SQUEEZENET
from benchmarks.photographs import real
from benchmarks.report import Report
from benchmarks.rounds import ratio
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import OURS, Workplace, cores, outer_environment

DECODE = Target(1.6, 2.2)
FORWARD = {MOBILENET: Target(2.5), SQUEEZENET: Target(2.0), "resnet50": Target(1.8)}


def decode(place: Workplace, report: Report) -> None:
    """JPEG to the crop on one core, the same pixels as Pillow with torchvision's transforms."""
    arguments = ["-m", "benchmarks.decoding", str(_photographs(place)), "--rounds", str(place.rounds), "--json"]
    log = place.folder("logs") / "decode"
    rates = meter.run([str(OURS), *arguments], outer_environment(), log).result
    found = ratio(rates["exact"], rates["reference"])
    report.keep("decode", rates)
    report.add(
        Finding("decode, resize and crop, images/s and core, exact, against Pillow + torchvision", found, DECODE)
    )


def forward(place: Workplace, report: Report) -> None:
    """The forward pass in fp32 on all cores, OpenVINO against eager torch."""
    arguments = ["-m", "benchmarks.runtimes", *FORWARD, "--rounds", str(place.rounds), "--json"]
    log = place.folder("logs") / "forward"
    rates = meter.run([str(OURS), *arguments], outer_environment(), log).result
    report.keep("forward", rates)
    for name, target in FORWARD.items():
        found, best = (ratio(rates[name]["openvino"], rates[name][way]) for way in ("eager", "channels_last"))
        what = f"forward pass alone, {name}, fp32, {cores()} cores, against eager torch"
        report.add(Finding(what, found, target, f"{best:.2f}x in channels_last"))


def _photographs(place: Workplace) -> str:
    real(place)  # says what to do where there are none
    return str(place.photographs)
