"""What the cache holds, and what it takes on disk: quick on a large one, where it says that it is about so much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, exists, func, select, text

from tasks.cache.database import is_sqlite, reading
from tasks.cache.keeping.counting import FEW, Number, count, number_of, share
from tasks.cache.schema import SCHEMA, Moment, failure, image, metadata, model, pipeline, prediction

# dbstat reads every page of the file.
DBSTAT_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with its partitions and indexes; `bytes` is None where the database does not tell."""

    table: str
    number: Number
    bytes: int | None


@dataclass(frozen=True, slots=True)
class ModelShare:
    """The predictions of a model, and the pipelines whose current one it is."""

    model_id: str
    name: str
    version: str
    number: Number
    pipelines: tuple[str, ...]
    oldest: datetime | None
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class Stats:
    """`bytes` is all that the cache takes; an orphan is a prediction whose digest no image has."""

    bytes: int
    tables: Sequence[TableSize]
    models: Sequence[ModelShare]
    images: Number
    deleted: Number
    orphans: Number
    failures: Mapping[str, int]


def stats(engine: Engine, few: int = FEW) -> Stats:
    """Look at the whole cache; above so many rows in a table it is estimated."""
    with reading(engine) as connection:
        total, sizes = _bytes(connection)
        numbers = {name: number_of(connection, select(table), few) for name, table in _tables().items()}
        deleted = _those(connection, image, numbers["image"], image.c.deleted_at.is_not(None), few)
        there = Number(max(0, numbers["image"].rows - deleted.rows), deleted.exact and numbers["image"].exact)
        models = _models(connection, numbers["prediction"], few)
        return Stats(
            total,
            [TableSize(name, number, sizes.get(name)) for name, number in numbers.items()],
            models,
            there,
            deleted,
            _orphans(connection, models, few),
            _failures(connection),
        )


def _tables() -> dict[str, Table]:
    return {table.name: table for table in sorted(metadata.tables.values(), key=lambda table: table.name)}


def _bytes(connection: Connection) -> tuple[int, dict[str, int]]:
    """All, and {table: bytes} of those of which it is known."""
    if is_sqlite(connection):
        total = int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        total *= int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())
        return total, _pages(connection) if total <= DBSTAT_BYTES else {}
    # A partition counts for the table that it is a part of.
    query = text(
        "SELECT parent.relname, sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c "
        "JOIN pg_class parent ON parent.oid = coalesce(pg_partition_root(c.oid), c.oid) "
        "WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p') GROUP BY 1"
    )
    sizes = {name: int(size) for name, size in connection.execute(query, {"schema": SCHEMA})}
    return sum(sizes.values()), sizes


def _pages(connection: Connection) -> dict[str, int]:
    """SQLite tells by table where it was built to, as most are."""
    built = connection.exec_driver_sql("SELECT count(*) FROM pragma_module_list WHERE name = 'dbstat'").scalar_one()
    if not built:
        return {}
    query = (
        "SELECT s.tbl_name, sum(d.pgsize) FROM dbstat d JOIN sqlite_master s ON s.name = d.name "
        "WHERE d.aggregate = TRUE GROUP BY 1"
    )
    return {name: int(size) for name, size in connection.exec_driver_sql(query)}


def _those(connection: Connection, table: Table, all_rows: Number, has: Any, few: int) -> Number:
    """The rows of which something holds."""
    if all_rows.exact and all_rows.rows <= few:
        return Number(count(connection, select(table).where(has)))
    return Number(round(all_rows.rows * (share(connection, table, all_rows.rows, has) or 0)), exact=False)


def _models(connection: Connection, predictions: Number, few: int) -> list[ModelShare]:
    current: dict[int, list[str]] = {}
    for name, number in connection.execute(select(pipeline.c.name, pipeline.c.model_no).order_by(pipeline.c.name)):
        current.setdefault(number, []).append(name)
    times = _times(connection) if predictions.exact and predictions.rows <= few else None
    found = []
    for row in connection.execute(select(model).order_by(model.c.model_no)).all():
        number = number_of(connection, select(prediction.c.digest).where(prediction.c.model_no == row.model_no), few)
        oldest, newest = _span(connection, row.model_no) if times is None else times.get(row.model_no, (None, None))
        names = tuple(current.get(row.model_no, ()))
        found.append(ModelShare(row.model_id, row.name, row.version, number, names, oldest, newest))
    return found


def _times(connection: Connection) -> dict[int, tuple[datetime | None, datetime | None]]:
    moment = prediction.c.predicted_at
    query = select(prediction.c.model_no, func.min(moment), func.max(moment)).group_by(prediction.c.model_no)
    return {number: (oldest, newest) for number, oldest, newest in connection.execute(query)}


def _span(connection: Connection, model_no: int) -> tuple[datetime | None, datetime | None]:
    """About the oldest and the newest: no index has them, so it is what ANALYZE saw; none without it."""
    if is_sqlite(connection):
        return None, None
    query = text(
        "SELECT min(moment) AS oldest, max(moment) AS newest FROM pg_stats, "
        "unnest(coalesce(histogram_bounds::text::timestamptz[], '{}') || coalesce(most_common_vals::text::timestamptz[], '{}')) "
        "AS moment WHERE schemaname = :schema AND tablename = 'prediction_' || :number AND attname = 'predicted_at'"
    ).columns(oldest=Moment, newest=Moment)
    oldest, newest = connection.execute(query, {"schema": SCHEMA, "number": str(model_no)}).one()
    return oldest, newest


def _orphans(connection: Connection, models: Sequence[ModelShare], few: int) -> Number:
    """Counted model by model, or estimated from a sample of each."""
    total, exact = 0, True
    numbers = {row.model_id: row.model_no for row in connection.execute(select(model.c.model_id, model.c.model_no))}
    orphaned = ~exists().where(image.c.digest == prediction.c.digest)
    for one in models:
        mine = prediction.c.model_no == numbers[one.model_id]
        if one.number.exact and one.number.rows <= few:
            total += count(connection, select(prediction.c.digest).where(mine, orphaned))
        else:
            total += round(one.number.rows * (share(connection, prediction, one.number.rows, orphaned, mine) or 0))
            exact = False
    return Number(total, exact)


def _failures(connection: Connection) -> dict[str, int]:
    """{reason: images}; there are few of them."""
    query = select(failure.c.reason, func.count().label("images")).group_by(failure.c.reason)
    return {row.reason: row.images for row in connection.execute(query.order_by(failure.c.reason))}
