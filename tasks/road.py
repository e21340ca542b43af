"""The steps in order, for every caller: Airflow's tasks, the command line and the tests call these functions.

    list_images -> deduplicate -> predict_shard (for each shard) -> publish_run

Each one opens what it needs and returns plain values, so that it can run in a process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tasks import reporting
from tasks.cache.commits import Scope
from tasks.cache.database import cache_name, connect
from tasks.cache.ledger import ShardLedger
from tasks.cache.migrating import prepare
from tasks.cache.runs import RunStart, find_staging, forget_run, listing_of, open_run
from tasks.cache.staging import expected_work, stage_page
from tasks.deduplication import DedupeOptions
from tasks.deduplication import deduplicate as divide
from tasks.engines.local import run_shards
from tasks.errors import ConfigurationError, DatabaseUnavailable, ModelChanged, StagingLost
from tasks.listing import KeyFilter, list_pages
from tasks.location import Location, parse_location
from tasks.models.cascade import Model, resolve_models
from tasks.observation import Observation
from tasks.plan import RunRequest, ShardDescriptor
from tasks.settings import Settings
from tasks.storage import open_store
from tasks.window import EVERYTHING, SCHEDULED

if TYPE_CHECKING:
    from tasks.models.runtimes import Runtime

log = logging.getLogger(__name__)

format_summary = reporting.format_summary

Progress = Callable[[int], None]


def open_cache(settings: Settings, statement_timeout: timedelta | None = None) -> Engine:
    """The cache, migrated (SQLite) or checked (PostgreSQL)."""
    engine = connect(settings.database_url, statement_timeout)
    prepare(engine)
    return engine


def check_cache(engine: Engine, expected: str) -> None:
    """The steps of a run must meet in one database. Raises DatabaseUnavailable, which is tried again.

    Airflow answers a Connection that it cannot fetch for a moment as one that does not exist, and the task would go on
    with the default of its environment.
    """
    found = cache_name(engine)
    if found != expected:
        raise DatabaseUnavailable(
            f"This task would use the cache {found}, and list_images used {expected}. Give all workers the same "
            "Connection afterimage_database or AFTERIMAGE_DATABASE."
        )


def list_images(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """Stage what the run looks at; a new attempt replaces the staging of the older one."""
    engine = engine or open_cache(settings)
    location = parse_location(request.pipeline.images)
    prefix = location.prefix if location.template is None else location.template.stem
    listing = _listing(request, settings)
    start = RunStart(
        request.key, request.run_type, request.name, listing["source"], prefix, request.window, request.force, listing
    )
    store = open_store(location, settings)
    staging = open_run(engine, start)
    listed = ignored = 0
    for page in list_pages(store, location, request.window, _key_filter(request)):
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
    _check_listing(listing_of(engine, staging), listing)
    options = DedupeOptions(
        request.force, request.limit, request.pipeline.shard_seconds, request.pipeline.max_shards, request.dry_run
    )
    saw, retried = _saw(request, location), _retried(request, location)
    division = divide(engine, staging, model, _decoder(model), options, saw, retried)
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
        )
        for number, count in enumerate(division.sizes)
    ]


def predict_shard(
    descriptor: ShardDescriptor,
    settings: Settings,
    engine: Engine | None = None,
    on_progress: Progress = lambda _images: None,
    stop_after: timedelta | None = None,
    observe: Callable[[Observation], None] = lambda _observation: None,
) -> dict[str, int]:
    """Predict what is open in one shard; {outcome: rows} of the whole shard, as its rows show them.

    After `stop_after` it ends with a commit, and the rest is `open`. Raises ModelChanged where the bundle is not the
    one that was frozen.
    """
    from tasks.inference.shard import Shard
    from tasks.inference.shard import predict_shard as run_shard

    engine = engine or open_cache(settings)
    check_cache(engine, descriptor.cache)
    model = _frozen_model(descriptor, settings)
    location = parse_location(descriptor.images)
    _check_source(location.source(settings.s3_endpoint), descriptor.source)
    store = open_store(location, settings)
    scope = Scope(descriptor.staging, descriptor.shard, descriptor.model_no, _decoder(model), descriptor.force)
    ledger = ShardLedger(engine, scope)
    with _open_runtimes(model, settings) as runtimes:
        shard = Shard(ledger, store, model, runtimes, settings, descriptor, stop_after, observe)
        outcomes = run_shard(shard, on_progress)
    log.info("%s: %s", descriptor.label, outcomes)
    return outcomes


def publish_run(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """Check the invariant, close the run and return its counts."""
    engine = engine or open_cache(settings)
    options = reporting.ReportOptions(
        request.name, request.pipeline.max_failure_rate, timedelta(days=request.pipeline.keep_runs_days)
    )
    counts = reporting.publish(engine, find_staging(engine, request.key), options)
    log.info("%s", reporting.format_summary(counts))
    return counts


def close_run(request: RunRequest, settings: Settings, engine: Engine | None = None) -> dict[str, Any] | None:
    """The teardown: close a run that publish_run did not close; None where there is nothing to close."""
    engine = engine or open_cache(settings)
    try:
        return reporting.close_unfinished(engine, find_staging(engine, request.key))
    except StagingLost:
        return None


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


def run(
    request: RunRequest,
    settings: Settings,
    on_plan: Callable[[list[ShardDescriptor]], None] = lambda _shards: None,
    on_progress: Progress = lambda _images: None,
    engine_of_shards: Callable[[Iterable[ShardDescriptor], Callable[[ShardDescriptor], object]], None] = run_shards,
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
        engine_of_shards(shards, lambda shard: predict_shard(shard, settings, engine, on_progress))
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
    }


def _check_listing(then: dict[str, Any], now: dict[str, Any]) -> None:
    """The rows of one bucket must not be judged or read as those of another. Raises StagingLost."""
    changed = [f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise StagingLost(f"Since list_images {'; '.join(changed)}. Clear list_images, so that the run starts anew.")


def _check_source(found: str, expected: str) -> None:
    if found != expected:
        raise ConfigurationError(
            f"This worker would read from {found}, and the images were listed in {expected}. Give all workers the same "
            "AFTERIMAGE_S3_ENDPOINT or Connection afterimage_storage."
        )


def _key_filter(request: RunRequest) -> KeyFilter:
    return KeyFilter(request.pipeline.include, request.pipeline.exclude)


def _saw(request: RunRequest, location: Location) -> Callable[[str], bool] | None:
    """Whether the listing would have shown a key; None where a key does not tell, as within a window on LastModified."""
    keys, template, window = _key_filter(request), location.template, request.window
    if template is None:
        return keys.wants if window.is_open else None
    if not (window.is_open or template.tells_days):
        return None
    return lambda key: keys.wants(key) and template.matches(key, window)


def _retried(request: RunRequest, location: Location) -> Callable[[str], bool] | None:
    """Which failures a run tries again although it does not list them: those of any day, where days are listed daily."""
    keys, template = _key_filter(request), location.template
    if template is None or request.run_type != SCHEDULED:
        return None
    return lambda key: keys.wants(key) and template.matches(key, EVERYTHING)


@contextmanager
def _open_runtimes(model: Model, settings: Settings) -> Iterator[tuple[Runtime, ...]]:
    """A runtime for each bundle of the model; at the end they let go of their memory, whatever happened."""
    from tasks.models.runtimes import open_runtime

    with ExitStack() as opened:
        runtimes = []
        for bundle in model.stages:
            runtimes.append(open_runtime(bundle, settings))
            opened.callback(runtimes[-1].close)
        yield tuple(runtimes)


def _frozen_model(descriptor: ShardDescriptor, settings: Settings) -> Model:
    model = resolve_models(descriptor.models, descriptor.margins, settings)
    if model.model_id != descriptor.model_id:
        raise ModelChanged(
            f"{' + '.join(descriptor.models)} has the fingerprint {model.model_id[:12]} here, and had "
            f"{descriptor.model_id[:12]} at deduplicate. Bring back that bundle, or clear deduplicate to go on with this one."
        )
    return model


def _decoder(model: Model) -> str:
    """The versions of all decoders that the model's images go through."""
    from tasks.inference.decoding.policies import decoder_version

    policies = dict.fromkeys(bundle.spec.preprocessing.decode for bundle in model.stages)
    return "; ".join(decoder_version(policy) for policy in policies)
