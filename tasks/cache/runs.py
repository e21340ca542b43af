"""The run row: opened by list_images, closed by publish_run or by the teardown.

A run is known by (dag_id, run_id). Each attempt of list_images raises its generation and drops the older staging;
whoever still works on the older one finds his commits refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, func, select, update

from tasks import stage_times
from tasks.cache.counting import add_up
from tasks.cache.database import is_sqlite, reading, repeated, writing
from tasks.cache.schema import (
    label_count,
    listing_range,
    model,
    pair_count,
    pipeline,
    run,
    score_count,
    shard,
    source,
    work_item,
)
from tasks.errors import StagingLost, StaleGeneration
from tasks.window import EVENTS, RETRY, SCHEDULED, Window

OUTCOMES = ("cached", "known_bad", "deferred", "reused", "predicted", "failed", "vanished")

RUNNING, SUCCESS, FAILED = "running", "success", "failed"

# Airflow ends a run after fourteen days; one that is older than this and was never closed was killed.
ABANDONED = timedelta(days=15)


@dataclass(frozen=True, slots=True)
class RunKey:
    """What Airflow calls a run; the command line uses dag_id `cli` and a UUID."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Staging:
    """The staging of one attempt of list_images; every later step carries it."""

    run_no: int
    generation: int


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is known when a run begins. `listing` is what decided which objects are staged, as JSON values."""

    key: RunKey
    run_type: str
    pipeline: str | None
    source: str
    prefix: str
    window: Window
    force: bool
    listing: Mapping[str, Any]


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


def insert(connection: Connection | Engine, table: Any) -> Any:
    """INSERT with ON CONFLICT, in the dialect at hand; importing the other one as well takes 40 ms."""
    if is_sqlite(connection):
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def open_run(engine: Engine, start: RunStart) -> Staging:
    """Write the run row, or raise the generation of the one that is there and drop its older staging.

    What came with the older attempt is added up before: the newer one finds it in the cache.
    """
    with writing(engine) as connection:
        _add_up_before(connection, start.key)
        values = {
            "dag_id": start.key.dag_id,
            "run_id": start.key.run_id,
            "pipeline": start.pipeline,
            "run_type": start.run_type,
            "source_no": source_number(connection, start.source),
            "prefix": start.prefix,
            "listing": json.dumps(start.listing),
            "model_no": None,
            "state": RUNNING,
            "message": None,
            "window_start": start.window.start,
            "window_end": start.window.end,
            "force": start.force,
            "started_at": now(),
            "finished_at": None,
            **dict.fromkeys(("listed", "ignored", "dropped", "open", "reads", "forward_passes", *OUTCOMES), 0),
            "seconds": 0.0,
            "stage_seconds": "{}",
            "stages": "{}",
            "held_back_by": None,
            "worker_seconds": 0.0,
            "waiting_since": None,
            "drift": None,
            "drift_message": None,
            "notified_at": None,
        }
        statement = insert(connection, run).values(**values, generation=1)
        statement = statement.on_conflict_do_update(
            index_elements=["dag_id", "run_id"], set_={**values, "generation": run.c.generation + 1}
        )
        found = connection.execute(statement.returning(run.c.run_no, run.c.generation)).one()
        for table in (work_item, shard, listing_range):
            connection.execute(
                delete(table).where(table.c.run_no == found.run_no, table.c.generation < found.generation)
            )
        return Staging(found.run_no, found.generation)


def _add_up_before(connection: Connection, key: RunKey) -> None:
    mine = (run.c.dag_id == key.dag_id, run.c.run_id == key.run_id)
    before = connection.execute(select(run).where(*mine).with_for_update()).one_or_none()
    if before is not None and before.state != SUCCESS:
        add_up(connection, before)


def source_number(connection: Connection, uri: str) -> int:
    """The number of a source; a new one gets a row."""
    connection.execute(insert(connection, source).values(uri=uri).on_conflict_do_nothing())
    return int(connection.execute(select(source.c.source_no).where(source.c.uri == uri)).scalar_one())


def find_staging(engine: Engine, key: RunKey) -> Staging:
    """The newest staging of a run. Raises StagingLost where list_images has not run."""
    with reading(engine) as connection:
        found = connection.execute(
            select(run.c.run_no, run.c.generation).where(run.c.dag_id == key.dag_id, run.c.run_id == key.run_id)
        ).one_or_none()
    if found is None:
        raise StagingLost(f"The run {key.dag_id} {key.run_id} has no staging in this database. Clear list_images.")
    return Staging(found.run_no, found.generation)


def listing_of(engine: Engine, staging: Staging) -> dict[str, Any]:
    """What decided which objects this run staged."""
    with reading(engine) as connection:
        found = connection.execute(select(run.c.listing).where(run.c.run_no == staging.run_no)).scalar_one()
    listing: dict[str, Any] = json.loads(found)
    return listing


def check_generation(connection: Connection, staging: Staging, *, shared: bool = False) -> Row[Any]:
    """The run row, locked against a newer list_images until the transaction ends. Raises StaleGeneration.

    Shards commit side by side, so they share the lock; whoever writes the run row takes it alone.
    """
    row = connection.execute(
        select(run).where(run.c.run_no == staging.run_no).with_for_update(read=shared)
    ).one_or_none()
    if row is None or row.generation != staging.generation:
        raise StaleGeneration(
            f"list_images of this run ran again (generation {row.generation if row else 'gone'}, this worker has "
            f"{staging.generation}). Nothing of this worker is committed; the newer tasks do the work."
        )
    return row


def count_listed(connection: Connection, staging: Staging, listed: int, ignored: int, dropped: int = 0) -> None:
    """Add one page to what the run has seen, in the transaction that stages the page; `dropped` of the listed are not staged."""
    connection.execute(
        update(run)
        .where(run.c.run_no == staging.run_no, run.c.generation == staging.generation)
        .values(listed=run.c.listed + listed, ignored=run.c.ignored + ignored, dropped=run.c.dropped + dropped)
    )


def tally(engine: Engine, staging: Staging) -> dict[str, Any]:
    """The run as its rows show it: the outcomes counted, the shards' reads, forward passes and seconds added up."""
    with reading(engine) as connection:
        row = connection.execute(
            select(run, model.c.model_id).outerjoin_from(run, model).where(run.c.run_no == staging.run_no)
        ).one()
        mine = (work_item.c.run_no == staging.run_no, work_item.c.generation == staging.generation)
        outcomes = count_outcomes(connection, *mine)
        outcomes["cached"] = outcomes.get("cached", 0) + row.dropped
        shards = connection.execute(
            select(shard).where(shard.c.run_no == staging.run_no, shard.c.generation == staging.generation)
        ).all()
    times = stage_times.total(json.loads(part.stages) for part in shards)
    if row.state == SUCCESS and sum(outcomes.values()) < row.listed:
        return _stored(row)
    finished = row.finished_at if row.state == SUCCESS else now()
    return {
        "dag_id": row.dag_id,
        "run_id": row.run_id,
        "pipeline": row.pipeline,
        "state": row.state,
        "listed": row.listed,
        "ignored": row.ignored,
        **{name: outcomes.get(name, 0) for name in (*OUTCOMES, "open")},
        "reads": sum(part.reads for part in shards),
        "forward_passes": sum(part.forward_passes for part in shards),
        "seconds": (finished - row.started_at).total_seconds(),
        "worker_seconds": round(sum(part.seconds for part in shards), 3),
        "stage_seconds": {stage: round(times[stage].busy, 3) for stage in stage_times.ordered(times)},
        "stages": stage_times.summary(times),
        "held_back_by": stage_times.held_back_by(times),
        "model_id": row.model_id,
    }


