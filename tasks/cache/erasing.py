"""Erasing an image: its rows in every table, in one transaction.

A later table of keys or of digests is one more name in _OF_KEYS or _OF_DIGESTS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, func, select, text, union, update

from tasks.cache import blocking
from tasks.cache.database import is_sqlite, repeated, writing
from tasks.cache.runs import FAILED, OUTCOMES, SUCCESS, count_outcomes
from tasks.cache.schema import (
    SCHEMA,
    failure,
    image,
    listing_range,
    prediction,
    review,
    run,
    shard,
    source,
    work_item,
)
from tasks.errors import ConfigurationError

_OF_KEYS = (image, failure)
_OF_DIGESTS = (prediction, review)

Object = tuple[int, str, str | None]
"""Number of the source, key, and etag; None stands for whatever state it is in."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to erase: a key, in one source or in all, or a digest."""

    key: str | None = None
    digest: bytes | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Erased:
    """{table: rows removed}, and how many other images have the same bytes, so that these keep their predictions.

    `digests` are those that no image has any more: what is kept of them elsewhere goes as well.
    """

    removed: Mapping[str, int]
    kept: int
    digests: frozenset[bytes] = frozenset()


@repeated
def erase(engine: Engine, target: Target, *, block: bool, dry_run: bool) -> Erased:
    """Remove all rows of an image; with `block` no run brings them back. A dry run counts and takes all back.

    Raises ConfigurationError where the source is not known.
    """
    with _owning(engine) as connection:
        if is_sqlite(connection):
            connection.exec_driver_sql("PRAGMA secure_delete = ON")  # Overwrites what is deleted with zeros.
        blocking.hold_off_commits(connection)
        with connection.begin_nested() as savepoint:
            sources = _sources(connection, target)
            erased = _erase(connection, target, sources)
            if block:
                _block(connection, target, sources)
            if dry_run:
                savepoint.rollback()
    return erased


def unblock(engine: Engine, target: Target) -> int:
    """Lift blocks, and return how many there were. Raises ConfigurationError where the source is not known."""
    with _owning(engine) as connection:
        blocking.hold_off_commits(connection)
        if target.digest is not None:
            return blocking.unblock_digest(connection, target.digest)
        assert target.key is not None
        return blocking.unblock_keys(connection, _sources(connection, target), target.key)


@contextmanager
def _owning(engine: Engine) -> Iterator[Connection]:
    """A transaction of the tables' owner: who writes every day may not remove predictions. Raises ConfigurationError."""
    with writing(engine) as connection:
        if not is_sqlite(connection):
            owner = connection.execute(
                text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass(:name)"),
                {"name": f"{SCHEMA}.prediction"},
            ).scalar_one()
            if not owner:
                raise ConfigurationError(
                    f"The role {engine.url.username} may not erase. Give the command again as the owner of the cache: "
                    "--database with the URL that ./afterimage migrate is run with."
                )
        yield connection


def clear_log(engine: Engine) -> bool:
    """Take what was erased out of SQLite's write-ahead log as well; False where somebody else is using it."""
    if not is_sqlite(engine):
        return True
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        busy, _, _ = cursor.fetchone() or (0, 0, 0)
        return not busy
    finally:
        connection.close()


def _sources(connection: Connection, target: Target) -> list[int]:
    known = {uri: number for number, uri in connection.execute(select(source.c.source_no, source.c.uri))}
    if target.source is None:
        return sorted(known.values())
    if target.source not in known:
        raise ConfigurationError(
            f"The cache knows no source {target.source!r}. It knows: {', '.join(sorted(known)) or 'none'}. Name one of them."
        )
    return [known[target.source]]


def _block(connection: Connection, target: Target, sources: Sequence[int]) -> None:
    if target.digest is not None:
        blocking.block_digest(connection, target.digest)
    elif target.key is not None and sources:
        blocking.block_keys(connection, sources, target.key)


def _erase(connection: Connection, target: Target, sources: Sequence[int]) -> Erased:
    removed = Counter({table.name: 0 for table in (*_OF_KEYS, *_OF_DIGESTS, work_item)})
    if target.digest is None:
        assert target.key is not None
        objects: list[Object] = [(number, target.key, None) for number in sources]
        digests = _digests(connection, target.key, sources)
    else:
        objects, digests = _objects(connection, target.digest), {target.digest}
    # The run's row comes before its staged rows, images come before failures: the order in which commits lock them.
    removed[work_item.name] += _unstage(connection, objects)
    for number, key, etag in objects:
        for table in _OF_KEYS:
            state = [] if etag is None else [table.c.etag == etag]
            gone = delete(table).where(table.c.source_no == number, table.c.key == key, *state)
            removed[table.name] += connection.execute(gone).rowcount
    having = dict(_images_having(connection, digests))
    for table in _OF_DIGESTS:
        gone = delete(table).where(table.c.digest.in_(digests - having.keys()))
        removed[table.name] += connection.execute(gone).rowcount
    return Erased(removed, sum(having.values()), frozenset(digests - having.keys()))


