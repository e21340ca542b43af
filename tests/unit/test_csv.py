"""Cells of CSV: standard, safe to open in a spreadsheet, and readable by every CSV reader."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.tables import cell, write_csv

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def parsed(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("start", FORMULAS)
def test_text_that_a_spreadsheet_would_execute_gets_an_apostrophe(start: str) -> None:
    assert cell(f'{start}HYPERLINK("http://x")') == f'\'{start}HYPERLINK("http://x")'
    assert cell(f"a{start}b") == f"a{start}b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.5, "-1.5"),
        (-3, "-3"),
        (0, "0"),
        (None, ""),
        (True, "true"),
        ("", ""),
        ("'tis", "'tis"),
        ("'=1", "''=1"),
        ([{"label": "a"}], '[{"label": "a"}]'),
        (datetime(2026, 3, 1, tzinfo=UTC), "2026-03-01 00:00:00+00:00"),
    ],
)
def test_other_values_stay_what_they_are(value: Any, expected: str) -> None:
    assert cell(value) == expected


def test_rows_are_written_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def rows(note: Callable[[str], None]) -> Any:
        yield ("key", "n")
        note(capsys.readouterr().out)
        yield ('a,"b"\nc', 1)
        note(capsys.readouterr().out)

    write_csv(rows(seen.append))
    assert parsed("".join(seen)) == [["key", "n"], ['a,"b"\nc', "1"]]
    assert seen[0] == "key,n\r\n", "the first line is out before the second row is asked for"


def test_json_in_a_cell_is_json() -> None:
    assert json.loads(cell({"=a": "＝b"})) == {"=a": "＝b"}
