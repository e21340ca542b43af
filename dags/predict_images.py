"""### Predict new images, once per model

One DAG for each table in `pipelines.toml`. It lists the images of the pipeline, drops those whose prediction is already
in the cache, predicts the rest in shards on the `gpu` pool and upserts what comes back. Running it again costs a listing.

| start it | what it looks at |
|---|---|
| by schedule | everything under the prefix; over a date template the days of its interval and `lookback_days` before |
| by backfill | the days of each run's data interval, by LastModified or by the date template |
| by hand | everything, unless `window_start` or `window_end` is given |

**Params.** `window_start` and `window_end` bound the objects by LastModified, end exclusive (over a date template they
pick days). `force` predicts again what is in the cache: with a backfill of *All Runs*, give `{"force": true}`, or the
cache answers and nothing is recomputed. `limit` predicts at most so many new images and defers the rest. `dry_run`
lists and deduplicates, logs the counts and the expected time, and stops.

**Counts.** `listed = cached + known_bad + deferred + reused + predicted + failed + vanished`; the run checks this before it
calls itself a success, and returns the counts as its result.

**Long shards** give up their slot every half hour and are scheduled again; nothing is lost and no retry is spent.

**Listing.** With `list_tasks` above 1 the mapped task `list_range` shares the listing of a source that had a million objects in
the run before; else `list_images` lists all by itself, and `list_range` is skipped.

**On Ray.** With `engine = "ray"` one task, `predict_on_ray`, gives the shards to a Ray cluster (`AFTERIMAGE_RAY_ADDRESS`). It
uses no GPU itself; when it ends, however it ends, its actors end.

**When a task fails.** Clear it: a shard goes on after its last commit. Should it say so, clear `list_images` instead: the
run then starts anew, and the cache keeps what was predicted. `TooManyFailures` means that everything was committed and
more than `max_failure_rate` of the images were bad: `./afterimage failures` lists them. `DriftExceeded` means that everything was
committed and the predictions have moved from the `baseline` by more than `drift_limit`: look at the page Drift.

**Events.** A pipeline with `events` has a second DAG, `predict_<name>_events`, which predicts what the bucket announces within a
minute or so; `keys` in its form does the same by hand. The daily run finds what no message told of.

Settings come from `AFTERIMAGE_*` and from the Connections `afterimage_database` and `afterimage_storage`, which win.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from afterimage_announced import announced_asset, follow_up
from afterimage_context import current_request, current_settings
from afterimage_defaults import DEFAULT_ARGS, RUN_TIMEOUT
from afterimage_executor import POOL, QUEUE, shard_options
from afterimage_metrics import send
from afterimage_notify import tell
from airflow.sdk import (
    DAG,
    Asset,
    CronDataIntervalTimetable,
    Param,
    dag,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSkipException

from tasks.pipelines import Pipeline, read_pipelines
from tasks.plan import RunRequest
from tasks.settings import load_settings

log = logging.getLogger(__name__)

# The scheduler must have heard of the end of a task before it may start the task again; else it takes the news for a
# failure of the second one.
HANDOVER = timedelta(seconds=15)

# Where the counts of list_images lie when its result are ranges: a task can be mapped over a result only.
LISTED = "listed"

LISTING_IS_DONE = {False: "all_success", True: "none_failed"}

PARAMS = {
    "window_start": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="Window start",
        description_md="Only images modified at this moment or later. Empty: no bound.",
    ),
    "window_end": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="Window end",
        description_md="Only images modified **before** this moment. Empty: no bound.",
    ),
    "force": Param(
        False, type="boolean", title="Recompute", description_md="Predict again what is in the cache already."
    ),
    "limit": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit",
        description_md="Predict at most so many new images; the rest is deferred to the next run.",
    ),
    "dry_run": Param(
        False,
        type="boolean",
        title="Dry run",
        description_md="List and deduplicate, log the counts and the expected time, and stop.",
    ),
}


ANNOUNCED_PARAMS = {
    "keys": Param(
        [],
        type="array",
        items={"type": "string"},
        title="Keys",
        description_md="Predict these objects too, one key a line. Keys that are not the pipeline's are left out.",
    ),
    **{name: param for name, param in PARAMS.items() if not name.startswith("window_")},
}


def build(pipeline: Pipeline, schedule: Any = None, announced: Asset | None = None) -> DAG:
    """The DAG of one pipeline. A DAG file of your own may give it another schedule, such as an Asset.

    With `announced` it is the DAG for the pipeline's events: that asset starts it, and it looks at announced keys alone.
    """
    predictions = Asset(name=f"predictions_{pipeline.name}", uri=f"x-afterimage://predictions/{pipeline.name}")
    asked = partial(current_request, pipeline, is_announced=announced is not None)
    shard_timeout = timedelta(seconds=max(3600.0, 12 * pipeline.shard_seconds))

    @dag(
        **_how_it_starts(pipeline, schedule, announced),
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        # The pool says how many; Airflow's 16 would leave a seventeenth GPU idle.
        max_active_tasks=max(16, pipeline.max_shards),
        dagrun_timeout=RUN_TIMEOUT,
        default_args=DEFAULT_ARGS,
        tags=["afterimage"],
        doc_md=__doc__,
    )
    def predict() -> Any:
        @task
        def list_images() -> Any:
            return _list(pipeline, asked)

        # Where list_images has listed everything there is no range to map over, and list_range is skipped.
        @task(trigger_rule=LISTING_IS_DONE[pipeline.list_tasks > 1])
        def deduplicate(listed: dict[str, Any]) -> list[dict[str, Any]]:
            from tasks import road

            settings = current_settings()
            engine = road.open_cache(settings, _timeout())
            road.check_cache(engine, listed["cache"])
            shards = road.deduplicate(asked(), settings, engine)
            return [shard.to_dict() for shard in shards]

        @task(
            pool=POOL,
            queue=QUEUE,
            execution_timeout=shard_timeout,
            map_index_template="{{ shard_label }}",
            **shard_options(load_settings().executor),
        )
        def predict_and_upsert(shard: dict[str, Any]) -> dict[str, int]:
            from tasks import road
            from tasks.plan import ShardDescriptor

            descriptor, settings = ShardDescriptor.from_dict(shard), current_settings()
            get_current_context()["shard_label"] = descriptor.label  # type: ignore[typeddict-unknown-key]
            engine = road.open_cache(settings, _timeout())
            observe = partial(send, pipeline.name)
            outcomes = road.predict_shard(descriptor, settings, engine, stop_after=shard_timeout / 2, observe=observe)
            if outcomes.get("open"):
                # Long shards give up their slot now and then: no time-out ends them, and no retry is spent.
                raise AirflowRescheduleException(datetime.now(UTC) + HANDOVER)  # type: ignore[no-untyped-call]
            return outcomes

        @task(trigger_rule="none_failed", outlets=[predictions])
        def publish_run(listed: dict[str, Any]) -> dict[str, Any]:
            from tasks import road

            context: Any = get_current_context()
            request, settings = asked(), current_settings()
            engine = road.open_cache(settings, _timeout())
            road.check_cache(engine, listed["cache"])
            if request.dry_run:
                # A skipped task emits no asset event; its counts are still the result of the run.
                context["ti"].xcom_push("return_value", road.report_dry_run(request, settings, engine))
                raise AirflowSkipException("This was a dry run: nothing was predicted, and its staging is removed.")
            counts = road.publish_run(request, settings, engine)
            context["outlet_events"][predictions].extra = counts
            return counts

        # A notifier that hangs must not hold up tomorrow's run; the next attempt sends nothing again.
        @task(execution_timeout=timedelta(hours=1))
        def close_run() -> dict[str, Any] | None:
            from tasks import road

            request, settings = asked(), current_settings()
            closed = road.close_run(request, settings)
            tell(request, settings)
            return closed

        listed, ranges = _list_ranges(pipeline, asked, list_images())
        published = publish_run(listed)
        shards: Any = deduplicate(listed)
        ranges >> shards
        on_ray = pipeline.engine == "ray"
        predicted = _predict_on_ray(pipeline, asked, shards) if on_ray else predict_and_upsert.expand(shard=shards)
        predicted >> published
        if announced is not None:
            predicted >> follow_up(announced)
        # A teardown cannot hide a failed shard from Airflow: the state of the run does not ask for it.
        published >> close_run().as_teardown()
        return published

    return predict()


def _how_it_starts(pipeline: Pipeline, schedule: Any, announced: Asset | None) -> dict[str, Any]:
    """The DAG's name, its schedule and its form."""
    if announced is not None:
        return {"dag_id": f"predict_{pipeline.name}_events", "schedule": [announced], "params": ANNOUNCED_PARAMS}
    # A bare cron string has an interval of zero width in Airflow 3, and a backfill would find nothing.
    if schedule is None and pipeline.schedule is not None:
        schedule = CronDataIntervalTimetable(pipeline.schedule, timezone="UTC")
    return {"dag_id": f"predict_{pipeline.name}", "schedule": schedule, "params": PARAMS}


