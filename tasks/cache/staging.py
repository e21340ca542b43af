"""work_item: what a run listed. Deduplication is set-based SQL over it, the same on both databases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from tasks.cache import bulk
from tasks.cache.blocking import is_anything_blocked, is_blocked
from tasks.cache.database import is_sqlite, reading, repeated, writing
from tasks.cache.outcome import BLOCKED
from tasks.cache.runs import Staging, check_generation, count_listed, count_outcomes, insert, now
from tasks.cache.schema import SCHEMA, failure, image, prediction, rate, run, shard, work_item
from tasks.storage.base import ImageObject

PAGE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides which staged rows are work. `decoder` is the version whose verdicts are still believed; `mark` is what images
    bear that the model is known to have predicted."""

    model_no: int
    mark: int
    decoder: str
    force: bool
    limit: int | None


def stage(connection: Connection, staging: Staging, images: Sequence[ImageObject], ignored: int) -> None:
    """Write staged rows and count them, in the caller's transaction."""
    write_rows(connection, staging, images)
    count_listed(connection, staging, len(images), ignored)


def write_rows(connection: Connection, staging: Staging, images: Sequence[ImageObject]) -> None:
    """Write staged rows that somebody else counts, in the caller's transaction."""
    rows = [
        (staging.run_no, staging.generation, found.key, found.etag, found.size, found.last_modified) for found in images
    ]
    columns = [work_item.c[name] for name in ("run_no", "generation", "key", "etag", "size", "last_modified")]
    if rows and is_sqlite(connection):
        names = [column.name for column in columns]
        connection.execute(work_item.insert(), [dict(zip(names, row, strict=True)) for row in rows])
    elif rows:
        bulk.copy(connection, work_item.fullname, columns, rows)


@repeated
def not_yet_staged(engine: Engine, staging: Staging, images: Sequence[ImageObject]) -> list[ImageObject]:
    """Those of some objects whose key is not staged, each key once: what an inventory lists twice is staged once."""
    once = {image.key: image for image in reversed(images)}
    query = select(work_item.c.key).where(*of(staging), work_item.c.key.in_(list(once)))
    with reading(engine) as connection:
        known = set(connection.execute(query).scalars())
    return [image for key, image in reversed(once.items()) if key not in known]


def refresh_statistics(engine: Engine) -> None:
    """Tell PostgreSQL's planner of the rows that were staged just now.

    It takes a run that it has not heard of for one row, and compares that with every image there is in a nested loop,
    whose time grows with the square of their number. Its own look at the table comes a minute late. Only the owner of a
    table may analyse it, so a function of the owner's does.
    """
    if not is_sqlite(engine):
        with writing(engine) as connection:
            connection.execute(text(f"SELECT {SCHEMA}.refresh_statistics()"))


def classify(connection: Connection, staging: Staging, rules: Rules) -> None:
    """Give every staged row that needs no work its outcome: cached, known_bad or deferred.

    It can run again: what a shard has finished keeps its outcome, all else is judged anew.
    """
    row = check_generation(connection, staging)
    mine = of(staging)
    connection.execute(update(work_item).where(*mine).values(shard=None))
    judged = work_item.c.outcome.in_(["cached", "known_bad", "deferred"])
    connection.execute(update(work_item).where(*mine, judged).values(outcome=None))
    open_rows = (*mine, work_item.c.outcome.is_(None))
    if is_anything_blocked(connection):  # With force as well.
        connection.execute(update(work_item).where(*open_rows, is_blocked(row.source_no)).values(outcome="known_bad"))
    if not rules.force:
        connection.execute(
            update(work_item).where(*open_rows, _is_cached(row.source_no, rules)).values(outcome="cached")
        )
        connection.execute(
            update(work_item).where(*open_rows, _is_known_bad(row.source_no, rules)).values(outcome="known_bad")
        )
    if rules.limit is not None:
        taken = [work_item.c.outcome == name for name in ("predicted", "reused", "failed", "vanished")]
        done = connection.execute(select(func.count()).select_from(work_item).where(*mine, or_(*taken))).scalar_one()
        for beyond in _keys_at(connection, staging, [max(0, rules.limit - done)]):
            connection.execute(
                update(work_item)
                .where(*mine, work_item.c.outcome.is_(None), work_item.c.key >= beyond)
                .values(outcome="deferred")
            )


def _is_cached(source_no: int, rules: Rules) -> ColumnElement[bool]:
    """(key, etag) is known, and its digest has a prediction of this model."""
    predicted = exists().where(prediction.c.model_no == rules.model_no, prediction.c.digest == image.c.digest)
    return exists().where(
        image.c.source_no == source_no,
        image.c.key == work_item.c.key,
        image.c.etag == work_item.c.etag,
        (image.c.mark == rules.mark) | predicted.correlate(image),
    )


def _is_known_bad(source_no: int, rules: Rules) -> ColumnElement[bool]:
    """In quarantine by the decoder in use, for good or not yet due for a retry."""
    return exists().where(
        failure.c.source_no == source_no,
        failure.c.key == work_item.c.key,
        failure.c.etag == work_item.c.etag,
        failure.c.model_no == rules.model_no,
        ~due(rules),
    )


def due(rules: Rules) -> ColumnElement[bool]:
    """Whether a failure may be tried again: its time has come, or another decoder has a word to say.

    What is blocked is never decoded, so no decoder has a word to say about it.
    """
    return and_(
        failure.c.reason != BLOCKED,
        or_(
            failure.c.decoder != rules.decoder,
            and_(failure.c.next_retry_at.is_not(None), failure.c.next_retry_at <= now()),
        ),
    )


