"""What can be taken out as a whole or page by page: predictions, failures, runs and reviews of a pipeline.

Each is a query with named and typed columns, in an order that says where a page goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    literal,
    select,
    tuple_,
)

from tasks.cache.database import reading, reading_one_moment
from tasks.cache.keeping import counting
from tasks.cache.naming import labels_of, stage_of, top_k
from tasks.cache.pages import gallery
from tasks.cache.pages.filters import key_range
from tasks.cache.pages.gallery import Question
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import SCHEMA, Key, Moment

Kind = Literal["text", "integer", "number", "flag", "moment", "json", "top_k"]

PAGE_ROWS = 1_000

_TYPES: dict[str, Any] = {
    "text": Text,
    "integer": BigInteger,
    "number": Double,
    "flag": Boolean,
    "moment": Moment,
    "json": JSON,
}

FAILURES: dict[str, Kind] = {
    "source": "text",
    "key": "text",
    "etag": "text",
    "digest": "text",
    "reason": "text",
    "message": "text",
    "attempts": "integer",
    "permanent": "flag",
    "next_retry_at": "moment",
    "first_failed_at": "moment",
    "last_failed_at": "moment",
    "decoder": "text",
    "model_id": "text",
    "model_name": "text",
    "model_version": "text",
}

RUNS: dict[str, Kind] = {
    "pipeline": "text",
    "dag_id": "text",
    "run_id": "text",
    "run_type": "text",
    "state": "text",
    "message": "text",
    "source": "text",
    "prefix": "text",
    "model_id": "text",
    "model_name": "text",
    "model_version": "text",
    "window_start": "moment",
    "window_end": "moment",
    "force": "flag",
    **dict.fromkeys(
        ("listed", "ignored", "cached", "known_bad", "deferred", "reused", "predicted", "failed", "vanished", "open"),
        "integer",
    ),
    "reads": "integer",
    "forward_passes": "integer",
    "seconds": "number",
    "images_per_second": "number",
    "worker_seconds": "number",
    "started_at": "moment",
    "finished_at": "moment",
    "held_back_by": "text",
    "drift": "number",
    "stages": "json",
}

REVIEWS: dict[str, Kind] = {
    "pipeline": "text",
    "source": "text",
    "key": "text",
    "etag": "text",
    "digest": "text",
    "label": "text",
    "reviewer": "text",
    "reviewed_at": "moment",
    "model_id": "text",
    "model_name": "text",
    "model_version": "text",
    "predicted_label": "text",
    "predicted_score": "number",
    "deleted_at": "moment",
}

PREDICTIONS: dict[str, Kind] = {
    "source": "text",
    "key": "text",
    "etag": "text",
    "size": "integer",
    "last_modified": "moment",
    "digest": "text",
    "label": "text",
    "label_index": "integer",
    "score": "number",
    "margin": "number",
    "entropy": "number",
    "top_k": "top_k",
    "model_id": "text",
    "model_name": "text",
    "model_version": "text",
    "cascade_stage": "integer",
    "predicted_at": "moment",
    "deleted_at": "moment",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A query, the columns that its rows have in the end, and its order. `constants` are columns that are alike in all rows;
    `model_no` is the model of rows that are predictions."""

    kinds: Mapping[str, Kind]
    query: Select[Any]
    order: tuple[ColumnElement[Any], ...]
    newest_first: bool
    constants: Mapping[str, Any]
    model_no: int | None = None

    def row(self, found: Row[Any], labels: Mapping[int, str]) -> dict[str, Any]:
        """A row as plain values: digests in hex, JSON as lists and objects, moments in UTC; `labels` are those of its model."""
        values = dict(
            zip(found._fields, found, strict=True)
        )  # Much faster than its mapping, and exports have many rows.
        if self.model_no is not None:
            packed = values["top_k"]
            best = top_k(values["label_index"], values["score"], packed, labels)
            values |= {"top_k": best, "cascade_stage": stage_of(packed)}
        plain = {name: values[name] if name in values else self.constants[name] for name in self.kinds}
        for name, kind in self.kinds.items():
            value = plain[name]
            if isinstance(value, bytes):
                plain[name] = value.hex()
            elif kind == "flag" and value is not None:
                plain[name] = bool(value)
        return plain


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows of a listing at one moment, and how many there are."""

    kinds: Mapping[str, Kind]
    count: int
    rows: Iterator[dict[str, Any]]


def predictions(question: Question, sqlite: bool) -> Listing:
    """Those that a filter asks for, in the order of keys."""
    model = question.model
    names = {"model_id": model.model_id, "model_name": model.name, "model_version": model.version}
    constants = {"source": question.scope.source, **names}
    query = gallery.matching(question, sqlite).order_by(None)
    return Listing(PREDICTIONS, query, (gallery.COLUMNS[0],), False, constants, model.model_no)


def failures(scope: PipelineScope) -> Listing:
    """Of the images of a pipeline, and of its models."""
    view = _view("v_failure", FAILURES)
    models = [model.model_id for model in scope.models]
    query = select(view).where(
        view.c.source == scope.source, view.c.model_id.in_(models), *key_range(view.c.key, (scope.prefix,))
    )
    return Listing(FAILURES, query, (view.c.key, view.c.etag, view.c.model_id), False, {})


def runs(pipeline: str) -> Listing:
    """Of a pipeline, the newest first."""
    view = _view("v_run", RUNS)
    query = select(view).where(view.c.pipeline == pipeline)
    return Listing(RUNS, query, (view.c.started_at, view.c.dag_id, view.c.run_id), True, {})


def reviews(pipeline: str) -> Listing:
    """Of a pipeline: a row for each image that has the reviewed bytes."""
    view = _view("v_review", REVIEWS)
    query = select(view).where(view.c.pipeline == pipeline)
    return Listing(REVIEWS, query, (view.c.key,), False, {})


def count(engine: Engine, listing: Listing) -> int:
    """How many rows there are, counted one by one."""
    with reading(engine) as connection:
        return counting.count(connection, listing.query)


@contextmanager
def snapshot(engine: Engine, listing: Listing) -> Iterator[Snapshot]:
    """The rows as they come, and their number before the first: both of one moment, whatever is written meanwhile."""
    with reading_one_moment(engine) as connection:
        number, labels = counting.count(connection, listing.query), _labels(connection, listing)
        query = listing.query.order_by(*_ordered(listing))
        found = connection.execution_options(yield_per=PAGE_ROWS).execute(query)
        try:
            yield Snapshot(listing.kinds, number, (listing.row(row, labels) for row in found))
        finally:
            found.close()


def page(engine: Engine, listing: Listing, after: Sequence[Any] | None, limit: int) -> tuple[list[dict[str, Any]], Any]:
    """The next rows after these values of the columns of the order, and the values for the next page: None at the end.

    Raises ValueError for values that are not such.
    """
    query = listing.query.order_by(*_ordered(listing)).limit(limit + 1)
    if after is not None:
        place = tuple_(*_bound(listing, after))
        here = tuple_(*listing.order)
        query = query.where(here < place if listing.newest_first else here > place)
    with reading(engine) as connection:
        labels = _labels(connection, listing)
        rows = [listing.row(row, labels) for row in connection.execute(query)]
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], [_written(last[part.key]) for part in listing.order]  # type: ignore[index]


def written(engine: Engine, listing: Listing, rows: Iterable[Row[Any]]) -> list[dict[str, Any]]:
    """Rows of the listing's query that somebody else has read."""
    with reading(engine) as connection:
        labels = _labels(connection, listing)
    return [listing.row(row, labels) for row in rows]


def _bound(listing: Listing, after: Sequence[Any]) -> list[ColumnElement[Any]]:
    if len(after) != len(listing.order) or not all(isinstance(value, str) and "\0" not in value for value in after):
        raise ValueError(f"{after!r} is no place between rows")
    return [
        literal(datetime.fromisoformat(value) if isinstance(part.type, Moment) else value, part.type)
        for part, value in zip(listing.order, after, strict=True)
    ]


def _written(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _ordered(listing: Listing) -> list[ColumnElement[Any]]:
    return [part.desc() if listing.newest_first else part for part in listing.order]


def _labels(connection: Connection, listing: Listing) -> Mapping[int, str]:
    return {} if listing.model_no is None else labels_of(connection, listing.model_no)


def _view(name: str, kinds: Mapping[str, Kind]) -> Table:
    """A view of docs/sql.md, with the types of its columns."""
    columns: list[Column[Any]] = [Column(part, Key if part == "key" else _TYPES[kind]) for part, kind in kinds.items()]
    return Table(name, MetaData(schema=SCHEMA), *columns)