def _stored(row: Row[Any]) -> dict[str, Any]:
    """The counts of a successful run whose staging was pruned, as it was closed."""
    names = ("dag_id", "run_id", "pipeline", "state", "listed", "ignored", *OUTCOMES, "open", "reads")
    values = row._mapping
    return {
        **{
            name: values[name]
            for name in (*names, "forward_passes", "seconds", "worker_seconds", "held_back_by", "model_id")
        },
        **{name: json.loads(values[name]) for name in ("stage_seconds", "stages")},
    }


def count_outcomes(connection: Connection, *where: ColumnElement[bool]) -> dict[str, int]:
    """{outcome: rows} of some staging, with `open` for the rows that have none."""
    outcome = work_item.c.outcome
    counts = connection.execute(select(outcome, func.count()).where(*where).group_by(outcome))
    return {name or "open": count for name, count in counts}


@repeated
def close_run(
    engine: Engine,
    staging: Staging,
    counts: dict[str, Any],
    state: str,
    message: str | None,
    drift: float | None = None,
    drift_message: str | None = None,
) -> bool:
    """Write the counts into the run row, replacing what was there, and make its model the pipeline's current one.

    False, and nothing is written, where an image of the run was erased since it was counted. Raises StaleGeneration where
    list_images ran again meanwhile.
    """
    with writing(engine) as connection:
        row = check_generation(connection, staging)
        if row.listed != counts["listed"]:
            return False
        columns = ("open", "reads", "forward_passes", *OUTCOMES)
        connection.execute(
            update(run)
            .where(run.c.run_no == staging.run_no)
            .values(
                **{name: counts[name] for name in columns},
                state=state,
                message=message,
                seconds=counts["seconds"],
                stage_seconds=json.dumps(counts["stage_seconds"]),
                stages=json.dumps(counts["stages"]),
                held_back_by=counts["held_back_by"],
                worker_seconds=counts["worker_seconds"],
                drift=drift,
                drift_message=drift_message,
                waiting_since=_waiting_since(connection, staging),
                finished_at=row.started_at + timedelta(seconds=counts["seconds"]),
            )
        )
        if state == SUCCESS and row.pipeline is not None and row.model_no is not None:
            _point_pipeline(connection, row, is_whole=counts["deferred"] == 0)
    return True


