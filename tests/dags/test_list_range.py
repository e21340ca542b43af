"""A listing that several tasks share, executed by Airflow itself: a mapped task over ranges, in front of deduplicate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import HOME, load_dags
from tests.pictures import write_pictures

IMAGES = 30
TASKS = 3


@pytest.fixture
def store(images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The folder of the pipelines as if it were a bucket, with 4 keys a page; a listing of 20 is a large one."""
    from tasks import range_listing, road
    from tasks.storage.local import LocalStore
    from tests.memory_store import MemoryStore

    folder = LocalStore(str(images))

    class Bucket(MemoryStore):
        def object(self, key: str) -> Any:
            return listed[key]

    write_pictures(images, IMAGES)
    listed = {image.key: image for page in folder.pages("") for image in page}
    bucket = Bucket(list(listed), page=4)
    monkeypatch.setattr(road, "open_store", lambda *_: bucket)
    monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", 20)
    monkeypatch.setattr(range_listing, "GROUP_OBJECTS", 1)
    yield bucket
    shutil.rmtree(images)
    images.mkdir()


@pytest.fixture
def dag(dags: dict[str, Any], store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline `plain` with `list_tasks`."""
    file = tmp_path / "pipelines.toml"
    table = (HOME / "pipelines.toml").read_text().split("\n[templated]")[0]
    file.write_text(f"{table}list_tasks = {TASKS}\nlist_workers = 2\n")
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(file))
    return load_dags().dags["predict_plain"]


def states(run: Any, task_id: str) -> list[str]:
    return [str(one.state) for one in run.get_task_instances() if one.task_id == task_id]


def last_run() -> dict[str, Any]:
    from tasks.cache import contract
    from tasks.cache.database import connect

    return contract.runs(connect(os.environ["AFTERIMAGE_DATABASE"]), None, 1)[0]


def ranges() -> int:
    from sqlalchemy import text

    from tasks.cache.database import connect, reading

    with reading(connect(os.environ["AFTERIMAGE_DATABASE"])) as connection:
        return int(connection.execute(text("SELECT count(*) FROM listing_range WHERE NOT done")).scalar_one())


def test_the_mapped_task_stands_between_listing_and_deduplicating(dag: Any, dags: dict[str, Any]) -> None:
    edges = {name: sorted(task.downstream_task_ids) for name, task in dag.task_dict.items()}
    assert edges == {
        "list_images": ["deduplicate", "list_range", "publish_run"],
        "list_range": ["deduplicate"],
        "deduplicate": ["predict_and_upsert"],
        "predict_and_upsert": ["publish_run"],
        "publish_run": ["close_run"],
        "close_run": [],
    }
    assert (dag.task_dict["list_range"].pool, dag.task_dict["list_range"].queue) == ("default_pool", "default")
    assert "list_range" not in dags["predict_plain"].task_dict, "with list_tasks = 1 the DAG is as it was"
    assert dags["predict_plain"].task_dict["deduplicate"].trigger_rule == "all_success"


def test_the_first_run_lists_by_itself_and_the_next_one_is_shared(dag: Any, store: Any) -> None:
    first = dag.test(logical_date=None)
    assert str(first.state) == "success"
    assert states(first, "list_range") == ["skipped"]
    assert (last_run()["listed"], last_run()["predicted"]) == (IMAGES, IMAGES)

    second = dag.test(logical_date=None)
    assert str(second.state) == "success"
    assert states(second, "list_range") == ["success"] * TASKS
    assert (last_run()["listed"], last_run()["cached"], last_run()["reads"]) == (IMAGES, IMAGES, 0)
    assert ranges() == 0
    passed = second.get_task_instance("list_images").xcom_pull(task_ids="list_images")
    assert [sorted(part) for part in passed] == [["cache", "generation", "number", "ranges", "run_no"]] * TASKS, (
        "no keys"
    )

    dry = dag.test(logical_date=None, run_conf={"dry_run": True})
    assert str(dry.state) == "success"
    counts = dry.get_task_instance("publish_run").xcom_pull(task_ids="publish_run")
    assert (counts["state"], counts["listed"]) == ("dry_run", IMAGES)


def test_a_range_that_fails_fails_the_run_and_goes_on_where_it_was(dag: Any, store: Any) -> None:
    from tasks.errors import AccessDenied, ListingIncomplete

    assert str(dag.test(logical_date=None).state) == "success"
    asked = iter(range(10**6))

    def strike(_after: str | None) -> None:
        if next(asked) >= 3:
            raise AccessDenied("not any more")

    store.at_page = strike
    for task in dag.task_dict.values():
        task.partial_kwargs.update(retries=0) if hasattr(task, "partial_kwargs") else setattr(task, "retries", 0)
    failed = dag.test(logical_date=None)
    assert str(failed.state) == "failed"
    assert "failed" in states(failed, "list_range")
    assert states(failed, "deduplicate") == ["upstream_failed"]
    assert states(failed, "close_run") == ["success"]
    assert last_run()["state"] == "failed"
    assert ranges() > 0

    from tasks import road
    from tasks.cache.runs import RunKey
    from tasks.pipelines import find_pipeline
    from tasks.plan import RangeDescriptor, RunRequest
    from tasks.settings import load_settings

    settings = load_settings()
    request = RunRequest(
        RunKey("predict_plain", failed.run_id), "manual", find_pipeline(settings.pipelines, "plain"), "plain"
    )
    with pytest.raises(ListingIncomplete, match="Clear list_range"):
        road.deduplicate(request, settings)
    store.at_page, store.given = lambda _after: None, 0
    (part, *_) = failed.get_task_instance("list_images").xcom_pull(task_ids="list_images")
    assert road.list_range(request, settings, RangeDescriptor.from_dict(part))["listed"] == IMAGES
    assert store.given < IMAGES, "what was staged is not listed again"
    assert road.deduplicate(request, settings) == []
