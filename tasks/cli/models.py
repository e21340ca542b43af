"""`./afterimage models`: the bundles that are kept by name, and what makes smaller ones of them."""

from __future__ import annotations

import typer

from tasks.cli.model_adding import add
from tasks.cli.model_keeping import list_models, remove, show, verify
from tasks.cli.model_optimising import bench, optimise
from tasks.cli.model_pruning import prune
from tasks.cli.model_tuning import tune_cascade

models = typer.Typer(
    help="Add, check, shrink and compare models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models.command("list")(list_models)
for command in (add, show, verify, remove, optimise, prune, tune_cascade, bench):
    models.command()(command)
