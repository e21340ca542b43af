"""`./afterimage cache stats`: rows, bytes and models, quick on a large cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from tasks import tables
from tasks.cache.keeping.counting import Number
from tasks.cache.keeping.stats import ModelShare, Stats
from tasks.cache.keeping.stats import stats as look
from tasks.cli.options import AsJson, Database, cache_of


def stats(database: Database = None, as_json: AsJson = False) -> None:
    """Show rows and bytes of each table, predictions by model, images that are gone, and orphans."""
    found = look(cache_of(database))
    if as_json:
        typer.echo(tables.to_json(_facts(found)))
        return
    sizes = [
        {"table": one.table, "rows": _said(one.number), "bytes": one.bytes} for one in found.tables if one.number.rows
    ]
    tables.show(sizes, tables.SIZES, "The cache is empty.", as_json=False)
    typer.echo(f"In all {found.bytes / 1e6:,.1f} MB.")
    models = [{**_model(one), "rows": _said(one.number)} for one in found.models]
    tables.show(models, tables.SHARES, "No model yet.", as_json=False)
    typer.echo(f"Images: {_said(found.images)} there, {_said(found.deleted)} deleted.")
    typer.echo(f"Orphans, predictions whose digest no image has: {_said(found.orphans)}.")
    failures = " · ".join(f"{reason} {count:,}" for reason, count in found.failures.items())
    typer.echo(f"Failures: {failures or 'none'}.")


def _said(number: Number) -> str:
    return f"{number.rows:,}" if number.exact else f"about {number.rows:,}"


def _model(one: ModelShare) -> dict[str, Any]:
    return {**asdict(one), **asdict(one.number), "number": None}


def _facts(found: Stats) -> dict[str, Any]:
    """What --json prints: each number of rows with whether it is exact."""
    sizes = [{"table": one.table, **asdict(one.number), "bytes": one.bytes} for one in found.tables]
    models = [{name: value for name, value in _model(one).items() if name != "number"} for one in found.models]
    numbers = {name: asdict(getattr(found, name)) for name in ("images", "deleted", "orphans")}
    return {"bytes": found.bytes, "tables": sizes, "models": models, **numbers, "failures": dict(found.failures)}
