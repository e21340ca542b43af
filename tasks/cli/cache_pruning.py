"""`./afterimage cache prune`: rows that nobody needs any more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tasks import tables
from tasks.cache.keeping import pruning
from tasks.cache.keeping.pruning import Pruned
from tasks.cache.keeping.retention import Retention
from tasks.cli.options import AsJson, Database, cache_of, settings_of
from tasks.cli.thumbnails import remove_thumbnails
from tasks.listing import can_be_stored
from tasks.progress import LINE_SECONDS
from tasks.settings import Settings


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
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails", help="With --orphans: their thumbnails too, a request for each and each place."),
    ] = False,
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
    if thumbnails and not orphans:
        raise typer.BadParameter(
            "--thumbnails belongs to --orphans: while an image has the bytes, pages show its thumbnail"
        )
    engine, watch = cache_of(database), _Watch(settings_of(database), thumbnails=thumbnails, quiet=as_json)
    pruned = pruning.prune(engine, asked, watch) if yes else pruning.look(engine, asked)
    if as_json:
        typer.echo(tables.to_json({**pruned.plain(), "thumbnails": watch.thumbnails}))
    else:
        _tell(pruned, watch)
    for problem in watch.problems:
        typer.echo(problem, err=True)
    if watch.problems:
        raise typer.Exit(1)


class _Watch:
    """Says every few seconds how far it has come, and removes the thumbnails of orphans where they are to go."""

    def __init__(self, settings: Settings, *, thumbnails: bool, quiet: bool) -> None:
        self.thumbnails = 0
        self.problems: list[str] = []
        self._settings, self._with_thumbnails, self._quiet = settings, thumbnails, quiet
        self._counts: Counter[str] = Counter()
        self._said = time.monotonic()

    def __call__(self, what: str, keys: Collection[Any]) -> None:
        self._counts[what] += len(keys)
        if not self._quiet and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            typer.echo(f"{what}: {self._counts[what]:,} removed ...", err=True)
        if what == pruning.ORPHANS and self._with_thumbnails:
            removed = remove_thumbnails({bytes(digest) for digest in keys}, self._settings, dry_run=False)
            self.thumbnails += removed.count
            self.problems += removed.problems


def _checked(model: str | None) -> str | None:
    if model is not None and not can_be_stored(model):
        raise typer.BadParameter(
            f"--model {model!r} is no text in UTF-8 without NUL, so no model is called so: correct it"
        )
    return model


def _tell(pruned: Pruned, watch: _Watch) -> None:
    tables.show([asdict(step) for step in pruned.steps], tables.STEPS, "", as_json=False)
    columns = tables.WOULD_CHANGE if pruned.dry_run else tables.CHANGES
    tables.show([asdict(change) for change in pruned.changes], columns, "", as_json=False)
    if watch.thumbnails:
        typer.echo(f"Thumbnails: {watch.thumbnails:,}.")
    if pruned.dry_run:
        typer.echo("This was a dry run: nothing was removed. --yes does it.")
