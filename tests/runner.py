"""Run a pipeline in a test as the command line would, and look at the rows that it left."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tasks import road
from tasks.cache.database import connect, is_sqlite, reading
from tasks.cache.runs import OUTCOMES, RunKey
from tasks.cache.schema import to_single
from tasks.pipelines import Pipeline
from tasks.plan import RunRequest, ShardDescriptor
from tasks.settings import Settings, load_settings
from tasks.window import EVERYTHING, Window


class Runner:
    """One pipeline over one cache; keyword arguments of `pipeline` are keys of its table."""

    def __init__(self, home: Path, database_url: str, settings: dict[str, Any] | None = None, **pipeline: Any) -> None:
        self.settings: Settings = load_settings(
            home=home, database=database_url, **{"device": "cpu", **(settings or {})}
        )
        self.pipeline = Pipeline(**{"name": "test", "max_failure_rate": 1.0, **pipeline})

    def request(self, window: Window = EVERYTHING, **asked: Any) -> RunRequest:
        """A run of its own; `asked` may hold key, run_type, force, limit and dry_run."""
        key = asked.pop("key", None) or RunKey("cli", str(uuid.uuid4()))
        run_type = asked.pop("run_type", "manual")
        return RunRequest(key, run_type, self.pipeline, self.pipeline.name, window, **asked)

    def run(self, window: Window = EVERYTHING, **asked: Any) -> dict[str, Any]:
        """The whole road; the counts of the run."""
        return road.run(self.request(window, **asked), self.settings)

    def plan(self, **asked: Any) -> tuple[RunRequest, list[ShardDescriptor]]:
        """List and deduplicate, as the first two tasks do; the request and its shards."""
        request = self.request(**asked)
        road.list_images(request, self.settings)
        return request, road.deduplicate(request, self.settings)

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Rows of a query over the cache, without a schema: `SELECT ... FROM v_prediction`."""
        engine = connect(self.settings.database_url)
        with reading(engine) as connection:
            if not is_sqlite(engine):
                connection.execute(text("SET search_path TO afterimage"))
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def predictions(self) -> dict[str, tuple[str, str, str, str, float]]:
        """{key: (etag, digest, model_id, label, score)} of every living image."""
        rows = self.rows("SELECT * FROM v_prediction WHERE deleted_at IS NULL")
        # In single precision before they are rounded: PostgreSQL tells the shortest number that means the same, SQLite all of it.
        scores = [round(to_single(row["score"]), 5) for row in rows]
        return {
            row["key"]: (row["etag"], row["digest"], row["model_id"], row["label"], score)
            for row, score in zip(rows, scores, strict=True)
        }


def outcomes(counts: dict[str, Any]) -> dict[str, int]:
    """The outcomes of a run that are not 0."""
    return {name: counts[name] for name in (*OUTCOMES, "open") if counts[name]}
