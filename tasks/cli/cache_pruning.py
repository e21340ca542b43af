"""`./afterimage cache prune`: rows that nobody needs any more."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tasks import tables
from tasks.cache.keeping import pruning
from tasks.cache.keeping.pruning import Pruned
from tasks.cache.keeping.retention import Retention
from tasks.cli.options import AsJson, Database, cache_of
from tasks.listing import can_be_stored


def prune(
    vanished_days: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Images whose objects were found gone more than N days ago.")
    ] = None,
    older_than_days: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Predictions older than N days, of models that are no pipeline's current one."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL_ID|NAME@VERSION", help="All predictions of a model that no pipeline has."),
    ] = None,
    orphans: Annotated[bool, typer.Option("--orphans", help="Predictions whose digest no image has any more.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it. Without it, count what would go, and remove nothing.")
    ] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Count what may go, and with --yes remove it, beside runs that are under way. Objects in storage are not touched."""
    asked = Retention(vanished_days, older_than_days, _checked(model), orphans)
    if not asked.asks_for_something():
        raise typer.BadParameter("say what is to go: --vanished-days, --older-than-days, --model or --orphans")
    engine = cache_of(database)
    pruned = pruning.prune(engine, asked) if yes else pruning.look(engine, asked)
    if as_json:
        typer.echo(tables.to_json(pruned.plain()))
    else:
        _tell(pruned)


def _checked(model: str | None) -> str | None:
    if model is not None and not can_be_stored(model):
        raise typer.BadParameter(
            f"--model {model!r} is no text in UTF-8 without NUL, so no model is called so: correct it"
        )
    return model


def _tell(pruned: Pruned) -> None:
    tables.show([asdict(step) for step in pruned.steps], tables.STEPS, "", as_json=False)
    columns = tables.WOULD_CHANGE if pruned.dry_run else tables.CHANGES
    tables.show([asdict(change) for change in pruned.changes], columns, "", as_json=False)
    if pruned.dry_run:
        typer.echo("This was a dry run: nothing was removed. --yes does it.")
