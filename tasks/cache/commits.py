"""One transaction of a shard: predictions, images, failures and outcomes together. The rows are the checkpoint.

Rows are written in the order of their keys, images before failures, so that two runs over the same images wait for each
other; should the database find a deadlock all the same, the transaction is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, case, select, update

from tasks.cache import bulk
from tasks.cache.blocking import blocked_digests, blocked_keys, hold_off_erasing
from tasks.cache.database import is_sqlite, repeated, writing
from tasks.cache.models import mark_of, predicted_now
from tasks.cache.outcome import Finished, Progress, Scored, blocked
from tasks.cache.packing import pack
from tasks.cache.quarantine import quarantine
from tasks.cache.runs import Staging, check_generation, insert, now
from tasks.cache.schema import image, prediction, rate, shard, work_item

CHUNK = 500

PREDICTION = tuple(column.name for column in prediction.c)
PREDICTED = ("digest", "model_no")
IMAGE = tuple(column.name for column in image.c)

# A shard of fewer reads was mostly start-up, and tells nothing about the rate.
MEASURED_READS = 100


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a shard's commits belong."""

    staging: Staging
    shard: int
    model_no: int
    decoder: str
    force: bool


@repeated
def commit(engine: Engine, scope: Scope, finished: Sequence[Finished], progress: Progress) -> dict[str, str]:
    """Write everything in one transaction; return {key: outcome} for the rows that this commit closed.

    Rows that are closed already are passed over, whether by another attempt of the shard or by this one, where its
    connection was lost while the database committed; so are rows that were erased. Raises StaleGeneration.
    """
    with writing(engine) as connection:
        hold_off_erasing(connection)
        row = check_generation(connection, scope.staging, shared=True)
        still_open = _open_keys(connection, scope.staging, [item.key for item in finished])
        mine = sorted((item for item in finished if item.key in still_open), key=lambda item: item.key)
        mine = _after_erasing(connection, scope, row.source_no, mine)
        won = _insert_predictions(connection, scope, mine)
        outcomes = {item.key: _outcome(item, won) for item in mine}
        _upsert_images(connection, row.source_no, mark_of(connection, scope.model_no), mine)
        quarantine(connection, row.source_no, scope.model_no, scope.decoder, scope.staging.run_no, mine)
        _close_rows(connection, scope.staging, outcomes)
        _advance(connection, scope, progress, len(outcomes))
    return outcomes


def _after_erasing(
    connection: Connection, scope: Scope, source_no: int, finished: Sequence[Finished]
) -> list[Finished]:
    """What stands, of images that were in hand while others were erased.

    Bytes and keys that are blocked by now are told of as that. An image that counted on a prediction which was erased under its
    hands stays open, and is predicted by the shard's next attempt.
    """
    banned = blocked_digests(connection, {item.digest for item in finished if item.digest is not None})
    keys = blocked_keys(connection, source_no, {item.key for item in finished})
    kept = [blocked(item.key, item.image) if item.digest in banned or item.key in keys else item for item in finished]
    counted_on = {item.digest for item in kept if _is_reuse(item) and item.digest is not None}
    there = predicted_now(connection, scope.model_no, counted_on)
    return [item for item in kept if not _is_reuse(item) or item.digest in there]


def _is_reuse(item: Finished) -> bool:
    return item.digest is not None and item.scored is None and item.failed is None


def _outcome(item: Finished, won: set[bytes]) -> str:
    if item.failed is not None:
        return "failed"
    if item.digest is None:
        return "vanished"
    if item.scored is None:
        return "reused"
    if item.digest in won:
        won.remove(item.digest)
        return "predicted"
    return "reused"