def of(staging: Staging) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The rows of work_item that belong to a staging."""
    return work_item.c.run_no == staging.run_no, work_item.c.generation == staging.generation


def _keys_at(connection: Connection, staging: Staging, positions: Sequence[int]) -> list[str]:
    """The keys at some positions of the open rows in key order, counted from 0; none where there are fewer rows."""
    position = (func.row_number().over(order_by=work_item.c.key) - 1).label("position")
    numbered = select(work_item.c.key, position).where(*of(staging), work_item.c.outcome.is_(None)).subquery()
    found = select(numbered.c.key).where(numbered.c.position.in_(positions)).order_by(numbered.c.key)
    return list(connection.execute(found).scalars())


def assign_shards(
    connection: Connection, staging: Staging, images_per_shard: int, min_shards: int, max_shards: int
) -> list[int]:
    """Number the open rows into shards of nearly equal size and return how many rows each has.

    There are at least `min_shards` where there are as many images, so that as many workers have something to do.
    """
    mine = of(staging)
    count = connection.execute(
        select(func.count()).select_from(work_item).where(*mine, work_item.c.outcome.is_(None))
    ).scalar_one()
    shards = min(max_shards, max(ceil(count / images_per_shard), min(min_shards, count)))
    # A shard is a range of keys. Joining rows with their numbers would leave the way to the database, and without fresh
    # statistics PostgreSQL takes each row's number from a new pass over all rows.
    first = _keys_at(connection, staging, [-(-number * count // shards) for number in range(shards)])
    for number, (start, end) in enumerate(pairwise([*first, None])):
        keys = [work_item.c.key >= start, *([] if end is None else [work_item.c.key < end])]
        connection.execute(update(work_item).where(*mine, work_item.c.outcome.is_(None), *keys).values(shard=number))
    sizes = connection.execute(
        select(work_item.c.shard, func.count())
        .where(*mine, work_item.c.shard.is_not(None))
        .group_by(work_item.c.shard)
        .order_by(work_item.c.shard)
    ).all()
    connection.execute(
        delete(shard).where(
            shard.c.run_no == staging.run_no, shard.c.generation == staging.generation, shard.c.reads == 0
        )
    )
    for number, size in sizes:
        row = {"run_no": staging.run_no, "generation": staging.generation, "shard": number, "expected": size}
        connection.execute(
            insert(connection, shard)
            .values(row)
            .on_conflict_do_update(index_elements=["run_no", "generation", "shard"], set_={"expected": size, "done": 0})
        )
    return [size for _, size in sizes]


def attach_model(connection: Connection, staging: Staging, model_no: int) -> None:
    """Freeze the model of a run."""
    connection.execute(update(run).where(run.c.run_no == staging.run_no).values(model_no=model_no))


def measured_rate(connection: Connection, model_no: int) -> float | None:
    """Images a second that one worker does of this model; None before any was measured.

    The rate of the slowest of the devices that did the newest run, so that no shard takes much longer than it should
    where they share a queue; of the device measured last where the run's shards are pruned.
    """
    newest = select(func.max(run.c.run_no)).where(run.c.model_no == model_no, run.c.forward_passes > 0)
    rates = select(rate.c.images_per_second).where(rate.c.model_no == model_no)
    devices = select(shard.c.device).where(shard.c.run_no == newest.scalar_subquery())
    slowest = rates.where(rate.c.device.in_(devices)).order_by(rate.c.images_per_second).limit(1)
    last = rates.order_by(rate.c.measured_at.desc()).limit(1)
    found = connection.execute(slowest).scalar_one_or_none() or connection.execute(last).scalar_one_or_none()
    return None if found is None else float(found)


def expected_work(engine: Engine, staging: Staging) -> tuple[int, float | None]:
    """How many shards deduplicate made, and the seconds that one device needs for them (None: no rate is known)."""
    with reading(engine) as connection:
        model_no = connection.execute(select(run.c.model_no).where(run.c.run_no == staging.run_no)).scalar_one()
        shards, images = connection.execute(
            select(func.count(shard.c.shard), func.coalesce(func.sum(shard.c.expected), 0)).where(
                shard.c.run_no == staging.run_no, shard.c.generation == staging.generation
            )
        ).one()
        rate = None if model_no is None else measured_rate(connection, model_no)
    return shards, float(images) / rate if rate else None


def open_pages(engine: Engine, staging: Staging, number: int) -> Iterator[list[ImageObject]]:
    """The rows of a shard that have no outcome yet, in key order, in pages of at least one."""
    after: str | None = None
    while True:
        page = _open_page(engine, staging, number, after)
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].key


@repeated
def _open_page(engine: Engine, staging: Staging, number: int, after: str | None) -> list[ImageObject]:
    wanted = [*of(staging), work_item.c.shard == number, work_item.c.outcome.is_(None)]
    if after is not None:
        wanted.append(work_item.c.key > after)
    columns = (work_item.c.key, work_item.c.etag, work_item.c.size, work_item.c.last_modified)
    with reading(engine) as connection:
        page = connection.execute(select(*columns).where(*wanted).order_by(work_item.c.key).limit(PAGE_ROWS)).all()
    return [ImageObject(key, etag, size, last_modified) for key, etag, size, last_modified in page]


def promised_rows(engine: Engine, staging: Staging, number: int) -> int | None:
    """How many rows a shard has, less what was erased since; None where the shard is not known any more."""
    mine = (shard.c.run_no == staging.run_no, shard.c.generation == staging.generation, shard.c.shard == number)
    with reading(engine) as connection:
        return connection.execute(select(shard.c.expected).where(*mine)).scalar_one_or_none()


def shard_outcomes(engine: Engine, staging: Staging, number: int) -> dict[str, int]:
    """{outcome: rows} of one shard, with `open` for rows that have none."""
    with reading(engine) as connection:
        return count_outcomes(connection, *of(staging), work_item.c.shard == number)
