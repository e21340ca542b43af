"""`./afterimage cache`: what the cache holds, what of it is to go, and predictions as a file."""

from __future__ import annotations

import typer

from tasks.cli.cache_archives import export, import_predictions
from tasks.cli.cache_pruning import prune
from tasks.cli.cache_stats import stats

cache = typer.Typer(
    help="See what the cache holds, and keep it small.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (stats, prune, export):
    cache.command()(command)
cache.command("import")(import_predictions)
