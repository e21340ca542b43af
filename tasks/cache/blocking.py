"""What was erased for good, and the lock that keeps erasing apart from commits.

A block holds what is needed to recognise it and nothing else: a key of a source, or a digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, delete, exists, func, select

from tasks.cache.database import is_sqlite
from tasks.cache.outcome import BLOCKED
from tasks.cache.runs import insert, now
from tasks.cache.schema import block, failure, work_item

CHUNK = 500

# Any constant does, as long as nobody else in this database uses it; migrations have another one.
_LOCK = 0x6166_7465_7201


def hold_off_erasing(connection: Connection) -> None:
    """Until this transaction ends nothing is erased: what it has looked up stays true. To be its first statement."""
    if not is_sqlite(connection):  # SQLite has one writer at a time.
        connection.execute(select(func.pg_advisory_xact_lock_shared(_LOCK)))


def hold_off_commits(connection: Connection) -> None:
    """Wait for commits and divisions that are under way; new ones wait until this transaction ends. Its first statement."""
    if not is_sqlite(connection):
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def is_anything_blocked(connection: Connection) -> bool:
    """Whether there is a block at all; mostly there is none."""
    return connection.execute(select(block.c.block_no).limit(1)).first() is not None


def blocked_digests(connection: Connection, digests: Collection[bytes]) -> set[bytes]:
    """Those of some digests that are blocked."""
    return {bytes(digest) for digest in _blocked(connection, block.c.digest, digests)}


def blocked_keys(connection: Connection, source_no: int, keys: Collection[str]) -> set[str]:
    """Those of some keys of a source that are blocked."""
    return set(_blocked(connection, block.c.key, keys, block.c.source_no == source_no))


def _blocked(
    connection: Connection, column: Column[Any], values: Collection[Any], *here: ColumnElement[bool]
) -> Iterator[Any]:
    if not values or not is_anything_blocked(connection):
        return
    ordered = sorted(values)
    for start in range(0, len(ordered), CHUNK):
        wanted = select(column).where(*here, column.in_(ordered[start : start + CHUNK]))
        yield from connection.execute(wanted).scalars()


def is_blocked(source_no: int) -> ColumnElement[bool]:
    """Of a staged row: its key is blocked, or its bytes in this state were found to be."""
    seen = exists().where(
        failure.c.source_no == source_no,
        failure.c.key == work_item.c.key,
        failure.c.etag == work_item.c.etag,
        failure.c.reason == BLOCKED,
    )
    return has_blocked_key(source_no, work_item.c.key) | seen


def has_blocked_key(source_no: int, key: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a key of this source is blocked."""
    return exists().where(block.c.source_no == source_no, block.c.key == key)


def block_keys(connection: Connection, source_nos: Collection[int], key: str) -> None:
    """No run takes this key of these sources again."""
    rows = [{"source_no": source_no, "key": key, "blocked_at": now()} for source_no in source_nos]
    connection.execute(insert(connection, block).on_conflict_do_nothing(), rows)


def block_digest(connection: Connection, digest: bytes) -> None:
    """No run predicts these bytes again, under whatever key."""
    connection.execute(insert(connection, block).values(digest=digest, blocked_at=now()).on_conflict_do_nothing())


def unblock_keys(connection: Connection, source_nos: Collection[int], key: str) -> int:
    """How many blocks were lifted."""
    lifted = delete(block).where(block.c.source_no.in_(source_nos), block.c.key == key)
    return connection.execute(lifted).rowcount


def unblock_digest(connection: Connection, digest: bytes) -> int:
    """How many blocks were lifted.

    An object that was passed over for its bytes has no digest in the quarantine, so all of those are looked at once more.
    """
    lifted = connection.execute(delete(block).where(block.c.digest == digest)).rowcount
    connection.execute(delete(failure).where(failure.c.reason == BLOCKED))
    return lifted
