"""`./afterimage cache export` and `import`: predictions as a Parquet file."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tasks import tables
from tasks.cache.archive import Asked
from tasks.cli.options import AsJson, Database, cache_of
from tasks.errors import Interrupted
from tasks.listing import can_be_stored
from tasks.window import resolve

File = Annotated[Path, typer.Argument(metavar="FILE.parquet", help="A file that an export writes.")]


def export(
    file: File,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL_ID|NAME@VERSION", help="Only the predictions of this model.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Only of the bytes of images under the prefix of this pipeline.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only those predicted at this moment or later.")] = None,
    before: Annotated[str | None, typer.Option(help="Only those predicted before this moment.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write predictions into a file, all of one moment, with the models that made them. A file that is there is replaced."""
    from tasks.archives import writing

    window = resolve(run_type="cli", window_start=since, window_end=before)
    asked = Asked(_text("--model", model), _text("--pipeline", pipeline), window.start, window.end)
    signal.signal(signal.SIGTERM, _stop)
    written = writing.export(cache_of(database), asked, file)
    if as_json:
        typer.echo(tables.to_json(asdict(written)))
        return
    typer.echo(
        f"{written.rows:,} predictions of {written.models} models in {tables.printable(str(file))}, {written.bytes / 1e6:,.1f} "
        "MB: as many as the filter counted."
    )


def import_predictions(file: File, database: Database = None, as_json: AsJson = False) -> None:
    """Bring the predictions of a file into the cache. What the cache has stays as it is."""
    from tasks.archives import reading

    done = reading.import_file(cache_of(database), file)
    if as_json:
        typer.echo(tables.to_json(asdict(done)))
        return
    blocked = f" + {done.blocked:,} erased for good" if done.blocked else ""
    typer.echo(
        f"{done.read:,} read = {done.inserted:,} inserted + {done.there:,} already there{blocked}, of {done.models} models."
    )


def _text(option: str, value: str | None) -> str | None:
    if value is not None and not can_be_stored(value):
        raise typer.BadParameter(f"{option} {value!r} is no text in UTF-8 without NUL: correct it")
    return value


def _stop(_number: int, _frame: object) -> None:
    raise Interrupted("SIGTERM: nothing was exported. Give the same command again.")
