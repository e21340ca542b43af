"""Options that several commands have, and what they mean."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import Engine

from tasks.settings import Settings, load_settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV with all columns and nothing else.")]
Database = Annotated[str | None, typer.Option(help="URL of the cache; default: AFTERIMAGE_DATABASE.")]


def settings_of(database: str | None) -> Settings:
    """The environment's settings, with another cache where one is given."""
    return load_settings() if database is None else load_settings(database=database)


def cache_of(database: str | None) -> Engine:
    """The cache that a command works on."""
    from tasks import road

    return road.open_cache(settings_of(database))


def check_one_form(*, as_json: bool, as_csv: bool) -> None:
    """Standard output has one form."""
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
