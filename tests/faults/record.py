"""What the fault tests injected and what became of it: a line for each, and the table of docs/reliability.md.

AFTERIMAGE_TEST_FAULTS=var/faults.jsonl pytest tests/faults
python -m tests.faults.record var/faults.jsonl
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "AFTERIMAGE_TEST_FAULTS"
"""The environment's name for the file that gets the lines; nothing is written without it."""

KINDS = ("storage", "crash", "memory", "database", "airflow", "image", "model")
"""The order of the table."""


@dataclass(frozen=True)
class Fault:
    """A fault, how often it struck, what the program did, and rows that were lost or doubled in the end."""

    kind: str
    name: str
    injected: int
    answer: str
    lost: int
    doubled: int


def record(kind: str, name: str, *, injected: int, answer: str, lost: int, doubled: int) -> None:
    """Write a fault down. Raises AssertionError where it never struck, or where it cost a row."""
    fault = Fault(kind, name, injected, answer, lost, doubled)
    assert kind in KINDS
    assert injected > 0, f"{name} never struck: the test proves nothing"
    assert (lost, doubled) == (0, 0), f"{name} lost {lost} rows and doubled {doubled}"
    if os.environ.get(FILE):
        with open(os.environ[FILE], "a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(fault)) + "\n")


def table(faults: Iterable[Fault]) -> str:
    """The faults in Markdown: one row for each name, with the numbers of all its tests added up."""
    rows: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        before = rows.get((fault.kind, fault.name))
        injected, lost, doubled = fault.injected, fault.lost, fault.doubled
        if before is not None:
            injected, lost, doubled = injected + before.injected, lost + before.lost, doubled + before.doubled
        rows[fault.kind, fault.name] = Fault(fault.kind, fault.name, injected, fault.answer, lost, doubled)
    lines = ["| fault | injected | what the program did | rows lost | rows doubled |", "|---|---:|---|---:|---:|"]
    for kind in KINDS:
        of_kind = sorted((fault for fault in rows.values() if fault.kind == kind), key=lambda fault: fault.name)
        lines += [f"| **{kind}** | | | | |"] if of_kind else []
        lines += [f"| {one.name} | {one.injected:,} | {one.answer} | {one.lost} | {one.doubled} |" for one in of_kind]
    return "\n".join(lines)


def main() -> None:
    """Print the table of a file of lines."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    print(table(Fault(**json.loads(line)) for line in lines))


if __name__ == "__main__":
    main()