def _open_keys(connection: Connection, staging: Staging, keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    ordered = sorted(keys)
    for start in range(0, len(ordered), CHUNK):
        rows = (
            select(work_item.c.key)
            .where(
                work_item.c.run_no == staging.run_no,
                work_item.c.generation == staging.generation,
                work_item.c.key.in_(ordered[start : start + CHUNK]),
                work_item.c.outcome.is_(None),
            )
            .order_by(work_item.c.key)
            .with_for_update()
        )
        found.update(key for (key,) in connection.execute(rows))
    return found


def _insert_predictions(connection: Connection, scope: Scope, finished: Iterable[Finished]) -> set[bytes]:
    """Insert what is new and return the digests whose row this run made. With force, rows of other runs give way."""
    by_digest = {item.digest: item.scored for item in finished if item.digest is not None and item.scored is not None}
    moment = now()
    rows = [prediction_row(scope, digest, scored, moment) for digest, scored in by_digest.items()]
    run_no, generation = scope.staging.run_no, scope.staging.generation

    def give_way(statement: Any) -> Any:
        fresh = {name: statement.excluded[name] for name in PREDICTION if name not in PREDICTED}
        other = (prediction.c.run_no != run_no) | (prediction.c.generation != generation)
        updated = statement.on_conflict_do_update(index_elements=PREDICTED, set_=fresh, where=other)
        return updated.returning(prediction.c.digest)

    made = bulk.write(connection, prediction, PREDICTION, rows, give_way if scope.force else first_insert_wins)
    return set() if made is None else {bytes(digest) for (digest,) in made}


def first_insert_wins(statement: Any) -> Any:
    """For bulk.write: predictions that are there stay as they are; the digests of the others come back."""
    return statement.on_conflict_do_nothing(index_elements=PREDICTED).returning(prediction.c.digest)


def prediction_row(scope: Scope, digest: bytes, scored: Scored, moment: datetime) -> bulk.Row:
    """The values of a prediction, in the order of PREDICTION."""
    run_no, generation = scope.staging.run_no, scope.staging.generation
    numbers = (scored.label_index, scored.score, scored.margin, scored.entropy)
    packed = pack(scored.entries, scored.cascade_stage)
    return moment, scope.model_no, run_no, *numbers, generation, digest, packed


def _upsert_images(connection: Connection, source_no: int, mark: int, finished: Iterable[Finished]) -> None:
    """Record (key, etag) -> digest where it differs; mark what vanished."""
    moment = now()
    rows = [
        (source_no, found.key, found.etag, found.size, found.last_modified, item.digest, moment, None, mark)
        for item in finished
        if (found := item.image) is not None and item.digest is not None and item.failed is None
    ]
    bulk.write(connection, image, IMAGE, rows, _where_it_differs)
    gone = [item.key for item in finished if item.digest is None and item.failed is None]
    for start in range(0, len(gone), CHUNK):
        connection.execute(
            update(image)
            .where(
                image.c.source_no == source_no,
                image.c.key.in_(gone[start : start + CHUNK]),
                image.c.deleted_at.is_(None),
            )
            .values(deleted_at=moment)
        )


def _where_it_differs(statement: Any) -> Any:
    new = statement.excluded
    differs = (
        (image.c.etag != new.etag)
        | (image.c.digest != new.digest)
        | (image.c.last_modified != new.last_modified)
        | image.c.deleted_at.is_not(None)
    )
    fresh: dict[str, Any] = {name: new[name] for name in IMAGE if name not in ("source_no", "key")}
    # That another model has predicted it says nothing new of the object.
    fresh["recorded_at"] = case((differs, new.recorded_at), else_=image.c.recorded_at)
    where = differs | image.c.mark.is_distinct_from(new.mark)
    return statement.on_conflict_do_update(index_elements=["source_no", "key"], set_=fresh, where=where)


def _close_rows(connection: Connection, staging: Staging, outcomes: Mapping[str, str]) -> None:
    """The caller has locked these rows."""
    if not outcomes:
        return
    mine = (work_item.c.run_no == staging.run_no, work_item.c.generation == staging.generation)
    if is_sqlite(connection):
        statement = update(work_item).where(*mine, work_item.c.key == bindparam("closed_key"))
        rows = [{"closed_key": key, "closed_outcome": outcome} for key, outcome in outcomes.items()]
        connection.execute(statement.values(outcome=bindparam("closed_outcome")), rows)
        return
    with bulk.staged(connection, work_item, ("key", "outcome"), list(outcomes.items())) as new:
        closed = update(work_item).where(*mine, work_item.c.key == new.c.key)
        connection.execute(closed.values(outcome=new.c.outcome))


def _advance(connection: Connection, scope: Scope, progress: Progress, done: int = 0) -> None:
    """Add to the shard's counts what this attempt did, in the transaction that makes it last; `done` rows are closed now."""
    connection.execute(
        update(shard)
        .where(*of_shard(scope))
        .values(
            device=progress.device,
            reads=shard.c.reads + progress.reads,
            forward_passes=shard.c.forward_passes + progress.forward_passes,
            seconds=progress.seconds,
            stages=json.dumps(dict(progress.stages)),
            done=shard.c.done + done,
            updated_at=now(),
        )
    )


def record_progress(engine: Engine, scope: Scope, progress: Progress) -> None:
    """At the end of an attempt: the seconds of its last commit are known only now."""
    with writing(engine) as connection:
        check_generation(connection, scope.staging, shared=True)
        _advance(connection, scope, progress)
        _measure(connection, scope)


def _measure(connection: Connection, scope: Scope) -> None:
    """Keep the rate of this model on this device, where the shard had enough work to tell."""
    done = connection.execute(select(shard).where(*of_shard(scope), shard.c.reads >= MEASURED_READS)).one_or_none()
    if done is None or done.device is None or done.seconds <= 0:
        return
    measured = {"images_per_second": done.reads / done.seconds, "measured_at": now()}
    connection.execute(
        insert(connection, rate)
        .values(model_no=scope.model_no, device=done.device, **measured)
        .on_conflict_do_update(index_elements=["model_no", "device"], set_=measured)
    )


def spent(connection: Connection, scope: Scope) -> tuple[float, dict[str, Any]]:
    """Seconds, and the stages' times, that earlier attempts of this shard committed."""
    row = connection.execute(select(shard.c.seconds, shard.c.stages).where(*of_shard(scope))).one_or_none()
    return (0.0, {}) if row is None else (row.seconds, json.loads(row.stages))


def of_shard(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """The row of a shard."""
    staging = scope.staging
    return shard.c.run_no == staging.run_no, shard.c.generation == staging.generation, shard.c.shard == scope.shard
