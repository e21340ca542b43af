"""Reads through the views: what the command line shows is what users' own SQL sees (docs/sql.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, text

from tasks.cache.database import is_sqlite, reading
from tasks.cache.schema import SCHEMA

PAGE_ROWS = 1_000

_FAILURES = "last_failed_at DESC, key"
_RUNS = "started_at DESC"
_REVIEWS = "SELECT * FROM {view} WHERE pipeline = :pipeline ORDER BY key"
_JSON_COLUMNS = ("top_k", "stage_seconds", "stages")


def predictions_of(engine: Engine, key: str) -> list[dict[str, Any]]:
    """All models' predictions for a key, newest first."""
    return _rows(engine, "SELECT * FROM {view} WHERE key = :key ORDER BY predicted_at DESC", "v_prediction", key=key)


def current_predictions(engine: Engine, pipeline: str) -> list[dict[str, Any]]:
    """The predictions of a pipeline's current model, in key order."""
    query = "SELECT * FROM {view} WHERE pipeline = :pipeline ORDER BY key"
    return _rows(engine, query, "v_current_prediction", pipeline=pipeline)


def failures_of(engine: Engine, key: str) -> list[dict[str, Any]]:
    """The quarantine's rows for a key, newest first."""
    return _rows(engine, "SELECT * FROM {view} WHERE key = :key ORDER BY last_failed_at DESC", "v_failure", key=key)


def failures(engine: Engine, reason: str | None, limit: int) -> list[dict[str, Any]]:
    """The quarantine, newest first."""
    wanted = {} if reason is None else {"reason": reason}
    return _rows(engine, _newest(_FAILURES, wanted, limit), "v_failure", **wanted, limit=limit)


def failures_streamed(engine: Engine, reason: str | None, limit: int | None) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the quarantine's rows, newest first; all of them without a limit."""
    wanted = {} if reason is None else {"reason": reason}
    return _streamed(engine, _newest(_FAILURES, wanted, limit), "v_failure", **wanted, limit=limit)


def failure_counts(engine: Engine) -> dict[str, int]:
    """{reason: images} of the quarantine."""
    rows = _rows(engine, "SELECT reason, count(*) AS images FROM {view} GROUP BY reason ORDER BY 2 DESC", "v_failure")
    return {row["reason"]: row["images"] for row in rows}


def reviews(engine: Engine, pipeline: str) -> list[dict[str, Any]]:
    """What persons say is on the images of a pipeline, in key order."""
    return _rows(engine, _REVIEWS, "v_review", pipeline=pipeline)


def reviews_streamed(engine: Engine, pipeline: str) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the reviews of a pipeline's images, in key order."""
    return _streamed(engine, _REVIEWS, "v_review", pipeline=pipeline)


def runs(engine: Engine, pipeline: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest runs, of one pipeline or of all."""
    wanted = {} if pipeline is None else {"pipeline": pipeline}
    return _rows(engine, _newest(_RUNS, wanted, limit), "v_run", **wanted, limit=limit)


def runs_streamed(engine: Engine, pipeline: str | None, limit: int | None) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the runs, newest first; all of them without a limit."""
    wanted = {} if pipeline is None else {"pipeline": pipeline}
    return _streamed(engine, _newest(_RUNS, wanted, limit), "v_run", **wanted, limit=limit)


def run_of(engine: Engine, dag_id: str, run_id: str) -> dict[str, Any] | None:
    """One run, None where the cache does not know it."""
    query = "SELECT * FROM {view} WHERE dag_id = :dag_id AND run_id = :run_id"
    return next(iter(_rows(engine, query, "v_run", dag_id=dag_id, run_id=run_id)), None)


def _newest(order: str, wanted: Mapping[str, str], limit: int | None) -> str:
    conditions = "".join(f"WHERE {column} = :{column} " for column in wanted)
    return f"SELECT * FROM {{view}} {conditions}ORDER BY {order}{'' if limit is None else ' LIMIT :limit'}"


def _rows(engine: Engine, query: str, view: str, **values: Any) -> list[dict[str, Any]]:
    names, *rows = _streamed(engine, query, view, **values)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _streamed(engine: Engine, query: str, view: str, **values: Any) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the rows as they come."""
    with reading(engine) as connection:
        statement = text(query.format(view=_name(connection, view)))
        bound = {name: value for name, value in values.items() if value is not None}
        found = connection.execution_options(yield_per=PAGE_ROWS).execute(statement, bound)
        yield tuple(found.keys())
        for row in found.mappings():
            yield tuple(_plain(row).values())


def _name(connection: Connection, view: str) -> str:
    return view if is_sqlite(connection) else f"{SCHEMA}.{view}"


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON columns as Python values, flags as bool: SQLite keeps both as text and numbers."""
    plain = dict(row)
    for column in _JSON_COLUMNS:
        if isinstance(plain.get(column), str):
            plain[column] = json.loads(plain[column])
    for column in ("permanent", "force"):
        if column in plain:
            plain[column] = bool(plain[column])
    return plain
