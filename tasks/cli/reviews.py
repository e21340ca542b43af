"""`./afterimage reviews`: what persons said is on the images of a pipeline, for training and for judging."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from tasks import tables
from tasks.cache import contract
from tasks.cli.options import Database, cache_of
from tasks.errors import ConfigurationError

COLUMNS = ("source", "key", "digest", "label", "predicted_label", "reviewer", "reviewed_at")


class Form(StrEnum):
    """What is written: a table, a JSON object for each row, or what `--labels` of `./afterimage models` reads."""

    csv = "csv"
    jsonl = "jsonl"
    labels = "labels"


def reviews(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="Whose reviews.")],
    form: Annotated[
        Form, typer.Option("--format", help="csv, jsonl, or labels: a CSV of key and label for `models ... --labels`.")
    ] = Form.csv,
    output: Annotated[Path | None, typer.Option(help="A file, instead of standard output.")] = None,
    database: Database = None,
) -> None:
    """Print what persons said is on the images of a pipeline, one row for each key."""
    rows = _rows(contract.reviews_streamed(cache_of(database), pipeline))
    with _opened(output) as file:
        count = _write(file, form, rows)
    typer.echo(f"{count:,} reviewed images of {pipeline}.", err=True)


def _rows(streamed: Iterator[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    names = next(streamed)
    for row in streamed:
        found = dict(zip(names, row, strict=True))
        yield {name: found[name] for name in COLUMNS}


def _write(file: TextIO, form: Form, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows as they come; how many there were."""
    # A program reads the labels, and looks for keys as they are; of the table, a spreadsheet may be the reader.
    names, cell = (("key", "label"), str) if form is Form.labels else (COLUMNS, tables.cell)
    writer = csv.writer(file)
    if form is not Form.jsonl:
        writer.writerow(names)
    count = 0
    for row in rows:
        if form is Form.jsonl:
            file.write(json.dumps(row, default=str) + "\n")
        else:
            writer.writerow([cell(row[name]) for name in names])
        count += 1
    return count


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is written anew. Raises ConfigurationError."""
    if output is None:
        yield sys.stdout
        return
    try:
        with open(output, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}. Give --output another file.") from None
