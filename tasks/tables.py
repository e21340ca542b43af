"""How the command line prints rows: as a table for a person, as JSON for a program."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.cache.runs import OUTCOMES

WIDTH = 160  # where there is no terminal to ask

Cell = Callable[[Mapping[str, Any]], str]
Columns = Mapping[str, Cell]


def _plain(name: str) -> Cell:
    return lambda row: "" if row[name] is None else str(row[name])


def _number(name: str, digits: int) -> Cell:
    return lambda row: f"{row[name]:,.{digits}f}"


def _outcomes(row: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {row[name]:,}" for name in (*OUTCOMES, "open") if row[name])


RUNS: Columns = {
    "started": lambda row: str(row["started_at"])[:19],
    "pipeline": lambda row: row["pipeline"] or row["source"],
    "run": _plain("run_id"),
    "state": _plain("state"),
    "listed": _number("listed", 0),
    "outcomes": _outcomes,
    "seconds": _number("seconds", 1),
    "images/s": _number("images_per_second", 0),
}

PREDICTIONS: Columns = {
    "model": lambda row: f"{row['model_name']} {row['model_version']}",
    "answered by": _plain("answered_by"),
    "label": _plain("label"),
    "score": _number("score", 4),
    "margin": _number("margin", 4),
    "top-k": lambda row: ", ".join(f"{best['label']} {best['score']:.2f}" for best in row["top_k"]),
    "predicted": lambda row: str(row["predicted_at"])[:19],
    "deleted": lambda row: str(row["deleted_at"])[:19] if row["deleted_at"] else "",
}

FAILURES: Columns = {
    "key": _plain("key"),
    "reason": _plain("reason"),
    "attempts": _plain("attempts"),
    "next retry": lambda row: "never" if row["permanent"] else str(row["next_retry_at"])[:19],
    "message": _plain("message"),
}

FINDINGS: Columns = {
    "": lambda row: "ok" if row["ok"] else "PROBLEM",
    "check": _plain("check"),
    "finding": _plain("finding"),
}


MODELS: Columns = {
    "name": _plain("name"),
    "version": _plain("version"),
    "architecture": _plain("architecture"),
    "precision": _plain("precision"),
    "labels": _plain("labels"),
    "MB": lambda row: "" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}",
    "model_id": lambda row: row["problem"] or row["model_id"][:12],
}

ERASED: Columns = {"table": _plain("table"), "rows removed": _number("rows", 0)}

SIZES: Columns = {
    "table": _plain("table"),
    "rows": _plain("rows"),
    "MB": lambda row: "" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}",
}

SHARES: Columns = {
    "model": lambda row: f"{row['name']} {row['version']}",
    "model_id": lambda row: row["model_id"][:12],
    "predictions": _plain("rows"),
    "current of": lambda row: ", ".join(row["pipelines"]),
    "oldest": lambda row: str(row["oldest"] or "")[:19],
    "newest": lambda row: str(row["newest"] or "")[:19],
}

STEPS: Columns = {"what": _plain("what"), "found": _number("found", 0), "removed": _number("removed", 0)}

CHANGES: Columns = {
    "table": _plain("table"),
    "rows before": _number("before", 0),
    "removed": lambda row: f"- {row['removed']:,}",
    "by others meanwhile": lambda row: f"{row['others']:+,}",
    "rows after": lambda row: f"= {row['after']:,}",
}
WOULD_CHANGE: Columns = {
    "table": _plain("table"),
    "rows": _number("before", 0),
    "would go": _number("removed", 0),
    "would stay": _number("after", 0),
}

FACTS: Columns = {"key": _plain("key"), "value": _plain("value")}


def show(rows: Sequence[Mapping[str, Any]], columns: Columns, empty: str, as_json: bool) -> None:
    """Print rows on standard output. Keys may hold anything, so control characters are shown, not sent."""
    if as_json:
        sys.stdout.write(to_json(rows) + "\n")
        return
    # rich is imported where something is drawn, because what runs each day on a server draws nothing.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell(row))) for cell in columns.values()))
    console.print(table)


# Where a spreadsheet would take a cell for a formula: OWASP's list, with the full-width forms. Apostrophes before it count,
# so that whoever takes one away has the cell as it was.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def write_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Write rows on standard output as they come, the names of the columns first."""
    csv.writer(sys.stdout).writerows([cell(value) for value in row] for row in rows)


def cell(value: Any) -> str:
    """A value as a cell of CSV: numbers as they are, moments as ISO text, lists and objects as JSON, nothing for None.

    Text that a spreadsheet would execute gets an apostrophe before it.
    """
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def printable(text: str) -> str:
    """Control characters as escapes, so that a key cannot forge lines or colours."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """The same for a text that may have several lines."""
    return "\n".join(map(printable, text.split("\n")))


def to_json(value: Any) -> str:
    """JSON with moments as ISO text, and as escapes what would do something to a terminal: to a program they are the same."""
    text = json.dumps(value, default=str, ensure_ascii=False, indent=2)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
