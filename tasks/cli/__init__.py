"""The command line: `./afterimage`, the same road without Airflow.

Exit codes: 0, all is well; 1, the run is complete and some images failed (or drifted, or doctor found a problem); 2, it could not
run, and the last line says what to do. With --json, standard output is one JSON value and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from tasks import progress, tables
from tasks.cache import contract
from tasks.cache.database import connect
from tasks.cache.migrating import migrate as migrate_cache
from tasks.cache.runs import RunKey
from tasks.cache.sums import rebuild_sums
from tasks.cli.cache import cache
from tasks.cli.erasing import erase
from tasks.cli.models import models
from tasks.cli.options import AsCsv, AsJson, Database, cache_of, check_one_form, settings_of
from tasks.cli.retrying import retry
from tasks.cli.reviews import reviews
from tasks.errors import (
    AfterimageError,
    ConfigurationError,
    DecoderStalled,
    DriftExceeded,
    Interrupted,
    TooManyFailures,
)
from tasks.pipelines import Pipeline, find_pipeline, make_pipeline
from tasks.plan import RunRequest
from tasks.settings import Settings
from tasks.uris import absolute_models, absolute_uri
from tasks.window import resolve

if TYPE_CHECKING:
    from tasks.engines import ShardEngine

SOME_FAILED, COULD_NOT_RUN = 1, 2

app = typer.Typer(
    help="Predict every image in a bucket once per model, and remember it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(models, name="models")
app.add_typer(cache, name="cache")
app.command()(retry)

app.command()(erase)

app.command()(reviews)


def main() -> None:
    """Run the command line; turn our errors into exit code 2 and a message without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        _check_arguments(sys.argv[1:])
        app()
    except DecoderStalled as error:
        # The interpreter would wait at its end for the thread that never comes back.
        typer.echo(f"Error: {error}", err=True)
        sys.stderr.flush()
        os._exit(COULD_NOT_RUN)
    except AfterimageError as error:
        _stop(error)
    except SQLAlchemyError as error:
        _stop(f"The database refused: {str(error).splitlines()[0]}. Run ./afterimage doctor.")


def _check_arguments(given: list[str]) -> None:
    """Bytes that are no text cannot be looked for, neither in a store nor in a database."""
    for argument in given:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigurationError(f"{argument!r} is not UTF-8. Keys, names and folders are text: give it as such.")


def _stop(error: object) -> None:
    typer.echo(f"Error: {tables.printable_lines(str(error))}", err=True)
    raise SystemExit(COULD_NOT_RUN)


@app.command()
def predict(
    name: Annotated[str | None, typer.Argument(metavar="PIPELINE", help="A table of pipelines.toml.")] = None,
    images: Annotated[str | None, typer.Option(help="s3://BUCKET/PREFIX or a folder, instead of a pipeline.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model URI; with a pipeline, instead of its model. Repeated: a cascade.")
    ] = None,
    margin: Annotated[
        list[float] | None,
        typer.Option(help="In a cascade: below it an image goes on. Once, or for each model but the last."),
    ] = None,
    database: Database = None,
    since: Annotated[str | None, typer.Option(help="Only images modified at this moment or later.")] = None,
    until: Annotated[str | None, typer.Option(help="Only images modified before this moment.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Predict again what is in the cache already.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Predict at most so many new images.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List and deduplicate, and stop.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processes that share the work: one for each GPU, or on the cores."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict what is new, and print what became of every image."""
    from tasks import road

    settings = settings_of(database)
    request = RunRequest(
        key=RunKey("cli", str(uuid.uuid4())),
        run_type="cli",
        pipeline=_pipeline(settings, name, images, model or [], margin or [], workers),
        # With another model this is no run of the pipeline, whose current model must not change for it.
        name=None if model or margin else name,
        window=resolve(run_type="cli", window_start=since, window_end=until),
        force=force,
        limit=limit,
        dry_run=dry_run,
    )
    failed_run: str | None = None
    signal.signal(signal.SIGTERM, _end)
    with progress.images(quiet=as_json) as bar:
        try:
            counts = road.run(request, settings, bar.plan, bar.advance, _engine(request.pipeline, workers))
        except (TooManyFailures, DriftExceeded) as error:
            failed_run, counts = str(error), road.summary_of(request, settings)
    typer.echo(json.dumps(counts) if as_json else road.format_summary(counts))
    if failed_run is not None:
        typer.echo(f"Error: {tables.printable_lines(failed_run)}", err=True)
    if counts["failed"] or failed_run is not None:
        raise typer.Exit(SOME_FAILED)


@app.command()
def status(
    pipeline: Annotated[str | None, typer.Argument(help="Only the runs of this pipeline.")] = None,
    database: Database = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many runs; 10, or with --csv all.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show the newest runs, with what became of their images."""
    check_one_form(as_json=as_json, as_csv=as_csv)
    if as_csv:
        tables.write_csv(contract.runs_streamed(cache_of(database), pipeline, limit))
        return
    rows = contract.runs(cache_of(database), pipeline, limit or 10)
    tables.show(rows, tables.RUNS, "No run yet. Start one: ./afterimage predict PIPELINE", as_json)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="The key of an image.")], database: Database = None, as_json: AsJson = False
) -> None:
    """Show all that is known of one image: every model's prediction, and failures."""
    engine = cache_of(database)
    found = {"predictions": contract.predictions_of(engine, key), "failures": contract.failures_of(engine, key)}
    if not any(found.values()) and not as_json:
        typer.echo(f"Nothing is known of {key!r}. A key is the whole path below the bucket or the folder.", err=True)
        raise typer.Exit(SOME_FAILED)
    if as_json:
        typer.echo(tables.to_json(found))
        return
    tables.show(found["predictions"], tables.PREDICTIONS, "No prediction.", as_json=False)
    if found["failures"]:
        tables.show(found["failures"], tables.FAILURES, "", as_json=False)


