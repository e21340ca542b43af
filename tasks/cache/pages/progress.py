"""How far a run has come, shard by shard, and what became of its images: what the page of a run asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, func, select

from tasks import stage_times
from tasks.cache.database import reading
from tasks.cache.runs import OUTCOMES, RUNNING, count_outcomes, now
from tasks.cache.schema import failure, run, shard, work_item

# The outcomes of a run that is still going are counted row by row up to so many, in some 20 ms; beyond that the shards' own
# counts must do.
COUNTED = 50_000

# A shard commits every ten seconds; one that has not done so for this long is not at work, whatever its row says.
SILENT = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """One slice of a run's work. `seconds` is what its attempts took together."""

    number: int
    expected: int
    done: int
    reads: int
    seconds: float
    device: str | None
    updated_at: datetime | None
    working: bool
    stages: dict[str, Any]

    @property
    def images_per_second(self) -> float | None:
        """Images that were read, over the seconds until the last commit; None before the first."""
        return self.reads / self.seconds if self.seconds > 0 and self.reads else None

    @property
    def state(self) -> str:
        """done, working, stopped (it has begun, and nobody goes on with it now) or waiting."""
        if self.done >= self.expected:
            return "done"
        if self.is_at_work:
            return "working"
        return "stopped" if self.updated_at is not None else "waiting"

    @property
    def is_at_work(self) -> bool:
        """Whether it has committed lately, or an attempt has begun and not committed yet."""
        return self.working and (self.updated_at is None or now() - self.updated_at < SILENT)


@dataclass(frozen=True)
class RunProgress:
    """A run's numbers inside the cache, and how far it has come.

    `outcomes` are counted from the rows, None where there are too many of them to count while one waits. `has_details` is whether
    the rows of its images are still there.
    """

    run_no: int
    generation: int
    source_no: int
    prefix: str
    model_no: int | None
    state: str
    listed: int
    shards: tuple[ShardProgress, ...]
    outcomes: dict[str, int] | None
    has_details: bool

    @property
    def is_running(self) -> bool:
        """Whether nobody has closed it yet."""
        return self.state == RUNNING

    @property
    def is_divided(self) -> bool:
        """Whether deduplicate has said what there is to do."""
        return self.model_no is not None

    @cached_property
    def expected(self) -> int:
        """Images that the shards are to work on."""
        return sum(one.expected for one in self.shards)

    @cached_property
    def done(self) -> int:
        """Images that the shards have committed."""
        return sum(one.done for one in self.shards)

    @property
    def settled(self) -> int:
        """Images that deduplicate has settled, without reading them."""
        return self.listed - self.expected if self.is_divided else 0

    @property
    def shards_done(self) -> int:
        """How many shards have nothing left to do."""
        return sum(one.state == "done" for one in self.shards)

    @property
    def images_per_second(self) -> float | None:
        """What the shards that are at work do together; None where none of them has committed yet."""
        rates = [one.images_per_second or 0.0 for one in self.shards if one.state == "working"]
        return sum(rates) or None

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None where it is not known."""
        rate = self.images_per_second
        return (self.expected - self.done) / rate if rate else None

    @cached_property
    def times(self) -> stage_times.Times:
        """The stages of all shards, added up."""
        return stage_times.total(one.stages for one in self.shards)

    def parts(self) -> list[tuple[str, int]]:
        """(name, images): what adds up to `listed` while the run is going."""
        if self.outcomes is not None:
            return [(name, self.outcomes.get(name, 0)) for name in (*OUTCOMES, "open")]
        return [
            ("settled", self.settled),
            ("done", self.done),
            ("open", self.listed - self.settled - self.done),
        ]


@dataclass(frozen=True, slots=True)
class RunFailures:
    """Why images of a run failed. `images` are the newest few: (key, reason, message, digest as hex or None)."""

    reasons: tuple[tuple[str, int], ...]
    images: tuple[tuple[str, str, str, str | None], ...]

    @property
    def count(self) -> int:
        """How many of them are still in quarantine by this run."""
        return sum(images for _, images in self.reasons)


def run_progress(engine: Engine, dag_id: str, run_id: str) -> RunProgress | None:
    """How far a run has come; None where the cache does not know it."""
    with reading(engine) as connection:
        row = connection.execute(select(run).where(run.c.dag_id == dag_id, run.c.run_id == run_id)).one_or_none()
        if row is None:
            return None
        mine = _of(shard, row)
        parts = connection.execute(select(shard).where(*mine).order_by(shard.c.shard)).all()
        staged = select(work_item.c.key).where(*_of(work_item, row)).limit(1)
        has_details = connection.execute(staged).first() is not None
        is_counted = row.state == RUNNING and row.listed <= COUNTED
        outcomes = count_outcomes(connection, *_of(work_item, row)) if is_counted else None
        if outcomes is not None:
            outcomes["cached"] = outcomes.get("cached", 0) + row.dropped
    return RunProgress(
        row.run_no,
        row.generation,
        row.source_no,
        row.prefix,
        row.model_no,
        row.state,
        row.listed,
        tuple(_shard(part) for part in parts),
        outcomes,
        has_details,
    )


def _of(table: Any, row: Row[Any]) -> tuple[ColumnElement[bool], ...]:
    return table.c.run_no == row.run_no, table.c.generation == row.generation


def _shard(row: Row[Any]) -> ShardProgress:
    return ShardProgress(
        row.shard,
        row.expected,
        row.done,
        row.reads,
        row.seconds,
        row.device,
        row.updated_at,
        row.working,
        json.loads(row.stages),
    )


def run_failures(engine: Engine, found: RunProgress, most: int) -> RunFailures:
    """Why images of a run failed, without those that a later run has tried again or mended; at most so many images.

    The quarantine is small beside the cache, and only its rows of this source are looked at.
    """
    mine = (failure.c.source_no == found.source_no, failure.c.run_no == found.run_no)
    columns = (failure.c.key, failure.c.reason, failure.c.message, failure.c.digest)
    with reading(engine) as connection:
        counted = select(failure.c.reason, func.count()).where(*mine).group_by(failure.c.reason)
        reasons = connection.execute(counted.order_by(func.count().desc(), failure.c.reason)).all()
        newest = select(*columns).where(*mine).order_by(failure.c.last_failed_at.desc(), failure.c.key).limit(most)
        images = connection.execute(newest).all()
    return RunFailures(tuple((reason, count) for reason, count in reasons), tuple(map(_failed, images)))


def _failed(row: Sequence[Any]) -> tuple[str, str, str, str | None]:
    key, reason, message, digest = row
    return key, reason, message, None if digest is None else bytes(digest).hex()
