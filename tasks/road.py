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

from tasks import range_listing, reporting, worker
from tasks.cache.database import cache_name
from tasks.cache.known import ledger_of
from tasks.cache.listed import stage_page
from tasks.cache.models import is_known
from tasks.cache.notices import claim_notice, closed_run
from tasks.cache.quarantine import count_due
from tasks.cache.ranges import finish, listed_before
from tasks.cache.runs import RunStart, Staging, find_staging, forget_run, listing_of, open_run
from tasks.cache.staging import expected_work
from tasks.deduplication import DedupeOptions
from tasks.deduplication import deduplicate as divide
from tasks.engines import ShardEngine
from tasks.engines.local import run_shards
from tasks.errors import StagingLost
from tasks.listing import Selection
from tasks.location import Location, parse_location
from tasks.models.cascade import resolve_models
from tasks.notifications import Notice, notice_of
from tasks.plan import RangeDescriptor, RunRequest, ShardDescriptor
from tasks.settings import Settings
from tasks.sources import OtherSource, announced, filter_of, inventory_moment, other_source, prefix_of
from tasks.storage import ObjectStore, open_store
from tasks.window import EVERYTHING, SCHEDULED
from tasks.worker import Observe, Progress, decoder_of, no_observation, no_progress

log = logging.getLogger(__name__)

# In a run's listing: the model whose predicted images were dropped while they were listed.
DROPPED_FOR = "dropped_for"

format_summary = reporting.format_summary

# Airflow's tasks find every step of the road here.
open_cache = worker.open_cache
check_cache = worker.check_cache
predict_shard = worker.predict_shard


