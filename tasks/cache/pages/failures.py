"""The quarantine of one pipeline: by reason, and image by image."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, and_, func, or_, select

from tasks.cache.database import reading
from tasks.cache.quarantine import under
from tasks.cache.schema import failure, model, run, source


@dataclass(frozen=True, slots=True)
class FailureScope:
    """Whose failures a pipeline's are: what its newest run that chose a model looked at, and that model's.

    A pipeline whose runs have all failed has one too.
    """

    source_no: int
    source: str
    prefix: str
    model_no: int
    model: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why images failed, and since when. `next_retry_at` is the earliest of those `passing`, which may pass by themselves."""

    reason: str
    images: int
    passing: int
    oldest: datetime
    newest: datetime
    next_retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Failed:
    """An image in quarantine; without `next_retry_at` it is permanent, and `digest` is None where nothing was read."""

    key: str
    etag: str
    size: int
    reason: str
    message: str
    attempts: int
    next_retry_at: datetime | None
    first_failed_at: datetime
    last_failed_at: datetime
    digest: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of the list ended: the next one begins behind it."""

    last_failed_at: datetime
    key: str


def failure_scope(engine: Engine, pipeline: str) -> FailureScope | None:
    """The scope of a pipeline's failures; None before its first run that chose a model."""
    query = (
        select(run.c.source_no, source.c.uri, run.c.prefix, run.c.model_no, model.c.name, model.c.version)
        .join(source, source.c.source_no == run.c.source_no)
        .join(model, model.c.model_no == run.c.model_no)
        .where(run.c.pipeline == pipeline)
        .order_by(run.c.run_no.desc())
        .limit(1)
    )
    with reading(engine) as connection:
        found = connection.execute(query).one_or_none()
    return None if found is None else FailureScope(*found[:4], f"{found.name} {found.version}")


def reasons(engine: Engine, scope: FailureScope) -> list[Reason]:
    """The pipeline's failures by reason, the most frequent first. It reads the index of the quarantine, which is small."""
    images = func.count().label("images")
    retry = failure.c.next_retry_at
    query = (
        select(
            failure.c.reason,
            images,
            func.count(retry),
            func.min(failure.c.first_failed_at),
            func.max(failure.c.last_failed_at),
            func.min(retry),
        )
        .where(*_of(scope))
        .group_by(failure.c.reason)
        .order_by(images.desc(), failure.c.reason)
    )
    with reading(engine) as connection:
        return [Reason(*row) for row in connection.execute(query)]


def failed_images(
    engine: Engine, scope: FailureScope, most: int, reason: str | None, prefix: str, after: Place | None
) -> list[Failed]:
    """The newest first, of a reason and under a prefix if these are given; those behind `after`."""
    columns = [failure.c[name] for name in Failed.__dataclass_fields__]
    wanted = [*_of(scope), *under(failure.c.key, prefix)]
    if reason:
        wanted.append(failure.c.reason == reason)
    if after is not None:
        wanted.append(_behind(after))
    query = select(*columns).where(*wanted).order_by(failure.c.last_failed_at.desc(), failure.c.key).limit(most)
    with reading(engine) as connection:
        return [_failed(row) for row in connection.execute(query)]


def _of(scope: FailureScope) -> list[ColumnElement[bool]]:
    here = [failure.c.source_no == scope.source_no, failure.c.model_no == scope.model_no]
    return [*here, *under(failure.c.key, scope.prefix)]


def _behind(place: Place) -> ColumnElement[bool]:
    moment = failure.c.last_failed_at
    return or_(moment < place.last_failed_at, and_(moment == place.last_failed_at, failure.c.key > place.key))


def _failed(row: Row[Any]) -> Failed:
    values = dict(row._mapping)
    digest = values.pop("digest")
    return Failed(**values, digest=None if digest is None else bytes(digest).hex())
