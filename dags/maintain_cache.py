"""### Keep the cache in order

Once a day, images in quarantine whose time has come are tried again, pipeline by pipeline, wherever they lie: runs with a
window, or over the days of a date template, would not list them. What may pass (`access_denied`, `storage_error`,
`decode_timeout`, `nonfinite_output`, `compute_error`) is tried after 1, 2, 4, ... hours, at most a week; so is what
`./afterimage retry --mark-only` has chosen. What lies in the bytes waits for a new upload or another decoder.

Beside that, rows go that nobody needs any more, as `AFTERIMAGE_KEEP_VANISHED_DAYS`, `AFTERIMAGE_KEEP_PREDICTIONS_DAYS` and
`AFTERIMAGE_PRUNE_ORPHANS` say; where none is set, nothing goes. `count_removable` counts them first, `prune` removes them: its
result has the rows before and after. In PostgreSQL that takes the cache's owner: give the Connection `afterimage_owner`.

| param | |
|---|---|
| `dry_run` | count what would go, and neither remove anything nor try anything again |
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from afterimage_context import current_settings, owner_settings
from afterimage_defaults import DEFAULT_ARGS, RUN_TIMEOUT
from afterimage_executor import POOL, QUEUE, shard_options
from airflow.sdk import CronDataIntervalTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from tasks.pipelines import find_pipeline, read_pipelines
from tasks.settings import load_settings

log = logging.getLogger(__name__)


@dag(
    dag_id="maintain_cache",
    schedule=CronDataIntervalTimetable("30 3 * * *", timezone="UTC"),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=64,  # The pool says how many.
    dagrun_timeout=RUN_TIMEOUT,
    default_args=DEFAULT_ARGS,
    params={"dry_run": Param(False, type="boolean", title="Dry run", description="Count what would go, and stop.")},
    tags=["afterimage"],
    doc_md=__doc__,
)
def maintain() -> None:
    """One mapped task for each pipeline; read when it runs, so that a wrong table stops no other one."""

    @task
    def pipelines() -> list[str]:
        if _is_dry_run():
            raise AirflowSkipException("A dry run tries nothing again.")
        return sorted(read_pipelines(load_settings().pipelines)[0])

    @task(
        pool=POOL,
        queue=QUEUE,
        map_index_template="{{ pipeline }}",
        **shard_options(load_settings().executor),
    )
    def retry_failures(name: str) -> dict[str, Any]:
        from tasks import road
        from tasks.cache.runs import RunKey
        from tasks.engines import engine_of
        from tasks.plan import RunRequest
        from tasks.window import RETRY

        context: Any = get_current_context()
        context["pipeline"] = name
        settings = current_settings()
        pipeline = find_pipeline(settings.pipelines, name)
        key = RunKey("maintain_cache", f"{context['dag_run'].run_id} {name}")
        request = RunRequest(key, RETRY, pipeline, name, retry=True)
        counts = road.retry(request, settings, engine_of(pipeline))
        if counts is None:
            raise AirflowSkipException("No failure is due.")
        log.info("%s", road.format_summary(counts))
        return counts

    @task
    def count_removable() -> dict[str, Any]:
        return _removed(dry_run=True)

    @task
    def prune() -> dict[str, Any]:
        if _is_dry_run():
            raise AirflowSkipException("A dry run removes nothing.")
        return _removed(dry_run=False)

    retry_failures.expand(name=pipelines())
    count_removable() >> prune()


def _is_dry_run() -> bool:
    context: Any = get_current_context()
    return bool(context["params"]["dry_run"])


def _removed(*, dry_run: bool) -> dict[str, Any]:
    """What the retention of this installation removes, or would; it skips the task where there is none."""
    from tasks import road
    from tasks.cache.keeping import pruning
    from tasks.cache.keeping.retention import retention_of

    settings = owner_settings()
    asked = retention_of(settings)
    if not asked.asks_for_something():
        raise AirflowSkipException("No AFTERIMAGE_KEEP_* and no AFTERIMAGE_PRUNE_ORPHANS is set: everything is kept.")
    cache = road.open_cache(settings)
    pruned = pruning.look(cache, asked) if dry_run else pruning.prune(cache, asked)
    for line in pruned.lines():
        log.info("%s", line)
    return pruned.plain()


maintain()
