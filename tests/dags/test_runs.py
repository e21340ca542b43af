"""Each kind of run, executed by Airflow itself: which window it takes, and what it leaves in the cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import write_pictures

DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def three_days(images: Path) -> Iterator[None]:
    """Two images modified on each of three days, and two under the prefix of each day."""
    for number in range(3):
        day = DAY + timedelta(days=number)
        for folder in (images, images / "raw" / day.strftime("%Y-%m-%d")):
            start = 10 * number + (100 if folder != images else 0)
            for key in write_pictures(folder, 2, start=start):
                moment = (day + timedelta(hours=6)).timestamp()
                os.utime(folder / key, (moment, moment))
    yield
    shutil.rmtree(images)
    images.mkdir()


def last_run() -> dict[str, Any]:
    from tasks.cache import contract
    from tasks.cache.database import connect

    return contract.runs(connect(os.environ["AFTERIMAGE_DATABASE"]), None, 1)[0]


def states(run: Any) -> dict[str, str]:
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}


def test_a_manual_run_looks_at_everything_and_ignores_its_interval(dags: dict[str, Any]) -> None:
    run = dags["predict_plain"].test(logical_date=DAY + timedelta(days=1))
    assert str(run.state) == "success"
    assert (last_run()["listed"], last_run()["predicted"]) == (12, 12)
    assert last_run()["run_type"] == "manual"
    assert last_run()["window_start"] is None


def test_a_manual_run_without_a_logical_date_looks_at_everything(dags: dict[str, Any]) -> None:
    run = dags["predict_plain"].test(logical_date=None)
    assert str(run.state) == "success"
    assert last_run()["listed"] == 12


def test_a_window_in_the_form_wins(dags: dict[str, Any]) -> None:
    window = {"window_start": "2026-03-02T00:00:00Z", "window_end": "2026-03-03T00:00:00Z"}
    run = dags["predict_plain"].test(logical_date=None, run_conf=window)
    assert str(run.state) == "success"
    assert last_run()["listed"] == 4


def test_a_second_run_skips_its_shards_and_is_green(dags: dict[str, Any]) -> None:
    dags["predict_plain"].test(logical_date=None)
    run = dags["predict_plain"].test(logical_date=None)
    assert str(run.state) == "success"
    assert states(run)["predict_and_upsert"] == "skipped"
    assert states(run)["publish_run"] == "success"
    assert (last_run()["cached"], last_run()["reads"]) == (12, 0)


def test_force_and_limit_reach_the_road(dags: dict[str, Any]) -> None:
    dags["predict_plain"].test(logical_date=None, run_conf={"limit": 5})
    assert (last_run()["predicted"], last_run()["deferred"]) == (5, 7)
    dags["predict_plain"].test(logical_date=None, run_conf={"force": True, "limit": None})
    assert last_run()["predicted"] == 12
    assert last_run()["force"] is True


def test_a_dry_run_is_green_skips_publishing_and_returns_its_counts(dags: dict[str, Any]) -> None:
    run = dags["predict_plain"].test(logical_date=None, run_conf={"dry_run": True})
    assert str(run.state) == "success"
    assert states(run)["publish_run"] == "skipped"
    counts = run.get_task_instance("publish_run").xcom_pull(task_ids="publish_run")
    assert (counts["state"], counts["listed"], counts["open"]) == ("dry_run", 12, 12)
    with pytest.raises(IndexError):
        last_run()


def test_a_form_with_wrong_values_is_refused(dags: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dags["predict_plain"].test(logical_date=None, run_conf={"limit": 0})


def test_a_failed_shard_fails_the_run_and_the_run_row(dags: dict[str, Any], images: Path) -> None:
    """A wrong model is found by a shard; nothing is quarantined, and the row says how much is open."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    weights = images.parent / "model" / "weights.safetensors"
    good = weights.read_bytes()
    save_file({name: np.full_like(value, np.nan) for name, value in load_file(weights).items()}, weights)
    try:
        dag = dags["predict_plain"]
        for task in dag.task_dict.values():
            _set_retries(task, 0)
        run = dag.test(logical_date=None)
    finally:
        weights.write_bytes(good)
    assert str(run.state) == "failed"
    assert states(run)["publish_run"] == "upstream_failed"
    assert states(run)["close_run"] == "success"
    assert (last_run()["state"], last_run()["open"]) == ("failed", 12)
    from tasks.cache import contract
    from tasks.cache.database import connect

    assert contract.failures(connect(os.environ["AFTERIMAGE_DATABASE"]), None, 10) == []


def _set_retries(task: Any, retries: int) -> None:
    if hasattr(task, "partial_kwargs"):
        task.partial_kwargs["retries"] = retries
    else:
        task.retries = retries


def test_a_long_shard_gives_up_its_slot_and_spends_no_retry(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import road

    predict, calls = road.predict_shard, []

    def impatient(shard: Any, *arguments: Any, stop_after: timedelta, **named: Any) -> dict[str, int]:
        calls.append(stop_after)
        return predict(replace(shard, commit_images=6), *arguments, stop_after=timedelta(0), **named)

    monkeypatch.setattr(road, "predict_shard", impatient)
    dag = dags["predict_plain"]
    for task in dag.task_dict.values():
        _set_retries(task, 0)
    run = dag.test(logical_date=None)
    assert str(run.state) == "success"
    assert len(calls) > 1
    assert set(calls) == {timedelta(minutes=30)}
    assert last_run()["predicted"] == 12


def test_connections_win_over_the_environment(
    dags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.db"
    monkeypatch.setenv("AIRFLOW_CONN_AFTERIMAGE_DATABASE", f"sqlite:///{other}")
    run = dags["predict_plain"].test(logical_date=None)
    assert str(run.state) == "success"
    assert other.exists()
    assert not (tmp_path / "cache.db").exists()


def test_the_connection_of_the_storage_wins_and_statements_end_with_their_task(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import road

    connection = {
        "conn_type": "aws",
        "login": "access",
        "password": "secret",
        "extra": {"endpoint_url": "http://store:1", "region_name": "eu-west-9"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AFTERIMAGE_STORAGE", json.dumps(connection))
    monkeypatch.setenv("AFTERIMAGE_S3_REGION", "us-east-1")
    open_cache, seen = road.open_cache, []

    def watched(settings: Any, timeout: timedelta | None = None) -> Any:
        seen.append((settings, timeout))
        return open_cache(settings, timeout)

    monkeypatch.setattr(road, "open_cache", watched)
    dags["predict_plain"].test(logical_date=None)
    for settings, _ in seen:
        found = (
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value(),
            settings.s3_endpoint,
            settings.s3_region,
        )
        assert found == ("access", "secret", "http://store:1", "eu-west-9")
    assert {timeout for _, timeout in seen if timeout} == {timedelta(hours=6), timedelta(hours=1)}
