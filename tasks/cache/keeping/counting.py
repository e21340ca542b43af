"""How many rows there are: counted one by one where that is quick, estimated where it is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from tasks.cache.database import is_sqlite

# A million rows are counted in a fraction of a second.
FEW = 1_000_000

# So many rows tell a share to within one percentage point or so.
SAMPLE = 10_000


@dataclass(frozen=True, slots=True)
class Number:
    """A number of rows; where it is not exact, it is an estimate."""

    rows: int
    exact: bool = True


def count(connection: Connection, query: Select[Any]) -> int:
    """The rows of a query, one by one."""
    return int(connection.execute(select(func.count()).select_from(query.order_by(None).subquery())).scalar_one())


def number_of(connection: Connection, query: Select[Any], few: int = FEW) -> Number:
    """The rows of a query over whole tables or partitions. SQLite keeps no estimate, so there they are counted."""
    if not is_sqlite(connection):
        expected = _planned(connection, query)
        if expected > few:
            return Number(expected, exact=False)
    return Number(count(connection, query))


def _planned(connection: Connection, query: Select[Any]) -> int:
    """What PostgreSQL's planner expects: the pages that a table has now, and the rows that ANALYZE found on one."""
    compiled = query.compile(connection.engine, schema_translate_map=None)
    # The query is the program's own, and its values stay parameters.
    told = connection.exec_driver_sql("EXPLAIN (FORMAT JSON) " + compiled.string, compiled.params).scalar_one()
    plan = json.loads(told) if isinstance(told, str) else told
    return int(plan[0]["Plan"]["Plan Rows"])


def share(connection: Connection, table: Table, rows: int, has: Any, *where: Any, sample: int = SAMPLE) -> float | None:
    """Of so many rows of a table with digests, the share that `has` holds of; None where the sample is empty.

    Digests are spread evenly, so that all those that begin alike are a fair sample, and lie side by side in the index.
    """
    # From the middle: digests that tests and people make up begin with zeros.
    width = min(1.0, sample / max(rows, 1))
    first, last = (_digest(0.5 - width / 2), _digest(0.5 + width / 2))
    here = [table.c.digest >= first, *([table.c.digest < last] if width < 1 else []), *where]
    found, those = connection.execute(
        select(func.count(), func.count().filter(has)).select_from(table).where(*here)
    ).one()
    return those / found if found else None


def _digest(place: float) -> bytes:
    """The beginning of a digest at a place between 0 and 1."""
    return min(int(place * 2**48), 2**48 - 1).to_bytes(6, "big")
