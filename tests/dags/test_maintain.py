"""The maintenance DAG: what is in quarantine and due is tried again, and what the installation does not keep goes."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.database_roles import as_owner
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


@pytest.fixture
def twice(rows: Any, dags: dict[str, Any], images: Path) -> Any:
    """Three images predicted, then one of them overwritten: its first prediction is an orphan."""

    def run() -> None:
        dags["predict_plain"].test(logical_date=None)
        (images / "00001.png").write_bytes(picture(77))
        dags["predict_plain"].test(logical_date=None)

    return run


def result(run: Any, task: str) -> Any:
    return run.get_task_instance(task).xcom_pull(task_ids=task)


def test_where_nothing_is_set_nothing_goes(dags: dict[str, Any], rows: Any, twice: Any) -> None:
    twice()
    run = dags["maintain_cache"].test(logical_date=DAY.replace(day=3))
    assert str(run.state) == "success"
    assert {states(run)[f"{task}--1"] for task in ("count_removable", "prune")} == {"skipped"}
    assert rows("SELECT count(*) AS n FROM prediction") == [{"n": 4}]


def test_what_the_installation_does_not_keep_goes_and_is_counted_before_and_after(
    dags: dict[str, Any], rows: Any, twice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice()
    monkeypatch.setenv("AFTERIMAGE_PRUNE_ORPHANS", "true")
    monkeypatch.setenv("AFTERIMAGE_KEEP_VANISHED_DAYS", "30")
    monkeypatch.setenv("AFTERIMAGE_KEEP_PREDICTIONS_DAYS", "30")
    tried = dags["maintain_cache"].test(logical_date=DAY.replace(day=4), run_conf={"dry_run": True})
    assert str(tried.state) == "success"
    assert states(tried)["prune--1"] == states(tried)["pipelines--1"] == "skipped"
    looked = result(tried, "count_removable")
    assert [(step["what"], step["found"]) for step in looked["steps"]] == [
        ("vanished images", 0),
        ("old predictions", 0),
        ("orphaned predictions", 1),
    ]
    assert rows("SELECT count(*) AS n FROM prediction") == [{"n": 4}]

    run = dags["maintain_cache"].test(logical_date=DAY.replace(day=5), run_conf={"dry_run": False})
    assert str(run.state) == "success"
    assert result(run, "prune")["tables"][1] == {
        "table": "prediction",
        "before": 4,
        "removed": 1,
        "others": 0,
        "after": 3,
    }
    assert rows("SELECT count(*) AS n FROM prediction") == [{"n": 3}]


def test_in_postgresql_the_owners_connection_prunes_and_without_it_the_error_says_so(
    dags: dict[str, Any], rows: Any, twice: Any, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("AFTERIMAGE_DATABASE", postgres_url)
    monkeypatch.setenv("AFTERIMAGE_PRUNE_ORPHANS", "true")
    twice()
    refused = dags["maintain_cache"].test(logical_date=DAY.replace(day=6))
    assert str(refused.state) == "failed"
    printed = "".join(capfd.readouterr())
    assert "may not prune" in printed
    assert "Connection afterimage_owner" in printed
    monkeypatch.setenv("AIRFLOW_CONN_AFTERIMAGE_OWNER", as_owner(postgres_url))
    run = dags["maintain_cache"].test(logical_date=DAY.replace(day=7))
    assert str(run.state) == "success"
    assert result(run, "prune")["steps"] == [
        {"what": "orphaned predictions", "table": "prediction", "found": 1, "removed": 1}
    ]