def _digests(connection: Connection, key: str, sources: Sequence[int]) -> set[bytes]:
    """The bytes that a key is known to have had."""
    found = [
        select(table.c.digest).where(table.c.source_no.in_(sources), table.c.key == key, table.c.digest.is_not(None))
        for table in _OF_KEYS
    ]
    return {bytes(digest) for (digest,) in connection.execute(union(*found))}


def _objects(connection: Connection, digest: bytes) -> list[Object]:
    """The objects that are known to have had these bytes, each in that state."""
    found = [select(table.c.source_no, table.c.key, table.c.etag).where(table.c.digest == digest) for table in _OF_KEYS]
    return [(number, key, etag) for number, key, etag in connection.execute(union(*found))]


def _images_having(connection: Connection, digests: Collection[bytes]) -> Mapping[bytes, int]:
    """{digest: images}, living and deleted, for those of the digests that there still are."""
    counted = select(image.c.digest, func.count()).where(image.c.digest.in_(digests)).group_by(image.c.digest)
    return {bytes(digest): count for digest, count in connection.execute(counted)}


def _unstage(connection: Connection, objects: Collection[Object]) -> int:
    """Take objects out of the staging of every run that is kept; how many rows that were.

    A run that has not succeeded yet never listed them: it can go on, and its outcomes add up. The counts of one that has
    are history, and stay.
    """
    failed: set[tuple[int, int]] = set()
    removed = 0
    for number, key, etag in objects:
        rows = _staged(connection, number, key, etag)
        for row in rows:
            _unstage_row(connection, row, key)
        removed += len(rows)
        failed |= {(row.run_no, row.generation) for row in rows if row.state == FAILED}
        _forget_frontier(connection, number, key)
        _forget_place(connection, number, key)
    for run_no, generation in sorted(failed):
        counts = count_outcomes(connection, work_item.c.run_no == run_no, work_item.c.generation == generation)
        counted: dict[str, Any] = {name: counts.get(name, 0) for name in (*OUTCOMES, "open")}
        counted["cached"] = run.c.dropped + counted["cached"]
        connection.execute(update(run).where(run.c.run_no == run_no).values(**counted))
    return removed


def _staged(
    connection: Connection, source_no: int, key: str, etag: str | None
) -> Sequence[Row[Any, Any, Any, Any, Any]]:
    """The staged rows of an object; their runs are locked until the transaction ends."""
    same = and_(work_item.c.run_no == run.c.run_no, work_item.c.generation == run.c.generation)
    state = [] if etag is None else [work_item.c.etag == etag]
    return connection.execute(
        select(run.c.run_no, run.c.generation, run.c.state, work_item.c.shard, work_item.c.outcome)
        .join(work_item, same)
        .where(run.c.source_no == source_no, work_item.c.key == key, *state)
        .order_by(run.c.run_no)
        .with_for_update(of=run)
    ).all()


def _unstage_row(connection: Connection, row: Row[Any, Any, Any, Any, Any], key: str) -> None:
    mine = (work_item.c.run_no == row.run_no, work_item.c.generation == row.generation)
    connection.execute(delete(work_item).where(*mine, work_item.c.key == key))
    part = (shard.c.run_no == row.run_no, shard.c.generation == row.generation, shard.c.shard == row.shard)
    done = 0 if row.outcome is None else 1
    connection.execute(update(shard).where(*part).values(expected=shard.c.expected - 1, done=shard.c.done - done))
    if row.state != SUCCESS:
        connection.execute(update(run).where(run.c.run_no == row.run_no).values(listed=run.c.listed - 1))


def _forget_frontier(connection: Connection, source_no: int, key: str) -> None:
    """Where a shard noted this key as the last one in hand, the one before it takes its place."""
    before = (
        select(func.max(work_item.c.key))
        .where(
            work_item.c.run_no == shard.c.run_no,
            work_item.c.generation == shard.c.generation,
            work_item.c.shard == shard.c.shard,
            work_item.c.key < key,
        )
        .scalar_subquery()
    )
    runs = select(run.c.run_no).where(run.c.source_no == source_no)
    connection.execute(update(shard).where(shard.c.frontier == key, shard.c.run_no.in_(runs)).values(frontier=before))


def _forget_place(connection: Connection, source_no: int, key: str) -> None:
    """Where a listing that is under way has come to this key, it has come to the one before it."""
    before = (
        select(func.max(work_item.c.key))
        .where(
            work_item.c.run_no == listing_range.c.run_no,
            work_item.c.generation == listing_range.c.generation,
            work_item.c.key > func.coalesce(listing_range.c.after_key, ""),
            work_item.c.key < key,
        )
        .scalar_subquery()
    )
    runs = select(run.c.run_no).where(run.c.source_no == source_no)
    here = (listing_range.c.last_key == key, listing_range.c.run_no.in_(runs))
    connection.execute(update(listing_range).where(*here).values(last_key=before))
