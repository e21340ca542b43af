"""`make bench`: measure Afterimage beside the peers, and print what was asked and what was found.

    .venv/bin/python -m benchmarks [NAME ...] [--images 2000] [--rounds 5] ...

Without a name it measures everything, which takes hours. benchmarks/README.md says what each name is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.contestants import FAMILIES
from benchmarks.gate import Disagreement
from benchmarks.measurements import MEASUREMENTS
from benchmarks.meter import CommandFailed
from benchmarks.report import Report
from benchmarks.verdict import MISSED
from benchmarks.workplace import PROJECT, THEIRS, Workplace


def main() -> None:
    """Measure, print, and end with 1 where a `must` was missed."""
    asked = _arguments()
    if not THEIRS.exists():
        raise SystemExit(f"{THEIRS} is missing. Run make bench, or make .venv-bench/.installed.")
    place = Workplace(
        data=asked.data,
        work=asked.work,
        images=asked.images,
        rounds=asked.rounds,
        sizes=asked.sizes,
        large_images=asked.large_images,
        cached_images=asked.cached_images,
        families=tuple(asked.peers) if asked.peers else None,
    )
    described = machine.describe()
    report = Report(place.folder("results") / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json", described)
    report.say(machine.headline(described))
    try:
        for name in asked.names or MEASUREMENTS:
            report.say(f"\n{name}: {(MEASUREMENTS[name].__doc__ or '').splitlines()[0]}")
            MEASUREMENTS[name](place, report)
    except (CommandFailed, Disagreement) as error:
        report.say(f"\n{report.table()}")
        raise SystemExit(f"Error: {error}") from None
    report.say(
        f"\n{machine.headline(described)}\n{described['command']}\n\n{report.table()}\n\nevery run: {report.path}"
    )
    sys.exit(any(finding.verdict == MISSED for finding in report.findings))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all if none is given")
    parser.add_argument("--images", type=int, default=2_000, help="photographs from storage to rows, beside the peers")
    parser.add_argument("--rounds", type=int, default=5, help="how often everybody takes its turn")
    parser.add_argument(
        "--sizes", type=_sizes, default=(2_000, 10_000), help="few,many: for ceiling, processor and memory"
    )
    parser.add_argument("--large-images", type=int, default=60, help="photographs of 12 megapixels")
    parser.add_argument("--cached-images", type=int, default=20_000, help="photographs of the run that knows them all")
    parser.add_argument("--peers", nargs="+", choices=FAMILIES, help="only these families, in mobilenet and squeezenet")
    parser.add_argument("--data", type=Path, default=_data(), help="default: AFTERIMAGE_TEST_DATA, or ../shared/data")
    parser.add_argument("--work", type=Path, default=PROJECT / "var" / "bench", help="where all that is made lies")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such measurement; there are {', '.join(MEASUREMENTS)}")
    asked.data, asked.work = asked.data.resolve(), asked.work.resolve()
    return asked


def _data() -> Path:
    return Path(os.environ.get("AFTERIMAGE_TEST_DATA", PROJECT.parent / "shared" / "data"))


def _sizes(text: str) -> tuple[int, int]:
    few, many = (int(part) for part in text.split(","))
    if not 1 < few < many:
        raise argparse.ArgumentTypeError("write two numbers, the smaller one first, such as 2000,10000")
    return few, many


if __name__ == "__main__":
    main()
