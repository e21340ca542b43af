"""A pipeline with engine = "ray": one task for all shards, and the same rows, executed by Airflow itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import HOME, load_dags
from tests.pictures import write_pictures
from tests.ray_nodes import Nodes, ray_nodes

pytestmark = pytest.mark.alone

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(1, HOME / "node") as found:
        yield found


@pytest.fixture
def dag(dags: dict[str, Any], images: Path, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline `plain` as it would be with engine = "ray", in three shards."""
    file = tmp_path / "pipelines.toml"
    table = (HOME / "pipelines.toml").read_text().split("\n[templated]")[0]
    file.write_text(table + 'engine = "ray"\nworkers = 3\n')
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(file))
    monkeypatch.setenv("AFTERIMAGE_RAY_ADDRESS", nodes.address)
    write_pictures(images, 30)
    yield load_dags().dags["predict_plain"]
    for path in images.iterdir():
        path.unlink()


def rows() -> list[dict[str, Any]]:
    from sqlalchemy import text

    from tasks.cache.database import connect, reading

    query = "SELECT key, etag, digest, model_id, label, round(score, 5) score FROM v_prediction ORDER BY key"
    with reading(connect(os.environ["AFTERIMAGE_DATABASE"])) as connection:
        return [dict(row) for row in connection.execute(text(query)).mappings()]


def test_one_task_takes_the_place_of_the_mapped_ones(dag: Any) -> None:
    edges = {name: sorted(task.downstream_task_ids) for name, task in dag.task_dict.items()}
    assert edges == {
        "list_images": ["deduplicate", "publish_run"],
        "deduplicate": ["predict_on_ray"],
        "predict_on_ray": ["publish_run"],
        "publish_run": ["close_run"],
        "close_run": [],
    }
    task = dag.task_dict["predict_on_ray"]
    assert (task.pool, task.queue) == ("default_pool", "default"), "it uses no GPU itself"
    assert task.execution_timeout == dag.dagrun_timeout


def test_a_run_on_ray_gives_the_rows_of_the_mapped_tasks(
    dag: Any, dags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import afterimage_metrics
    import predict_images

    sent: list[str] = []
    monkeypatch.setattr(afterimage_metrics.stats, "incr", lambda name, *_arguments, **_named: sent.append(name))
    assert predict_images.send is afterimage_metrics.send
    run = dag.test(logical_date=None)

    assert str(run.state) == "success"
    counts = run.get_task_instance("predict_on_ray").xcom_pull(task_ids="predict_on_ray")
    assert (counts["predicted"], counts["open"]) == (30, 0)
    assert run.get_task_instance("publish_run").xcom_pull(task_ids="publish_run")["state"] == "success"
    assert "afterimage.images.predicted" in sent
    on_ray = rows()

    again = dag.test(logical_date=None)
    assert {one.task_id: str(one.state) for one in again.get_task_instances()}["predict_on_ray"] == "skipped"
    assert str(again.state) == "success"

    monkeypatch.setenv("AFTERIMAGE_DATABASE", f"sqlite:///{tmp_path / 'mapped.db'}")
    assert str(dags["predict_plain"].test(logical_date=None).state) == "success"
    assert rows() == on_ray
    assert len(on_ray) == 30


def test_an_address_that_is_not_set_is_not_tried_again(dag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFTERIMAGE_RAY_ADDRESS")
    run = dag.test(logical_date=None)
    states = {one.task_id: str(one.state) for one in run.get_task_instances()}
    assert (states["predict_on_ray"], states["close_run"], str(run.state)) == ("failed", "success", "failed")
    assert run.get_task_instance("predict_on_ray").try_number == 1
