"""What comes of a benchmark: lines while it runs, a Markdown table at its end, and a JSON file that holds every single run.

The file is written after each measurement, so that an hour's work survives the next one's failure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gate import Agreement
from benchmarks.meter import Usage
from benchmarks.rounds import ratio, spread
from benchmarks.verdict import Finding


class Report:
    """Findings and runs, as they come."""

    def __init__(self, path: Path, machine: Mapping[str, Any]) -> None:
        self.path = path
        self.machine = machine
        self.findings: list[Finding] = []
        self.runs: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}

    def say(self, line: str) -> None:
        """Progress, at once."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def add(self, *findings: Finding) -> None:
        """Keep findings, and write the file."""
        self.findings += findings
        for finding in findings:
            self.say(f"  {finding.what}: {finding.target.show(finding.found)} ({finding.verdict}) {finding.note}")
        self._write()

    def keep(self, name: str, runs: Any) -> None:
        """Keep single runs, for the file."""
        self.runs[name] = runs
        self._write()

    def leave_out(self, name: str, why: str) -> None:
        """A contestant that does not work here; said at the end, too."""
        self.left_out[name] = why
        self.say(f"left out: {name}: {why}")
        self._write()

    def table(self) -> str:
        """All findings."""
        lines = ["| measured | must | aim | found | verdict | |", "|---|---|---|---|---|---|"]
        for one in self.findings:
            bars = [one.target.show(bar) for bar in (one.target.must, one.target.aim)]
            lines.append(
                f"| {one.what} | {bars[0]} | {bars[1]} | {one.target.show(one.found)} | {one.verdict} | {one.note} |"
            )
        lines += [f"\nLeft out: {name}: {why.splitlines()[0]}" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def _write(self) -> None:
        content = {
            "machine": self.machine,
            "findings": [finding.as_json() for finding in self.findings],
            "runs": self.runs,
            "left_out": self.left_out,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def contestants_table(
    images: int, runs: Mapping[str, Sequence[Usage]], agreements: Mapping[str, Agreement], ours: str
) -> str:
    """One line for each contestant, with medians."""
    lines = [
        f"| {images:,} photographs | seconds (range) | images/s | CPU s | most MiB | processes | times ours | answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    own = [usage.seconds for usage in runs[ours]]
    for name, usages in runs.items():
        seconds = [usage.seconds for usage in usages]
        low, high = spread(seconds)
        lines.append(
            f"| {name} | {median(seconds):.2f} ({low:.2f} to {high:.2f}) | {images / median(seconds):.0f} "
            f"| {median(usage.cpu_seconds for usage in usages):.1f} "
            f"| {median(usage.peak_bytes for usage in usages) / 2**20:,.0f} "
            f"| {max(usage.processes for usage in usages)} | {ratio(seconds, own):.2f} | {agreements[name]} |"
        )
    return "\n".join(lines)


def plain(runs: Mapping[str, Sequence[Usage]]) -> dict[str, list[dict[str, Any]]]:
    """Runs as plain values, for the file."""
    return {name: [asdict(usage) for usage in usages] for name, usages in runs.items()}
