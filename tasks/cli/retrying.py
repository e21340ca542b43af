"""`./afterimage retry`: try images in quarantine again."""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

import typer

from tasks.cache.quarantine import mark_due
from tasks.cache.runs import RunKey
from tasks.cli.options import AsJson, Database, settings_of
from tasks.pipelines import Pipeline, find_pipeline, load_pipelines
from tasks.plan import RunRequest
from tasks.settings import Settings
from tasks.window import RETRY

STILL_FAILING = 1


def retry(
    name: Annotated[str | None, typer.Argument(metavar="PIPELINE", help="Only this pipeline's.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason, permanent or not, such as truncated.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this image.")] = None,
    mark_only: Annotated[
        bool, typer.Option("--mark-only", help="Leave the work to the next run that lists them.")
    ] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Try images in quarantine again: all that may succeed, or those of a reason or a key."""
    from tasks import road
    from tasks.location import parse_location

    settings = settings_of(database)
    pipelines = load_pipelines(settings.pipelines) if name is None else {name: find_pipeline(settings.pipelines, name)}
    source = None if name is None else parse_location(pipelines[name].images).source(settings.s3_endpoint)
    marked = mark_due(road.open_cache(settings), reason, key, source)
    told: dict[str, Any] = {"marked": marked, "runs": [] if mark_only else _retry_each(pipelines, settings)}
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(f"{marked:,} images in quarantine are due.")
        for counts in told["runs"]:
            typer.echo(f"{counts['pipeline']}: {road.format_summary(counts)}")
    if any(counts["failed"] for counts in told["runs"]):
        raise typer.Exit(STILL_FAILING)


def _retry_each(pipelines: dict[str, Pipeline], settings: Settings) -> list[dict[str, Any]]:
    from tasks import road
    from tasks.engines import engine_of

    found = []
    for name, pipeline in pipelines.items():
        request = RunRequest(RunKey("cli", str(uuid.uuid4())), RETRY, pipeline, name, retry=True)
        counts = road.retry(request, settings, engine_of(pipeline))
        found += [] if counts is None else [counts]
    return found