def _waiting_since(connection: Connection, staging: Staging) -> datetime | None:
    """The age of the oldest image that this run leaves to the next one."""
    waits = work_item.c.outcome.is_(None) | (work_item.c.outcome == "deferred")
    mine = (work_item.c.run_no == staging.run_no, work_item.c.generation == staging.generation)
    found: datetime | None = connection.execute(
        select(func.min(work_item.c.last_modified)).where(*mine, waits)
    ).scalar_one()
    return found


def _point_pipeline(connection: Connection, row: Row[Any], *, is_whole: bool) -> None:
    """Make the run's model the pipeline's current one.

    A pipeline that has one already changes only after a run by schedule or over everything, and never back to an older
    run's model: users' SQL would see a part of the images, or the past. A retry of failures changes nothing, and announced
    images are a part.
    """
    if row.run_type == RETRY:
        return
    known = connection.execute(select(pipeline.c.name).where(pipeline.c.name == row.pipeline)).scalar_one_or_none()
    newer = select(run.c.run_no).where(
        run.c.pipeline == row.pipeline, run.c.state == SUCCESS, run.c.run_no > row.run_no
    )
    is_open = row.window_start is None and row.window_end is None
    is_whole = is_whole and row.run_type != EVENTS and (is_open or row.run_type == SCHEDULED)
    if known is not None and (not is_whole or connection.execute(newer.limit(1)).first() is not None):
        return
    values = {"source_no": row.source_no, "prefix": row.prefix, "model_no": row.model_no}
    statement = insert(connection, pipeline).values(name=row.pipeline, updated_at=now(), **values)
    differs = (
        (pipeline.c.source_no != row.source_no)
        | (pipeline.c.prefix != row.prefix)
        | (pipeline.c.model_no != row.model_no)
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={**values, "updated_at": statement.excluded.updated_at}, where=differs
        )
    )


def forget_run(engine: Engine, staging: Staging) -> None:
    """Remove the run and its staging: what a dry run leaves behind is nothing."""
    with writing(engine) as connection:
        check_generation(connection, staging)
        for table in (work_item, shard, listing_range, label_count, score_count, pair_count, run):
            connection.execute(delete(table).where(table.c.run_no == staging.run_no))


def prune_staging(engine: Engine, name: str | None, keep: timedelta) -> int:
    """Drop the staging of a pipeline's runs that closed before `keep`, or were never closed; run rows stay.

    A run that was never closed ends as failed.
    """
    mine = run.c.pipeline.is_not_distinct_from(name)
    closed = run.c.finished_at < now() - keep
    abandoned = run.c.finished_at.is_(None) & (run.c.started_at < now() - max(keep, ABANDONED))
    old = select(run.c.run_no).where(mine, closed | abandoned)
    message = "It was never closed: its process was killed, and nobody cleared it. What it committed stays."
    with writing(engine) as connection:
        connection.execute(delete(shard).where(shard.c.run_no.in_(old)))
        connection.execute(delete(listing_range).where(listing_range.c.run_no.in_(old)))
        dropped = connection.execute(delete(work_item).where(work_item.c.run_no.in_(old))).rowcount
        connection.execute(update(run).where(mine, abandoned).values(state=FAILED, message=message, finished_at=now()))
        return dropped
