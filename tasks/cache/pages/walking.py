"""A walk over the predictions of a model, the least certain first, in steps that cost a bounded time each.

The index prediction_label holds the predictions of each label in the order of their margins; the labels are merged here.
Nobody knows beforehand how many predictions have to be looked at until some are found that nobody has reviewed, or that
another model contradicts. So a walk ends after BUDGET_SECONDS at the latest, and tells where it can be taken up again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, bindparam, func, literal, select, true

from tasks.cache.database import is_sqlite
from tasks.cache.pages.filters import label_indexes
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import image, prediction

BUDGET_SECONDS = 0.2

# A small group first: most pages are full after it.
FIRST_GROUP, LATER_GROUP = 100, 400
# Predictions that are taken from the index at once, and at least so many of each label.
CANDIDATES, OF_EACH_LABEL = 2_000, 4
# And at once of those that have the same margin.
OF_ONE_MARGIN = 400

T = TypeVar("T")

# From an output of the model, or a column or parameter that holds one, to a query.
NextOf = Callable[[Any], Select[Any]]


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
    """Which predictions a walk passes: of a model, of these of its outputs, between two margins, both of which belong to it.

    `label` is what the outputs are called where it is not all of them.
    """

    model_no: int
    outputs: tuple[int, ...]
    label: str | None = None
    margin_from: float | None = None
    margin_to: float | None = None


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a walk has found in order; `after`, from where it goes on, is None at the end of the way."""

    rows: Sequence[T]
    after: Position | None
    looked: int


def way_of(
    connection: Connection,
    model_no: int,
    label: str | None = None,
    margin_to: float | None = None,
    margin_from: float | None = None,
) -> Way:
    """The way over all predictions of a model, or over those of a label."""
    outputs = tuple(connection.execute(label_indexes(model_no, label)).scalars())
    return Way(model_no, outputs, label, margin_from, margin_to)


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
    looked = 0
    for group, is_last in groups(connection, way, after):
        rows = look([position.digest for position in group])
        for position in group:
            looked, after = looked + 1, position
            if position.digest in rows:
                found.append((position, rows[position.digest]))
            if len(found) > limit:  # One more, which tells that it goes on.
                return Found([row for _, row in found[:limit]], found[limit - 1][0], looked)
        if time.monotonic() > ends and not is_last:
            return Found([row for _, row in found], after, looked)
    return Found([row for _, row in found], None, looked)


def groups(
    connection: Connection, way: Way, after: Position | None, *, inclusive: bool = False
) -> Iterator[tuple[Sequence[Position], bool]]:
    """The positions of a way in groups, and of each whether it is the last one; `inclusive` begins with `after` itself."""
    more = True
    while more:
        candidates, more = _least_certain(connection, way, after, inclusive=inclusive)
        starts = [0, *range(FIRST_GROUP, len(candidates), LATER_GROUP)]
        for start, end in zip(starts, [*starts[1:], len(candidates)], strict=True):
            if candidates:
                yield candidates[start:end], not more and end == len(candidates)
        after, inclusive = (candidates[-1], False) if candidates else (after, inclusive)


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


def _least_certain(
    connection: Connection, way: Way, after: Position | None, *, inclusive: bool
) -> tuple[list[Position], bool]:
    """The next predictions of all labels together, and whether there are more: some of each label, merged.

    The index knows the order of margins, and not that of the digests which have the same one: there may be millions of those, of
    a model that is sure of itself. So a margin that is begun is gone through by its digests, of all labels at once. Of the next
    ones only those are taken that are whole; where a label has too many of the very next one, that one is begun.
    """
    if not way.outputs:
        return [], False
    begun = [] if after is None else _of_margin(connection, way, after, inclusive=inclusive)
    if len(begun) == OF_ONE_MARGIN:
        return begun, True
    each = max(OF_EACH_LABEL, CANDIDATES // len(way.outputs))
    merged: list[Position] = []
    ends: list[Position] = []
    for found in _by_output(connection, way, _beyond(way, after, each + 1)).values():
        if len(found) > each:
            ends.append(Position(max(found).margin, b""))
        merged += found
    merged.sort()
    if not ends:
        return begun + merged, False
    found = begun + merged[: bisect_left(merged, min(ends))]
    return found or _of_margin(connection, way, min(ends), inclusive=True), True


def _of_margin(connection: Connection, way: Way, start: Position, *, inclusive: bool) -> list[Position]:
    """The next ones that have the margin of a position, in the order of digests; at most OF_ONE_MARGIN."""
    digest = literal(start.digest, prediction.c.digest.type)
    query = _of_way(way).where(
        _inner.c.margin == literal(start.margin, prediction.c.margin.type),
        _inner.c.digest >= digest if inclusive else _inner.c.digest > digest,
        _inner.c.label_index.in_(label_indexes(way.model_no, way.label)),
    )
    rows = connection.execute(query.order_by(_inner.c.digest).limit(OF_ONE_MARGIN))
    return [Position(row.margin, bytes(row.digest)) for row in rows]


def _by_output(connection: Connection, way: Way, next_of: NextOf) -> dict[int, list[Position]]:
    """What the query gives for each of the outputs."""
    by_output: dict[int, list[Position]] = {}
    if is_sqlite(connection) or len(way.outputs) == 1:
        # SQLite has no LATERAL, and no way to a server that each question would have to take.
        query = next_of(bindparam("wanted", type_=prediction.c.label_index.type))
        rows = [row for output in way.outputs for row in connection.execute(query, {"wanted": output})]
    else:
        names = label_indexes(way.model_no, way.label).subquery("names")
        lateral = next_of(names.c.label_index).lateral("ranges")
        rows = list(connection.execute(select(lateral).select_from(names.join(lateral, true()))))
    for row in rows:
        by_output.setdefault(row.label_index, []).append(Position(row.margin, bytes(row.digest)))
    return by_output


_inner = prediction.alias("candidate")


def _beyond(way: Way, after: Position | None, each: int) -> NextOf:
    """A function that gives the query for the next `each` of an output that have a larger margin, in no order of digests."""
    query = _of_way(way).order_by(_inner.c.margin).limit(each)
    if after is not None:
        query = query.where(_inner.c.margin > literal(after.margin, prediction.c.margin.type))
    return lambda output: query.where(_inner.c.label_index == output)


def _of_way(way: Way) -> Select[Any]:
    query = select(_inner.c.label_index, _inner.c.margin, _inner.c.digest).where(_inner.c.model_no == way.model_no)
    if way.margin_from is not None:
        query = query.where(_inner.c.margin >= way.margin_from)
    if way.margin_to is not None:
        query = query.where(_inner.c.margin <= way.margin_to)
    return query