def list_images(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """Stage what the run looks at; a new attempt replaces the staging of the older one."""
    engine = engine or open_cache(settings)
    source, is_large, other = _open_listing(request, settings, engine)
    return _listed(request, source, _list_all(request, source, other, is_large=is_large))


def plan_listing(
    request: RunRequest, settings: Settings, engine: Engine | None = None
) -> tuple[dict[str, Any], list[RangeDescriptor]]:
    """As list_images; where the run is known to be large it stages nothing, and divides the listing into `list_tasks` ranges."""
    engine = engine or open_cache(settings)
    source, is_large, other = _open_listing(request, settings, engine)
    numbers = range_listing.plan_ranges(source, request.pipeline.list_tasks) if is_large else []
    if not numbers:
        return _listed(request, source, _list_all(request, source, other, is_large=False)), []
    listed = _listed(request, source, (0, 0))
    numbers = numbers[: request.pipeline.list_tasks]  # Whoever is done lists the others as well.
    staging = source.staging
    return listed, [
        RangeDescriptor(staging.run_no, staging.generation, number, len(numbers), listed["cache"]) for number in numbers
    ]


def list_range(
    request: RunRequest, settings: Settings, descriptor: RangeDescriptor, engine: Engine | None = None
) -> dict[str, Any]:
    """Stage one range of a listing, and help with the others until none is open. It goes on where an earlier attempt ended."""
    engine = engine or open_cache(settings)
    check_cache(engine, descriptor.cache)
    listing = listing_of(engine, descriptor.staging)
    _check_listing(listing, _listing(request, settings))
    source = _source(request, engine, descriptor.staging, _store(request, settings), listing)
    counts = range_listing.list_range(source, request.pipeline.list_workers, descriptor.number)
    return _listed(request, source, counts)


def _list_all(
    request: RunRequest, source: range_listing.Source, other: OtherSource | None, *, is_large: bool
) -> tuple[int, int]:
    """Stage all that a run looks at; (listed, ignored)."""
    if other is None:
        return range_listing.list_all(source, request.pipeline.list_workers, is_large=is_large)
    listed = ignored = 0
    for page in other.pages(source.staging):
        stage_page(source.engine, source.staging, page, source.write)
        listed, ignored = listed + len(page.images), ignored + page.ignored
    return listed, ignored


def _open_listing(
    request: RunRequest, settings: Settings, engine: Engine
) -> tuple[range_listing.Source, bool, OtherSource | None]:
    """Open the run; what it lists, whether the run before it was large, and what is looked at in place of a listing."""
    prefix = prefix_of(parse_location(request.pipeline.images))
    listing = _listing(request, settings)
    store = _store(request, settings)
    other = other_source(request, settings, engine, listing, store)
    listing |= {} if other is None else other.facts
    table = request.pipeline
    may_be_large = max(table.list_workers, table.list_tasks) > 1 and (other is None or other.may_be_large)
    before = listed_before(engine, listing["source"], prefix, request.key) if may_be_large else 0
    is_large = before >= range_listing.SPLIT_OBJECTS
    # An inventory says nothing of what is gone, so its order does not matter.
    if is_large and not request.force and (other is not None or range_listing.can_be_split(store, prefix)):
        model_id = resolve_models(request.pipeline.models, request.pipeline.margins, settings).model_id
        # One that is new has predicted nothing, and all is staged.
        listing |= {DROPPED_FOR: model_id} if is_known(engine, model_id) else {}
    start = RunStart(
        request.key, request.run_type, request.name, listing["source"], prefix, request.window, request.force, listing
    )
    return _source(request, engine, open_run(engine, start), store, listing), is_large and other is None, other


def _store(request: RunRequest, settings: Settings) -> ObjectStore:
    # A connection for each LIST that is under way.
    readers = max(settings.readers, request.pipeline.list_workers)
    return open_store(parse_location(request.pipeline.images), settings.model_copy(update={"readers": readers}))


def _source(
    request: RunRequest, engine: Engine, staging: Staging, store: ObjectStore, listing: dict[str, Any]
) -> range_listing.Source:
    """What a run lists; images that the cache knows are left out where `listing` says for which model."""
    location = parse_location(request.pipeline.images)
    selection = Selection(location, request.window, filter_of(request))
    saw = None if request.dry_run else _saw(request, location)
    ledger = ledger_of(engine, staging, listing[DROPPED_FOR], saw) if DROPPED_FOR in listing else None
    return range_listing.Source(engine, staging, store, selection, ledger)


def _listed(request: RunRequest, source: range_listing.Source, counts: tuple[int, int]) -> dict[str, Any]:
    listed, ignored = counts
    log.info("Listed %d images under %s; ignored %d other objects", listed, request.pipeline.images, ignored)
    generation, cache = source.staging.generation, cache_name(source.engine)
    return {"listed": listed, "ignored": ignored, "generation": generation, "cache": cache}


def deduplicate(request: RunRequest, settings: Settings, engine: Engine | None = None) -> list[ShardDescriptor]:
    """Judge what was staged and divide the work; a dry run reports, removes its staging and returns no shards."""
    engine = engine or open_cache(settings)
    staging = find_staging(engine, request.key)
    model = resolve_models(request.pipeline.models, request.pipeline.margins, settings)
    location = parse_location(request.pipeline.images)
    listing = _listing(request, settings)
    then = listing_of(engine, staging)
    _check_listing(then, listing)
    _check_dropped(then, model.model_id)
    table = request.pipeline
    options = DedupeOptions(
        request.force,
        request.limit,
        table.shard_seconds,
        table.max_shards,
        table.workers,
        request.dry_run,
        as_of=inventory_moment(then),
        is_reconciled=DROPPED_FOR in then,
    )
    finish(engine, staging)
    # An inventory may lack what came since, so nothing is gone by its word.
    saw = None if options.as_of is not None else _saw(request, location)
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


def _check_dropped(then: dict[str, Any], model_id: str) -> None:
    """Images that were dropped have a prediction of one model, and perhaps none of another. Raises StagingLost."""
    if then.get(DROPPED_FOR, model_id) != model_id:
        raise StagingLost(
            f"list_images dropped what the model {then[DROPPED_FOR][:12]} has predicted, and the pipeline's model is "
            f"{model_id[:12]} now. Clear list_images, so that the run starts anew."
        )


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
