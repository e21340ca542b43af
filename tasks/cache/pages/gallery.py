"""Pages of predictions, in the order of keys or the least certain first.

A page goes on where the last one ended, by an index, and counts nothing before it. Rare images are looked for in pieces until
the page is full or its time is spent: then the page says how far it came, and the next one goes on there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, and_, func, not_, select

from tasks.cache.database import is_sqlite, reading
from tasks.cache.naming import label_of
from tasks.cache.pages.filters import Filter, of_image, of_prediction, of_scope
from tasks.cache.pages.scope import ModelName, PipelineScope
from tasks.cache.pages.walking import Position, groups, way_of
from tasks.cache.schema import image, model_label, prediction

PATIENCE = timedelta(milliseconds=200)

# Images that are looked at in one statement: few at first, because most pages are full after them.
_PIECES = (200, 1_000, 4_000)
COLUMNS = (
    image.c.key,
    image.c.etag,
    image.c.size,
    image.c.last_modified,
    image.c.deleted_at,
    image.c.digest,
    label_of().label("label"),
    prediction.c.model_no,
    prediction.c.label_index,
    prediction.c.score,
    prediction.c.margin,
    prediction.c.entropy,
    prediction.c.top_k,
    prediction.c.predicted_at,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place among the least certain: after this key of these bytes; without a key, after all that have the bytes."""

    margin: float
    digest: bytes
    key: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A page. `after` is where the next one begins, None where there is none.

    `looked_at` counts what the page has looked at: images in the order of keys, else predictions. `stopped` says that the page
    ended before it was full, because its time was spent.
    """

    rows: list[Row[Any]]
    after: Any
    looked_at: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a pipeline's images, and how much of it at once."""

    scope: PipelineScope
    model: ModelName
    asked: Filter
    limit: int = 48
    patience: timedelta = PATIENCE


def by_key(engine: Engine, question: Question, after: str | None = None) -> Found:
    """In the order of keys, after this one."""
    with reading(engine) as connection:
        return _walk_keys(connection, question, after)


def by_margin(engine: Engine, question: Question, after: Place | None = None) -> Found:
    """The least certain first, after this place; of one margin in the order of digests, of one digest in that of keys."""
    with reading(engine) as connection:
        return _walk_margins(connection, question, after)


def matching(question: Question, sqlite: bool) -> Select[Any]:
    """Every row at once, in the order of keys: for exports, which have the time."""
    return _joined(question, sqlite).where(*of_scope(question.scope, question.asked)).order_by(image.c.key)


def labels_of(engine: Engine, model_no: int, limit: int = 2_000) -> list[str]:
    """What the outputs of a model are called, for a list to choose from."""
    query = select(model_label.c.label).where(model_label.c.model_no == model_no).distinct()
    with reading(engine) as connection:
        return list(connection.execute(query.order_by(model_label.c.label).limit(limit)).scalars())


def _joined(question: Question, sqlite: bool) -> Select[Any]:
    """Images with their predictions, without the range of keys."""
    return (
        select(*COLUMNS)
        .join_from(image, prediction, prediction.c.digest == image.c.digest)
        .where(*of_image(question.asked, sqlite), *of_prediction(question.asked, question.model.model_no))
    )


def _walk_keys(connection: Connection, question: Question, after: str | None) -> Found:
    deadline = time.monotonic() + question.patience.total_seconds()
    rows: list[Row[Any]] = []
    wanted = _joined(question, is_sqlite(connection)).order_by(image.c.key)
    looked_at, attempt = 0, 0
    while True:
        piece = _PIECES[min(attempt, len(_PIECES) - 1)]
        last, seen = _end_of_piece(connection, question, after, piece)
        looked_at, attempt = looked_at + seen, attempt + 1
        if last is None:
            return Found(rows, None, looked_at, False)
        missing = question.limit + 1 - len(rows)
        within = wanted.where(*_beyond(question, after), image.c.key <= last).limit(missing)
        rows += connection.execute(within).all()
        if len(rows) > question.limit:
            return Found(rows[:-1], rows[-2].key, looked_at, False)
        if seen < piece:
            return Found(rows, None, looked_at, False)
        after = last
        if time.monotonic() >= deadline:
            return Found(rows, after, looked_at, True)


def _beyond(question: Question, after: str | None) -> list[Any]:
    scope = of_scope(question.scope, question.asked)
    return scope if after is None else [*scope, image.c.key > after]


def _end_of_piece(connection: Connection, question: Question, after: str | None, count: int) -> tuple[str | None, int]:
    """The last of the next `count` keys, and how many there are."""
    keys = select(image.c.key).where(*_beyond(question, after)).order_by(image.c.key).limit(count).subquery()
    last, seen = connection.execute(select(func.max(keys.c.key), func.count()).select_from(keys)).one()
    return last, seen


def _walk_margins(connection: Connection, question: Question, after: Place | None) -> Found:
    deadline = time.monotonic() + question.patience.total_seconds()
    rows: list[Row[Any]] = []
    asked = question.asked
    way = way_of(connection, question.model.model_no, asked.label, asked.margin_to, asked.margin_from)
    start = None if after is None else Position(after.margin, after.digest)
    looked_at = 0
    # After a key, its bytes may have others.
    for group, is_last in groups(connection, way, start, inclusive=after is not None and after.key is not None):
        rows += _with_images(connection, question, group, after, question.limit + 1 - len(rows))
        looked_at += len(group)
        if len(rows) > question.limit:
            last = rows[-2]
            return Found(rows[:-1], Place(last.margin, last.digest, last.key), looked_at, False)
        after = Place(group[-1].margin, group[-1].digest, None)
        if time.monotonic() >= deadline and not is_last:
            return Found(rows, after, looked_at, True)
    return Found(rows, None, looked_at, False)


def _with_images(
    connection: Connection, question: Question, group: Sequence[Position], after: Place | None, limit: int
) -> Sequence[Row[Any]]:
    """The images of these predictions, in the order of their margins."""
    query = (
        _joined(question, is_sqlite(connection))
        .where(*of_scope(question.scope, question.asked), image.c.digest.in_([position.digest for position in group]))
        .order_by(prediction.c.margin, image.c.digest, image.c.key)
        .limit(limit)
    )
    if after is not None and after.key is not None:
        query = query.where(not_(and_(image.c.digest == after.digest, image.c.key <= after.key)))
    return connection.execute(query).all()
