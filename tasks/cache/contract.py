"""Reads through the views: what the command line shows is what users' own SQL sees (docs/sql.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, text

from tasks.cache.database import is_sqlite, reading
from tasks.cache.schema import SCHEMA

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
    where = "" if reason is None else "WHERE reason = :reason "
    values = {"limit": limit} if reason is None else {"limit": limit, "reason": reason}
    order = "ORDER BY last_failed_at DESC, key LIMIT :limit"
    return _rows(engine, f"SELECT * FROM {{view}} {where}{order}", "v_failure", **values)


def failure_counts(engine: Engine) -> dict[str, int]:
    """{reason: images} of the quarantine."""
    rows = _rows(engine, "SELECT reason, count(*) AS images FROM {view} GROUP BY reason ORDER BY 2 DESC", "v_failure")
    return {row["reason"]: row["images"] for row in rows}


def runs(engine: Engine, pipeline: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest runs, of one pipeline or of all."""
    where = "" if pipeline is None else "WHERE pipeline = :pipeline "
    values = {"limit": limit} if pipeline is None else {"limit": limit, "pipeline": pipeline}
    return _rows(engine, f"SELECT * FROM {{view}} {where}ORDER BY started_at DESC LIMIT :limit", "v_run", **values)


def run_of(engine: Engine, dag_id: str, run_id: str) -> dict[str, Any] | None:
    """One run, None where the cache does not know it."""
    query = "SELECT * FROM {view} WHERE dag_id = :dag_id AND run_id = :run_id"
    return next(iter(_rows(engine, query, "v_run", dag_id=dag_id, run_id=run_id)), None)


def _rows(engine: Engine, query: str, view: str, **values: Any) -> list[dict[str, Any]]:
    with reading(engine) as connection:
        found = connection.execute(text(query.format(view=_name(connection, view))), values)
        return [_plain(row) for row in found.mappings()]


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
