"""Whoever may trigger a DAG decides what is looked at, and never where: not the store, the database, the model or the code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import write_pictures

ELSEWHERE = "http://127.0.0.1:1"

CONF = {
    "s3_endpoint": ELSEWHERE,
    "endpoint_url": ELSEWHERE,
    "AFTERIMAGE_S3_ENDPOINT": ELSEWHERE,
    "images": "/etc",
    "model": "torchvision:resnet18?weights=random",
    "database": "sqlite:////tmp/elsewhere.db",
    "AFTERIMAGE_DATABASE": "sqlite:////tmp/elsewhere.db",
    "pipelines": "/tmp/elsewhere.toml",
    "home": "/tmp/elsewhere",
    "runtime": "tensorrt",
    "include": ["*"],
    "max_failure_rate": 1.0,
}


@pytest.fixture
def twelve(images: Path) -> Iterator[Path]:
    write_pictures(images, 12)
    yield images
    shutil.rmtree(images)
    images.mkdir()


def test_conf_changes_no_store_no_database_and_no_model(
    dags: dict[str, Any], twelve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import road
    from tasks.cache import contract
    from tasks.cache.database import connect

    seen: list[Any] = []
    open_cache = road.open_cache

    def watched(settings: Any, *given: Any) -> Any:
        seen.append(settings)
        return open_cache(settings, *given)

    monkeypatch.setattr(road, "open_cache", watched)
    run = dags["predict_plain"].test(logical_date=None, run_conf=CONF)
    assert str(run.state) == "success"
    assert run.conf.items() >= CONF.items(), "the run was asked for all of it"
    (row,) = contract.runs(connect(os.environ["AFTERIMAGE_DATABASE"]), None, 10)
    assert (row["source"], row["listed"], row["predicted"]) == (f"file://{twelve}", 12, 12)
    assert row["model_name"] == "small"
    assert seen
    assert {settings.s3_endpoint for settings in seen} == {None}
    assert {settings.database_url for settings in seen} == {os.environ["AFTERIMAGE_DATABASE"]}
    assert ELSEWHERE not in json.dumps(row, default=str)
    assert not Path("/tmp/elsewhere.db").exists()


@pytest.mark.parametrize(
    "conf",
    [
        {"limit": "1; DROP TABLE image"},
        {"force": "yes"},
        {"window_start": "'; DROP TABLE image; --"},
        {"limit": -1},
        {"dry_run": ["--"]},
    ],
)
def test_a_param_of_another_kind_is_refused_before_anything_runs(dags: dict[str, Any], conf: dict[str, Any]) -> None:
    dag = dags["predict_plain"]
    with pytest.raises(
        Exception, match=r"(?i)invalid input for param|not valid|is not of type|does not match|less than"
    ):
        dag.test(logical_date=None, run_conf=conf)
    assert not Path(os.environ["AFTERIMAGE_DATABASE"].removeprefix("sqlite:///")).exists()