@app.command()
def failures(
    reason: Annotated[str | None, typer.Option(help="Only this reason, such as truncated.")] = None,
    database: Database = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many images; 50, or with --csv all.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the images that could not be predicted, and why."""
    check_one_form(as_json=as_json, as_csv=as_csv)
    engine = cache_of(database)
    if as_csv:
        tables.write_csv(contract.failures_streamed(engine, reason, limit))
        return
    rows = contract.failures(engine, reason, limit or 50)
    tables.show(rows, tables.FAILURES, "No failures.", as_json)
    if not as_json and rows:
        counts = contract.failure_counts(engine)
        typer.echo(" · ".join(f"{name} {count:,}" for name, count in counts.items()))


@app.command()
def migrate(database: Database = None, as_json: AsJson = False) -> None:
    """Bring the cache's tables to the version of this program."""
    version = migrate_cache(connect(settings_of(database).database_url))
    typer.echo(json.dumps({"version": version}) if as_json else f"The cache is at version {version}.")


@app.command()
def sums(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline that has run.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Add up anew what the pages Drift and Compare read: for caches and models that are older than these sums."""
    images = rebuild_sums(cache_of(database), pipeline)
    typer.echo(json.dumps({"images": images}) if as_json else f"Added up: {images:,} predictions of {pipeline}.")


@app.command()
def doctor(
    pipeline: Annotated[str | None, typer.Argument(help="Check only this pipeline.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Check database, migrations, device, pool, and each pipeline's storage and model; say what to do."""
    from tasks.doctor import examine

    findings = examine(settings_of(database), pipeline)
    tables.show([vars(finding) for finding in findings], tables.FINDINGS, "Nothing to check.", as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(SOME_FAILED)


def _end(_number: int, _frame: object) -> None:
    """SIGTERM before or after the shards, which answer it themselves: the run is closed as failed."""
    raise Interrupted("SIGTERM: what was finished is committed. Run the same command again, and it goes on from there.")


def _engine(pipeline: Pipeline, workers: int | None) -> ShardEngine:
    """Processes of this machine where there are to be several; on Ray, `--workers` is how many actors there may be."""
    from tasks.engines import engine_of, processes

    if workers in (None, 1) or pipeline.engine == "ray":
        return engine_of(pipeline)
    return partial(processes.run_shards, workers=workers)


def _pipeline(
    settings: Settings,
    name: str | None,
    images: str | None,
    model: list[str],
    margin: list[float],
    workers: int | None,
) -> Pipeline:
    if (name is None) == (images is None):
        raise typer.BadParameter("give the name of a pipeline, or --images with --model")
    if images is not None and not model:
        raise typer.BadParameter("--images needs --model, such as torchvision:mobilenet_v3_small or a bundle folder")
    here, changed = Path.cwd(), dict[str, Any]()
    if model:
        changed["model"] = absolute_models(model[0] if len(model) == 1 else tuple(model), here)
        changed["cascade_margin"] = None
    if margin:
        changed["cascade_margin"] = margin[0] if len(margin) == 1 else margin
    if workers is not None:
        changed["workers"] = workers
    if name is not None:
        table = find_pipeline(settings.pipelines, name)
        return make_pipeline({**table.model_dump(), **changed}, f"{name} with these options") if changed else table
    assert images is not None
    pipeline = make_pipeline({"name": "cli", "images": images, **changed}, "The command line")
    return pipeline.model_copy(update={"images": absolute_uri(images, here)})
