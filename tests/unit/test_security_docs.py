"""docs/security.md names a test for each threat: they exist, and none is skipped for good."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", TEXT)))


def test_there_are_tests_in_it() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), NAMED, ids=str)
def test_a_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert not any("pytest.mark.skip" in ast.unparse(mark) for mark in found.decorator_list)


def test_every_row_names_a_test() -> None:
    """In tables that have a column `held by`."""
    in_table = False
    for line in TEXT.splitlines():
        in_table = line.startswith("|") and (in_table or line.rstrip().endswith("| held by |"))
        if in_table and not line.startswith("|---") and not line.rstrip().endswith("| held by |"):
            assert re.search(r"tests/[\w/]+\.py::test_\w+ \|$", line.rstrip()), line


def test_reports_go_to_the_platform_and_to_no_address_that_nobody_reads() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "@" not in text
    assert "private vulnerability reporting" in text
