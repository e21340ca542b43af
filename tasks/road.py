"""The steps in order, for every caller: Airflow's tasks, the command line and the tests call these functions.

    list_images -> deduplicate -> predict_shard (for each shard) -> publish_run

Each one opens what it needs and returns plain values, so that it can run in a process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from tasks import reporting, worker
from tasks.cache.database import cache_name
from tasks.cache.notices import claim_notice, closed_run
from tasks.cache.quarantine import count_due
from tasks.cache.runs import RunStart, find_staging, forget_run, listing_of, open_run
from tasks.cache.staging import expected_work, stage_page
from tasks.deduplication import DedupeOptions
from tasks.deduplication import deduplicate as divide
from tasks.engines import ShardEngine
from tasks.engines.local import run_shards
from tasks.errors import StagingLost
from tasks.location import Location, parse_location
from tasks.models.cascade import resolve_models
from tasks.notifications import Notice, notice_of
from tasks.plan import RunRequest, ShardDescriptor
from tasks.settings import Settings
from tasks.sources import announced, filter_of, inventory_moment, prefix_of, source_of
from tasks.window import EVERYTHING, SCHEDULED
from tasks.worker import Observe, Progress, decoder_of, no_observation, no_progress

log = logging.getLogger(__name__)

format_summary = reporting.format_summary

# Airflow's tasks find every step of the road here.
open_cache = worker.open_cache
check_cache = worker.check_cache
predict_shard = worker.predict_shard


def list_images(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """Stage what the run looks at; a new attempt replaces the staging of the older one."""
    engine = engine or open_cache(settings)
    prefix = prefix_of(parse_location(request.pipeline.images))
    listing = _listing(request, settings)
    source = source_of(request, settings, engine, listing)
    kept = {**listing, **source.facts}
    start = RunStart(
        request.key, request.run_type, request.name, listing["source"], prefix, request.window, request.force, kept
    )
    staging = open_run(engine, start)
    listed = ignored = 0
    for page in source.pages(staging):
        stage_page(engine, staging, page.images, page.ignored)
        listed, ignored = listed + len(page.images), ignored + page.ignored
    log.info("Listed %d images under %s; ignored %d other objects", listed, request.pipeline.images, ignored)
    return {"listed": listed, "ignored": ignored, "generation": staging.generation, "cache": cache_name(engine)}


def deduplicate(request: RunRequest, settings: Settings, engine: Engine | None = None) -> list[ShardDescriptor]:
    """Judge what was staged and divide the work; a dry run reports, removes its staging and returns no shards."""
    engine = engine or open_cache(settings)
    staging = find_staging(engine, request.key)
    model = resolve_models(request.pipeline.models, request.pipeline.margins, settings)
    location = parse_location(request.pipeline.images)
    listing = _listing(request, settings)
    kept = listing_of(engine, staging)
    _check_listing(kept, listing)
    table, as_of = request.pipeline, inventory_moment(kept)
    options = DedupeOptions(
        request.force, request.limit, table.shard_seconds, table.max_shards, table.workers, request.dry_run, as_of
    )
    # An inventory may lack what came since, so nothing is gone by its word.
    saw = None if as_of is not None else _saw(request, location)
    retried = _retried(request, location)
    division = divide(engine, staging, model, decoder_of(model), options, saw, retried)
    log.info("%s", reporting.format_summary(expectation(request, settings, engine)))
    if request.dry_run:
        return []
    return [
        ShardDescriptor(
            run_no=staging.run_no,
            generation=staging.generation,
            shard=number,
            shards=len(division.sizes),
            count=count,
            images=request.pipeline.images,
            source=listing["source"],
            models=request.pipeline.models,
            margins=request.pipeline.margins,
            model_id=model.model_id,
            model_no=division.model_no,
            commit_images=request.pipeline.commit_images,
            force=request.force,
            cache=cache_name(engine),
            thumbnails=request.pipeline.thumbnails,
        )
        for number, count in enumerate(division.sizes)
    ]


def publish_run(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """Check the invariant, close the run and return its counts."""
    engine = engine or open_cache(settings)
    # What is tried again fails again more often than not, and says nothing about the day.
    most = 1.0 if request.retry else request.pipeline.max_failure_rate
    keep = timedelta(days=request.pipeline.keep_runs_days)
    options = reporting.ReportOptions(request.name, most, keep, None if request.retry else _drift_options(request))
    counts = reporting.publish(engine, find_staging(engine, request.key), options)
    log.info("%s", reporting.format_summary(counts))
    return counts


def _drift_options(request: RunRequest) -> reporting.DriftOptions | None:
    table = request.pipeline
    if table.baseline is None or table.drift_limit is None:
        return None
    return reporting.DriftOptions(*table.baseline, table.drift_limit, table.drift_action == "fail")


def close_run(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any] | None:
    """The teardown: close a run that publish_run did not close; None where there is nothing to close."""
    engine = engine or open_cache(settings)
    try:
        return reporting.close_unfinished(engine, find_staging(engine, request.key))
    except StagingLost:
        return None


def take_notice(request: RunRequest, settings: Settings, engine: Engine | None = None) -> Notice | None:
    """What a closed run has to tell those whom its pipeline names; to one caller, once. None where there is nothing, or
    somebody else tells."""
    table = request.pipeline
    if not table.notify:
        return None
    engine = engine or open_cache(settings)
    try:
        staging = find_staging(engine, request.key)
    except StagingLost:
        return None
    found = closed_run(engine, staging)
    if found is None:
        return None
    wanted = {event for one in table.notify for event in one.on}
    notice = notice_of(*found, wanted)
    return notice if notice is not None and claim_notice(engine, staging) else None


def expectation(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """The counts after deduplicate, with the number of shards and the seconds that they are expected to take."""
    engine = engine or open_cache(settings)
    staging = find_staging(engine, request.key)
    shards, seconds = expected_work(engine, staging)
    return {**reporting.summary(engine, staging), "shards": shards, "expected_seconds": seconds}


def report_dry_run(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """What a dry run found; then the run and its staging are removed."""
    engine = engine or open_cache(settings)
    counts = expectation(request, settings, engine)
    forget_run(engine, find_staging(engine, request.key))
    return {**counts, "state": "dry_run"}


def summary_of(request: RunRequest, settings: Settings) -> dict[str, Any]:
    """The counts of a run, whatever state it is in."""
    engine = open_cache(settings)
    return reporting.summary(engine, find_staging(engine, request.key))


def retry(request: RunRequest, settings: Settings, engine_of_shards: ShardEngine = run_shards) -> dict[str, Any] | None:
    """Try the failures of a pipeline that are due; the counts of the run, None where there are none."""
    engine = open_cache(settings)
    source = parse_location(request.pipeline.images).source(settings.s3_endpoint)
    if not count_due(engine, source):
        return None
    counts = run(request, settings, engine_of_shards=engine_of_shards)
    if counts["listed"]:
        return counts
    forget_run(engine, find_staging(engine, request.key))  # They are another pipeline's.
    return None


def run(
    request: RunRequest,
    settings: Settings,
    on_plan: Callable[[list[ShardDescriptor]], None] = lambda _shards: None,
    on_progress: Progress = no_progress,
    engine_of_shards: ShardEngine = run_shards,
    observe: Observe = no_observation,
) -> dict[str, Any]:
    """The whole road in one call; `engine_of_shards` decides where the shards run.

    A run that fails on the way is closed as failed before the error is raised again.
    """
    engine = open_cache(settings)
    try:
        list_images(request, settings, engine)
        shards = deduplicate(request, settings, engine)
        on_plan(shards)
        if request.dry_run:
            return report_dry_run(request, settings, engine)
        engine_of_shards(shards, settings, on_progress, observe)
        return publish_run(request, settings, engine)
    except BaseException:
        close_run(request, settings, engine)
        raise


def _listing(request: RunRequest, settings: Settings) -> dict[str, Any]:
    """All that decides which objects a run stages. Kept with the run, because pipelines.toml may change under it."""
    table, window = request.pipeline, request.window
    return {
        "source": parse_location(table.images).source(settings.s3_endpoint),
        "images": table.images,
        "include": list(table.include),
        "exclude": list(table.exclude),
        "window": [moment and moment.isoformat() for moment in (window.start, window.end)],
        "announced": announced(request),
    }


def _check_listing(then: dict[str, Any], now: dict[str, Any]) -> None:
    """The rows of one bucket must not be judged or read as those of another. Raises StagingLost."""
    changed = [f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise StagingLost(f"Since list_images {'; '.join(changed)}. Clear list_images, so that the run starts anew.")


def _saw(request: RunRequest, location: Location) -> Callable[[str], bool] | None:
    """Whether the listing would have shown a key; None where a key does not tell, as within a window on LastModified."""
    keys, template, window = filter_of(request), location.template, request.window
    if request.retry or request.keys is not None:
        return None
    if template is None:
        return keys.wants if window.is_open else None
    if not (window.is_open or template.tells_days):
        return None
    return lambda key: keys.wants(key) and template.matches(key, window)


def _retried(request: RunRequest, location: Location) -> Callable[[str], bool] | None:
    """Which failures a run tries again although it does not list them: those of any day, where days are listed daily; and all
    of the pipeline, in a run that is a retry."""
    keys, template = filter_of(request), location.template
    if not request.retry and (template is None or request.run_type != SCHEDULED):
        return None
    if template is None:
        return keys.wants
    return lambda key: keys.wants(key) and template.matches(key, EVERYTHING)
