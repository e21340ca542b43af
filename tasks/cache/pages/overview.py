"""How each pipeline stands: its last run, its backlog, and what its runs did by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select, union_all

from tasks.cache.counting import day_of
from tasks.cache.database import reading
from tasks.cache.runs import RUNNING
from tasks.cache.schema import run, shard
from tasks.window import EVENTS, RETRY

MOST_RUNS = 3_000
"""How many of a pipeline's newest runs are looked at: those of a month, at one every quarter of an hour."""

# SQLite takes 500 parts of a UNION.
CHUNK = 200

_COUNTS = ("listed", "cached", "reused", "predicted", "failed")


@dataclass(frozen=True, slots=True)
class Run:
    """The newest run that listed images; `remaining` are those that its shards still have to do, while it is running."""

    dag_id: str
    run_id: str
    state: str
    message: str | None
    counts: Mapping[str, int]
    seconds: float
    worker_seconds: float
    held_back_by: str | None
    waiting_since: datetime | None
    started_at: datetime
    finished_at: datetime | None
    remaining: int

    @property
    def images_per_second(self) -> float | None:
        """As v_run has it; None where no image was worked on."""
        worked = self.counts["reused"] + self.counts["predicted"] + self.counts["failed"]
        return worked / self.seconds if worked and self.seconds > 0 else None

    @property
    def backlog(self) -> int:
        """Images that are known and have no prediction: what is still to do, or what was left to the next run."""
        return self.remaining if self.state == RUNNING else self.counts["open"] + self.counts["deferred"]


@dataclass(frozen=True, slots=True)
class Work:
    """What all runs that began on a day (UTC) did, added up."""

    day: date
    listed: int
    cached: int
    reused: int
    predicted: int
    failed: int
    worker_seconds: float


def last_runs(engine: Engine, pipelines: Sequence[str]) -> dict[str, Run]:
    """{pipeline: its newest run}. A retry of failures lists nothing, and says nothing of the backlog: it is passed over."""
    remaining = (
        select(func.coalesce(func.sum(shard.c.expected - shard.c.done), 0))
        .where(shard.c.run_no == run.c.run_no, shard.c.generation == run.c.generation)
        .scalar_subquery()
        .label("remaining")
    )
    found: dict[str, Run] = {}
    with reading(engine) as connection:
        for start in range(0, len(pipelines), CHUNK):
            numbers = _newest_numbers(connection, pipelines[start : start + CHUNK])
            rows = connection.execute(select(run, remaining).where(run.c.run_no.in_(numbers))).mappings()
            found.update((row["pipeline"], _run(row)) for row in rows)
    return found


def _newest_numbers(connection: Connection, pipelines: Sequence[str]) -> list[int]:
    """Asked for first: PostgreSQL reads all runs where these are subqueries of another question."""
    newest = [
        select(func.max(run.c.run_no))
        .where(run.c.pipeline == name, run.c.run_type.not_in((RETRY, EVENTS)))
        .scalar_subquery()
        for name in pipelines
    ]
    return [number for number in connection.execute(select(*newest)).one() if number is not None]


def _run(row: Mapping[Any, Any]) -> Run:
    counts = ("listed", "cached", "known_bad", "deferred", "reused", "predicted", "failed", "vanished", "open")
    plain = ("dag_id", "run_id", "state", "message", "seconds", "worker_seconds", "held_back_by", "waiting_since")
    return Run(
        **{name: row[name] for name in (*plain, "started_at", "finished_at")},
        counts={name: row[name] for name in counts},
        remaining=int(row["remaining"]),
    )


def work_by_day(engine: Engine, pipelines: Sequence[str]) -> dict[str, list[Work]]:
    """{pipeline: a Work for each day on which one of its MOST_RUNS newest runs began, in their order}."""
    found: dict[str, list[Work]] = {name: [] for name in pipelines}
    with reading(engine) as connection:
        for start in range(0, len(pipelines), CHUNK):
            for row in connection.execute(_work(connection, pipelines[start : start + CHUNK])).mappings():
                sums = {name: int(row[name]) for name in _COUNTS}
                found[row["pipeline"]].append(Work(row["day"], **sums, worker_seconds=float(row["worker_seconds"])))
    return found


def _work(connection: Connection, pipelines: Sequence[str]) -> Select[Any]:
    runs = union_all(*(_newest(connection, name) for name in pipelines)).subquery("runs")
    added = [func.sum(runs.c[name]).label(name) for name in (*_COUNTS, "worker_seconds")]
    return select(runs.c.pipeline, runs.c.day, *added).group_by(runs.c.pipeline, runs.c.day).order_by(runs.c.day)


def _newest(connection: Connection, name: str) -> Select[Any]:
    """The index run_pipeline gives them without a look at older ones."""
    counts = [run.c[one] for one in (*_COUNTS, "worker_seconds")]
    newest = (
        select(run.c.pipeline, day_of(connection, run.c.started_at).label("day"), *counts)
        .where(run.c.pipeline == name)
        .order_by(run.c.run_no.desc())
        .limit(MOST_RUNS)
        .subquery()
    )
    return select(newest)
