"""`./afterimage models`: the bundles that are kept by name, and what makes smaller ones of them."""

from __future__ import annotations

import typer

from tasks.cli.model_optimising import bench, optimise
from tasks.cli.model_pruning import prune

models = typer.Typer(
    help="Add, check, shrink and compare models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

models.command()(optimise)
models.command()(bench)
models.command()(prune)