def _list(pipeline: Pipeline, asked: Callable[[], RunRequest]) -> Any:
    """What was listed; where other tasks share the listing its ranges are the result, and what was listed lies beside them."""
    from tasks import road

    request, settings = asked(), current_settings()
    engine = road.open_cache(settings, _timeout())
    if pipeline.list_tasks == 1:
        return road.list_images(request, settings, engine)
    listed, parts = road.plan_listing(request, settings, engine)
    context: Any = get_current_context()
    context["ti"].xcom_push(LISTED, listed)
    return [part.to_dict() for part in parts]


def _list_ranges(pipeline: Pipeline, asked: Callable[[], RunRequest], listed: Any) -> tuple[Any, list[Any]]:
    """What later steps need to know of the listing, and the mapped task that shares it, if any does."""
    if pipeline.list_tasks == 1:
        return listed, []

    @task(map_index_template="{{ range_label }}")
    def list_range(part: dict[str, Any]) -> dict[str, Any]:
        from tasks import road
        from tasks.plan import RangeDescriptor

        descriptor, settings = RangeDescriptor.from_dict(part), current_settings()
        get_current_context()["range_label"] = descriptor.label  # type: ignore[typeddict-unknown-key]
        engine = road.open_cache(settings, _timeout())
        return road.list_range(asked(), settings, descriptor, engine)

    return listed[LISTED], [list_range.expand(part=listed)]


