"""Whether a pipeline may show the picture of a digest."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Engine, func, select

from tasks.cache.database import reading
from tasks.cache.schema import failure, image, pipeline, run

MOST_TWINS = 10_000
"""Images with the same bytes that are looked through for one under the pipeline's prefix."""


def is_of_pipeline(engine: Engine, name: str, digest: bytes, key: str | None = None) -> bool:
    """Whether an image under the source and prefix of a pipeline has these bytes, or had; with a key, or the failure of that key.

    A pipeline that has not succeeded yet is where its newest run looked.
    """
    with reading(engine) as connection:
        place = _place(connection, name)
        if place is None:
            return False
        source_no, prefix = place
        twins = (
            select(image.c.source_no, image.c.key).where(image.c.digest == digest).limit(MOST_TWINS).subquery("twins")
        )
        here = select(twins.c.key).where(twins.c.source_no == source_no, _starts(twins.c.key, prefix)).limit(1)
        if connection.execute(here).first() is not None:
            return True
        is_a_key = key is not None and key.startswith(prefix) and "\0" not in key
        return key is not None and is_a_key and _failed(connection, source_no, key, digest)


def _place(connection: Connection, name: str) -> tuple[int, str] | None:
    found = connection.execute(
        select(pipeline.c.source_no, pipeline.c.prefix).where(pipeline.c.name == name)
    ).one_or_none()
    if found is None:
        newest = select(run.c.source_no, run.c.prefix).where(run.c.pipeline == name)
        found = connection.execute(newest.order_by(run.c.run_no.desc()).limit(1)).one_or_none()
    return None if found is None else (found.source_no, found.prefix)


def _starts(key: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """Letter by letter: LIKE does not tell large from small letters in SQLite."""
    return func.substr(key, 1, len(prefix)) == prefix


def _failed(connection: Connection, source_no: int, key: str, digest: bytes) -> bool:
    mine = (failure.c.source_no == source_no, failure.c.key == key, failure.c.digest == digest)
    return connection.execute(select(failure.c.key).where(*mine).limit(1)).first() is not None
