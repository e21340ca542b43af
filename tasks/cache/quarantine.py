"""The quarantine: images that could not be predicted, when they are tried again, and who asks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, select, tuple_, update

from tasks.cache.database import reading, repeated, writing
from tasks.cache.outcome import BLOCKED, Finished
from tasks.cache.runs import insert, now
from tasks.cache.schema import failure, source

CHUNK = 500
MESSAGE_CHARACTERS = 2000

# Code points that no text holds by itself.
_SURROGATES, _AFTER_SURROGATES = 0xD800, 0xE000

# A failure that may pass is tried again after 1, 2, 4, ... hours, at most a week.
FIRST_RETRY = timedelta(hours=1)
LONGEST_RETRY = timedelta(days=7)


def quarantine(
    connection: Connection, source_no: int, model_no: int, decoder: str, run_no: int, finished: Sequence[Finished]
) -> None:
    """Write the failures, and drop those that a success or a newer upload under the key has made obsolete.

    `finished` is in the order of its keys, in which two runs wait for each other.
    """
    here = (failure.c.source_no == source_no, failure.c.model_no == model_no)
    for start in range(0, len(finished), CHUNK):
        chunk = finished[start : start + CHUNK]
        failed = [item for item in chunk if item.failed is not None and item.image is not None]
        obsolete = delete(failure).where(*here, failure.c.key.in_([item.key for item in chunk]))
        kept = [(item.image.key, item.image.etag) for item in failed if item.image is not None]
        if kept:
            obsolete = obsolete.where(tuple_(failure.c.key, failure.c.etag).not_in(kept))
        connection.execute(obsolete)
        if failed:
            before = _attempts(connection, here, kept)
            common = {"source_no": source_no, "model_no": model_no, "decoder": decoder, "run_no": run_no}
            _upsert(connection, [{**common, **_row(item, before)} for item in failed])


def _attempts(
    connection: Connection, here: tuple[ColumnElement[bool], ...], kept: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """{(key, etag): attempts} of those that failed before."""
    query = select(failure.c.key, failure.c.etag, failure.c.attempts).where(
        *here, tuple_(failure.c.key, failure.c.etag).in_(kept)
    )
    return {(row.key, row.etag): row.attempts for row in connection.execute(query)}


def _row(item: Finished, before: dict[tuple[str, str], int]) -> dict[str, Any]:
    found, why, moment = item.image, item.failed, now()
    assert found is not None
    assert why is not None
    attempts = before.get((found.key, found.etag), 0) + 1
    return {
        "key": found.key,
        "etag": found.etag,
        "size": found.size,
        "last_modified": found.last_modified,
        "digest": item.digest,
        "reason": why.reason,
        # Libraries quote bytes of a broken file, and a database takes neither NUL nor half a character.
        "message": why.message.replace("\0", "\\0").encode(errors="backslashreplace").decode()[:MESSAGE_CHARACTERS],
        "attempts": attempts,
        "next_retry_at": None if why.permanent else moment + retry_delay(attempts),
        "first_failed_at": moment,
        "last_failed_at": moment,
    }


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    statement = insert(connection, failure)
    known = ("source_no", "key", "etag", "model_no")
    fresh = {name: statement.excluded[name] for name in rows[0] if name not in (*known, "first_failed_at")}
    connection.execute(statement.on_conflict_do_update(index_elements=known, set_=fresh), rows)


def retry_delay(attempts: int) -> timedelta:
    """How long a failure that may pass rests after so many attempts."""
    return LONGEST_RETRY if attempts > 10 else min(LONGEST_RETRY, FIRST_RETRY * 2 ** (attempts - 1))


@repeated
def mark_due(
    engine: Engine,
    reason: str | None,
    key: str | None,
    source_uri: str | None = None,
    prefix: str = "",
    model_no: int | None = None,
) -> int:
    """Have failures tried again by the next run over them, at once; how many there are.

    Those of a reason or a key, permanent ones too; without either, those that may pass. What is blocked stays out. Who may
    change one pipeline only gives its source, prefix and model.
    """
    chosen: list[ColumnElement[bool]] = [failure.c.next_retry_at.is_not(None)] if reason is None and key is None else []
    chosen += [failure.c.reason == reason] if reason is not None else []
    chosen += [failure.c.key == key] if key is not None else []
    chosen += under(failure.c.key, prefix)
    chosen += [failure.c.model_no == model_no] if model_no is not None else []
    if source_uri is not None:
        chosen.append(
            failure.c.source_no == select(source.c.source_no).where(source.c.uri == source_uri).scalar_subquery()
        )
    chosen.append(failure.c.reason != BLOCKED)
    with writing(engine) as connection:
        return connection.execute(update(failure).where(*chosen).values(next_retry_at=now())).rowcount


def under(key: ColumnElement[str], prefix: str) -> list[ColumnElement[bool]]:
    """The keys that begin with a prefix: a range of keys, so that an index can tell, and the letters themselves."""
    if not prefix:
        return []
    return [key >= prefix, func.substr(key, 1, len(prefix)) == prefix, *_before_the_next(key, prefix)]


def _before_the_next(key: ColumnElement[str], prefix: str) -> list[ColumnElement[bool]]:
    """Below the first string that does not begin with the prefix any more; keys are in the order of their code points."""
    last = ord(prefix[-1]) + 1
    if last > sys.maxunicode:
        return []
    last = _AFTER_SURROGATES if _SURROGATES <= last < _AFTER_SURROGATES else last
    return [key < prefix[:-1] + chr(last)]


def count_due(engine: Engine, source_uri: str) -> int:
    """How many failures of a source may be tried now, for whatever model."""
    query = select(func.count()).select_from(failure.join(source, source.c.source_no == failure.c.source_no))
    with reading(engine) as connection:
        due = query.where(source.c.uri == source_uri, failure.c.next_retry_at <= now())
        return int(connection.execute(due).scalar_one())
