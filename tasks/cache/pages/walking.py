"""A walk over the predictions of a model, the least certain first, in steps that cost a bounded time each.

The index prediction_label holds the predictions of each label in the order of their margins; the labels are merged here.
Nobody knows beforehand how many predictions have to be looked at until some are found that nobody has reviewed, or that
another model contradicts. So a walk ends after BUDGET_SECONDS at the latest, and tells where it can be taken up again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, func, select, true

from tasks.cache.database import is_sqlite
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import image, model_label, prediction

BUDGET_SECONDS = 0.2

FIRST_STEP, LATER_STEP = 64, 500
# Of one label in one step: few where there are many labels, and enough that each step comes on.
LEAST_OF_LABEL, OF_ALL_LABELS = 20, 5_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The place of a prediction in the walk."""

    margin: float
    digest: bytes

    def __str__(self) -> str:
        return f"{self.margin!r}:{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of str(). Raises ValueError."""
        margin, _, digest = text.partition(":")
        return cls(float(margin), bytes.fromhex(digest))


@dataclass(frozen=True, slots=True)
class Way:
    """Which predictions a walk passes: of a model, perhaps of one label only, up to a margin. `labels` is how many outputs
    of the model these are."""

    model_no: int
    labels: int
    label: str | None = None
    margin_to: float | None = None


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a walk has found in order; `after`, from where it goes on, is None at the end of the way."""

    rows: Sequence[T]
    after: Position | None
    looked: int


def way_of(connection: Connection, model_no: int, label: str | None = None, margin_to: float | None = None) -> Way:
    """The way over all predictions of a model, or over those of a label."""
    outputs = select(func.count()).select_from(model_label).where(*_outputs(model_no, label))
    return Way(model_no, connection.execute(outputs).scalar_one(), label, margin_to)


def gather(
    connection: Connection,
    way: Way,
    after: Position | None,
    limit: int,
    look: Callable[[list[bytes]], Mapping[bytes, T]],
) -> Found[T]:
    """Go until `limit` rows are found, the way is over, or the time is up. `look` gives rows for those digests that count."""
    ends = time.monotonic() + BUDGET_SECONDS
    found: list[tuple[Position, T]] = []
    looked, most = 0, FIRST_STEP
    while True:
        positions, is_over = _step(connection, way, after, most)
        rows = look([position.digest for position in positions]) if positions else {}
        for position in positions:
            looked, after = looked + 1, position
            if position.digest in rows:
                found.append((position, rows[position.digest]))
            if len(found) > limit:  # One more, which tells that it goes on.
                return Found([row for _, row in found[:limit]], found[limit - 1][0], looked)
        if is_over or time.monotonic() > ends:
            return Found([row for _, row in found], None if is_over else after, looked)
        most = LATER_STEP


def living(scope: PipelineScope) -> tuple[ColumnElement[bool], ...]:
    """The images of a pipeline that are there; for a query that names a digest."""
    under = func.substr(image.c.key, 1, len(scope.prefix)) == scope.prefix
    # As an expression, or PostgreSQL may read the index over the keys of the whole source for it.
    return image.c.source_no + 0 == scope.source_no, under, image.c.deleted_at.is_(None)


def first_key(scope: PipelineScope, digest: ColumnElement[bytes]) -> ScalarSelect[str]:
    """The first key of the pipeline that has these bytes; null where none has."""
    # As an expression, or PostgreSQL may look for the least key through all keys of the source.
    least = func.min(image.c.key.concat(""))
    return select(least).where(image.c.digest == digest, *living(scope)).correlate_except(image).scalar_subquery()


def _step(connection: Connection, way: Way, after: Position | None, most: int) -> tuple[list[Position], bool]:
    """The next positions, and whether these were the last. A label that has more than were asked for ends a step."""
    if not way.labels:
        return [], True
    of_label = min(most, max(LEAST_OF_LABEL, OF_ALL_LABELS // way.labels))
    rows = connection.execute(_merged(connection, way, after, of_label, most)).all()
    passed: list[Position] = []
    seen = Counter[int]()
    for row in rows:
        passed.append(Position(row.margin, bytes(row.digest)))
        seen[row.label_index] += 1
        if seen[row.label_index] == of_label:
            return passed, False
    return passed, len(rows) < most


def _merged(connection: Connection, way: Way, after: Position | None, of_label: int, most: int) -> Select[Any]:
    """The first `of_label` of each label, in one order."""
    mine = prediction.alias()
    conditions = [mine.c.model_no == way.model_no, mine.c.label_index == model_label.c.label_index]
    if after is not None:
        beyond = (mine.c.margin > after.margin) | (mine.c.digest > after.digest)
        conditions += [mine.c.margin >= after.margin, beyond]
    if way.margin_to is not None:
        conditions.append(mine.c.margin <= way.margin_to)
    order = (mine.c.margin, mine.c.digest)
    outputs = _outputs(way.model_no, way.label)
    if is_sqlite(connection):  # It has no LATERAL, and finds the rows of a list of digests by the primary key.
        heads = select(mine.c.digest).where(*conditions).order_by(*order).limit(of_label).correlate(model_label)
        joined = (prediction.c.model_no == way.model_no) & prediction.c.digest.in_(heads.scalar_subquery())
        columns = (prediction.c.margin, prediction.c.digest, prediction.c.label_index)
        query: Select[Any] = select(*columns).select_from(model_label.join(prediction, joined)).where(*outputs)
        return query.order_by(prediction.c.margin, prediction.c.digest).limit(most)
    columns = (mine.c.margin, mine.c.digest, mine.c.label_index)
    of_each = select(*columns).where(*conditions).order_by(*order).limit(of_label).correlate(model_label).lateral()
    query = select(of_each).select_from(model_label.join(of_each, true())).where(*outputs)
    return query.order_by(of_each.c.margin, of_each.c.digest).limit(most)


def _outputs(model_no: int, label: str | None) -> list[ColumnElement[bool]]:
    named = [] if label is None else [model_label.c.label == label]
    return [model_label.c.model_no == model_no, *named]
