"""The maintenance DAG: what is in quarantine and due is tried again, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import picture, write_pictures

DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def rows(images: Path, dags: dict[str, Any]) -> Any:
    """Reads the cache. Of four images one is damaged, and is mended behind the pipeline's back."""
    from sqlalchemy import create_engine, text

    shutil.rmtree(images)
    write_pictures(images, 3)
    (images / "damaged.png").write_bytes(picture(9)[:100])
    engine = create_engine(os.environ["AFTERIMAGE_DATABASE"])

    def read(query: str) -> list[dict[str, Any]]:
        with engine.begin() as connection:
            found = connection.execute(text(query))
            return [dict(row) for row in found.mappings()] if found.returns_rows else []

    yield read
    shutil.rmtree(images)
    images.mkdir()


def states(run: Any) -> dict[str, str]:
    return {f"{one.task_id}-{one.map_index}": str(one.state) for one in run.get_task_instances()}


def test_failures_that_are_due_are_tried_again_once_a_day(dags: dict[str, Any], rows: Any) -> None:
    dags["predict_plain"].test(logical_date=None)
    assert rows("SELECT reason, attempts FROM failure") == [{"reason": "truncated", "attempts": 1}]
    quiet = dags["maintain_cache"].test(logical_date=DAY)
    assert str(quiet.state) == "success"
    assert states(quiet)["retry_failures-0"] == "skipped"

    rows("UPDATE failure SET next_retry_at = '2000-01-01 00:00:00.000000'")
    busy = dags["maintain_cache"].test(logical_date=DAY.replace(day=2))
    assert str(busy.state) == "success"
    assert rows("SELECT attempts, next_retry_at FROM failure") == [{"attempts": 2, "next_retry_at": None}]
    last = rows("SELECT * FROM run ORDER BY run_no DESC LIMIT 1")[0]
    assert (last["run_type"], last["state"], last["listed"], last["failed"]) == ("retry", "success", 1, 1)
    assert last["run_id"].endswith(" manual"), "the first pipeline whose it is"
