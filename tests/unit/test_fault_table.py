"""docs/reliability.md names every fault that a test injects."""

from __future__ import annotations

import ast

from tests.conftest import ROOT
from tests.faults.record import KINDS
from tests.faults.victim import MEMORY, POINTS, SIGKILL, SIGTERM

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
HELPERS = {"record": 1, "survived": 0, "survive": 3}
"""Functions that write a fault down, and which of their arguments is its name."""


def names() -> set[str]:
    """The names that stand as text in the calls."""
    found = set()
    for file in (ROOT / "tests" / "faults").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in HELPERS and node.args:
                argument = node.args[HELPERS[_name(node.func)]]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.add(argument.value)
    return found


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_every_fault_stands_in_the_table() -> None:
    expected = names() | {f"{death} {point}" for death in (SIGKILL, SIGTERM, MEMORY) for point in POINTS}
    assert len(expected) > 30
    assert {name for name in expected if f"| {name} |" not in PAGE} == set()


def test_the_table_counts_no_row_lost_or_doubled() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.partition("## The table")[2].splitlines() if line.startswith("| ")]
    faults = [[cell.strip() for cell in row] for row in rows if not row[0].strip().startswith(("**", "fault"))]
    assert faults
    assert {tuple(row[3:]) for row in faults} == {("0", "0")}
    assert all(int(row[1].replace(",", "")) > 0 for row in faults)
    assert {row[0].strip(" *") for row in rows if row[0].strip().startswith("**")} <= set(KINDS)
