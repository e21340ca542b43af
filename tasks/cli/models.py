"""`./afterimage models`: the bundles that are kept by name, and what makes smaller ones of them."""

from __future__ import annotations

import typer

from tasks.cli.model_tuning import tune_cascade

models = typer.Typer(
    help="Add, check, shrink and compare models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

models.command()(tune_cascade)
