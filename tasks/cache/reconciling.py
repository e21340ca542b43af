"""What a listing says about images that are known already: gone, back, mended; and which of them should be readable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Table, delete, exists, func, select, update

from tasks.cache.blocking import has_blocked_key
from tasks.cache.database import reading
from tasks.cache.runs import Staging, check_generation, now
from tasks.cache.schema import failure, image, run, work_item
from tasks.cache.staging import PAGE_ROWS, Rules, due, of, stage
from tasks.storage.base import ImageObject


def unmark_returned(connection: Connection, staging: Staging, as_of: datetime | None) -> None:
    """Every run: what it has listed is there, whatever an earlier one could not see.

    `as_of` is when it was there, where that is not now: what was found gone after that moment stays so.
    """
    row = check_generation(connection, staging)
    staged = exists().where(*of(staging), work_item.c.key == image.c.key)
    gone = image.c.deleted_at.is_not(None) if as_of is None else image.c.deleted_at < as_of
    for keys in _pages(connection, image, [*_under(image, row), gone, staged]):
        _mark(connection, row.source_no, keys, None)


def mark_deleted(connection: Connection, staging: Staging, saw: Callable[[str], bool]) -> None:
    """Mark images that the listing would have shown and did not.

    `saw` tells of a key whether it would have been staged: what the pipeline's filter or its window leaves out says
    nothing. Images that another run recorded after this listing began are left alone, it could not see them.
    """
    row = check_generation(connection, staging)
    unstaged = ~exists().where(*of(staging), work_item.c.key == image.c.key)
    living = [image.c.deleted_at.is_(None), image.c.recorded_at < row.started_at]
    for keys in _pages(connection, image, [*_under(image, row), *living, unstaged]):
        _mark(connection, row.source_no, [key for key in keys if saw(key)], now())


def forget_gone(connection: Connection, staging: Staging, saw: Callable[[str], bool]) -> None:
    """Drop failures of objects that the listing would have shown and did not."""
    row = check_generation(connection, staging)
    unstaged = ~exists().where(*of(staging), work_item.c.key == failure.c.key)
    older = failure.c.last_failed_at < row.started_at
    for keys in _pages(connection, failure, [*_under(failure, row), older, unstaged]):
        gone = [key for key in keys if saw(key)]
        connection.execute(delete(failure).where(failure.c.source_no == row.source_no, failure.c.key.in_(gone)))


def _mark(connection: Connection, source_no: int, keys: Sequence[str], moment: datetime | None) -> None:
    here = (image.c.source_no == source_no, image.c.key.in_(keys))
    connection.execute(update(image).where(*here).values(deleted_at=moment))


def _under(table: Table, row: Row[Any]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The rows of a run's source under its prefix."""
    return table.c.source_no == row.source_no, func.substr(table.c.key, 1, len(row.prefix)) == row.prefix


def _pages(connection: Connection, table: Table, where: Sequence[ColumnElement[bool]]) -> Iterator[list[str]]:
    """Keys of a table, a page at a time; image rows are locked in the order in which commits write them."""
    after: str | None = None
    while True:
        beyond = [] if after is None else [table.c.key > after]
        query = select(table.c.key).where(*where, *beyond).order_by(table.c.key).limit(PAGE_ROWS)
        query = query.with_for_update() if table is image else query.distinct()
        page = [key for (key,) in connection.execute(query)]
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1]


def forget_mended(connection: Connection, staging: Staging, model_no: int) -> None:
    """Drop failures of objects whose present bytes have a prediction: an upload has mended them."""
    row = check_generation(connection, staging)
    cached = exists().where(*of(staging), work_item.c.key == failure.c.key, work_item.c.outcome == "cached")
    connection.execute(
        delete(failure).where(failure.c.source_no == row.source_no, failure.c.model_no == model_no, cached)
    )


def stage_due(connection: Connection, staging: Staging, rules: Rules, retried: Callable[[str], bool]) -> None:
    """Stage quarantined images that are due and were not listed, and count them as listed.

    A date template lists the days of its window only, and a failure may be due when its day is long past. `retried`
    tells of a key whether it belongs to the pipeline.
    """
    row = check_generation(connection, staging)
    mine = [*_under(failure, row), failure.c.model_no == rules.model_no, due(rules)]
    mine.append(~has_blocked_key(row.source_no, failure.c.key))
    unstaged = ~exists().where(*of(staging), work_item.c.key == failure.c.key)
    columns = ("key", "etag", "size", "last_modified")
    for keys in _pages(connection, failure, [*mine, unstaged]):
        wanted = [failure.c[name] for name in columns]
        query = select(*wanted).where(*mine, failure.c.key.in_([key for key in keys if retried(key)]))
        newest = {found.key: found for found in connection.execute(query.order_by(failure.c.last_failed_at))}
        items = [ImageObject(*(getattr(found, name) for name in columns)) for found in newest.values()]
        stage(connection, staging, items, ignored=0)


def read_candidates(engine: Engine, staging: Staging, number: int, avoid: Collection[str]) -> list[ImageObject]:
    """A few objects that should be readable, besides some: images that were read before, and rows of a shard.

    They are taken from both ends and the middle, because what cannot be read often lies together.
    """
    mine = [*of(staging), work_item.c.shard == number]
    columns = ("key", "etag", "size", "last_modified")
    with reading(engine) as connection:
        row = connection.execute(select(run).where(run.c.run_no == staging.run_no)).one()
        known = [*_under(image, row), image.c.deleted_at.is_(None), image.c.key.not_in(sorted(avoid))]
        images = select(*(image.c[name] for name in columns)).where(*known)
        found = list(connection.execute(images.order_by(image.c.key.desc()).limit(2)))
        found += connection.execute(images.order_by(image.c.key).limit(1))
        rows = select(*(work_item.c[name] for name in columns)).where(*mine, work_item.c.key.not_in(sorted(avoid)))
        count = connection.execute(select(func.count()).select_from(rows.subquery())).scalar_one()
        for position in sorted({count // 4, count // 2, 3 * count // 4, count - 1}):
            if 0 <= position < count:
                found += connection.execute(rows.order_by(work_item.c.key).offset(position).limit(1))
    return [ImageObject(*values) for values in found]