def _predict_on_ray(pipeline: Pipeline, asked: Callable[[], RunRequest], shards: Any) -> Any:
    """One task for all shards: it waits for a Ray cluster, and needs no slot of a GPU."""

    @task(execution_timeout=RUN_TIMEOUT)
    def predict_on_ray(shards: list[dict[str, Any]]) -> dict[str, Any]:
        from tasks import progress, road
        from tasks.engines import engine_of
        from tasks.plan import ShardDescriptor

        if not shards:
            raise AirflowSkipException("Nothing is new.")
        descriptors, settings = [ShardDescriptor.from_dict(shard) for shard in shards], current_settings()
        bar = progress.lines(log.info, every=30.0)
        bar.plan(descriptors)
        engine_of(pipeline)(descriptors, settings, bar.advance, partial(send, pipeline.name))
        return road.summary_of(asked(), settings)

    return predict_on_ray(shards)


def _timeout() -> timedelta | None:
    """The database stops a statement when Airflow stops its task."""
    context: Any = get_current_context()
    return context["task"].execution_timeout  # type: ignore[no-any-return]


# A wrong table must not stop the pipelines beside it; wrong_pipelines.py shows it as its import error.
for _pipeline in read_pipelines(load_settings().pipelines)[0].values():
    build(_pipeline)
    if _pipeline.events is not None:
        build(_pipeline, announced=announced_asset(_pipeline))
