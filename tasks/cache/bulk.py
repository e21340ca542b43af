"""Many rows in one statement: COPY into a temporary table and a sorted INSERT in PostgreSQL, executemany in SQLite.

Rows are written in the order of the primary key. Two transactions that write the same rows then wait for each other at the first
one, in whatever order their callers have them, and never each for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    CursorResult,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    select,
)

from tasks.cache.database import is_sqlite
from tasks.cache.runs import insert
from tasks.cache.schema import Moment, Single

if TYPE_CHECKING:
    from collections.abc import Iterator

Row = tuple[Any, ...]

# Names of PostgreSQL's types: with them psycopg writes binary rows, at a third of the cost of text.
_TYPES = {
    BigInteger: "int8",
    Boolean: "bool",
    Double: "float8",
    Integer: "int4",
    LargeBinary: "bytea",
    Moment: "timestamptz",
    Single: "float4",
    SmallInteger: "int2",
    Text: "text",
}


def write(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Sequence[Row],
    decide: Callable[[Any], Any] = lambda statement: statement,
) -> CursorResult[Any] | None:
    """Insert rows, whose values are those of these columns; `decide` adds ON CONFLICT and RETURNING. None without rows.

    No two of the rows may have the same primary key.
    """
    if not rows:
        return None
    places = [list(names).index(column.name) for column in table.primary_key]
    if is_sqlite(connection):
        ordered = sorted(rows, key=lambda row: tuple(row[place] for place in places))
        statement = decide(insert(connection, table))
        return connection.execute(statement, [dict(zip(names, row, strict=True)) for row in ordered])
    with staged(connection, table, names, rows) as new:
        query = select(*(new.c[name] for name in names)).order_by(*(new.c[names[place]] for place in places))
        return connection.execute(decide(insert(connection, table).from_select(list(names), query)))


@contextmanager
def staged(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Row]) -> Iterator[Table]:
    """A temporary table in PostgreSQL that holds these rows, until the end of the block."""
    columns = [table.c[name] for name in names]
    new = Table(f"new_{table.name}", MetaData(), *(Column(column.name, column.type) for column in columns))
    listed = ", ".join(names)
    like = f"SELECT {listed} FROM {table.fullname} WITH NO DATA"  # noqa: S608  # names of schema.py
    connection.exec_driver_sql(f"CREATE TEMP TABLE {new.name} ON COMMIT DROP AS {like}")
    copy(connection, f"pg_temp.{new.name}", columns, rows)
    yield new
    connection.exec_driver_sql(f"DROP TABLE pg_temp.{new.name}")


def copy(connection: Connection, target: str, columns: Sequence[Column[Any]], rows: Sequence[Row]) -> None:
    """COPY rows into a table of PostgreSQL."""
    driver = connection.connection.driver_connection
    assert driver is not None
    listed = ", ".join(column.name for column in columns)
    with driver.cursor() as cursor, cursor.copy(f"COPY {target} ({listed}) FROM STDIN (FORMAT BINARY)") as stream:
        stream.set_types([_type_of(column) for column in columns])
        for row in rows:
            stream.write_row(row)


def _type_of(column: Column[Any]) -> str:
    return next(_TYPES[kind] for kind in type(column.type).__mro__ if kind in _TYPES)
