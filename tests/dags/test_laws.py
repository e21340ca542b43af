"""What holds for every DAG, by parsing alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import load_dags


@pytest.fixture(scope="module")
def bag(airflow: None) -> Any:
    return load_dags()


def test_every_dag_file_parses_and_every_pipeline_has_a_dag(bag: Any) -> None:
    assert bag.import_errors == {}
    names = ["announced", "announced_events", "manual", "plain", "templated"]
    assert sorted(bag.dags) == ["maintain_cache", *(f"predict_{name}" for name in names)]


def test_a_wrong_table_is_an_import_error_and_stops_no_other_pipeline(
    airflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a file to which somebody has added two new tables with a typing error each."""
    file = tmp_path / "pipelines.toml"
    file.write_text(
        '[right]\nimages = "in"\nmodel = "model"\n'
        '[wrong]\nimages = "in"\nmodel = "model"\nshard_second = 60\n'
        '[worse]\nimages = "in"\n'
    )
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(file))
    bag = load_dags()
    assert sorted(bag.dags) == ["maintain_cache", "predict_right"]
    (message,) = bag.import_errors.values()
    assert "[wrong] has an unknown key 'shard_second'" in message
    assert "[worse] lacks the key 'model'" in message


def test_a_cascade_has_a_dag_and_one_without_a_margin_is_an_import_error(
    airflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pipelines.toml"
    table = 'images = "in"\nmodel = ["small", "large"]\n'
    file.write_text(f"[cascade]\n{table}cascade_margin = 0.4\n[wrong]\n{table}")
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(file))
    bag = load_dags()
    assert sorted(bag.dags) == ["maintain_cache", "predict_cascade"]
    assert sorted(bag.dags["predict_cascade"].params) == ["dry_run", "force", "limit", "window_end", "window_start"]
    (message,) = bag.import_errors.values()
    assert "[wrong] lacks the key 'cascade_margin'" in message


def test_a_wrong_executor_is_an_import_error(airflow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERIMAGE_EXECUTOR", "dask")
    bag = load_dags()
    assert bag.dags == {}
    assert any("AFTERIMAGE_EXECUTOR is 'dask'" in message for message in bag.import_errors.values())


def test_shards_ask_for_no_executor_where_none_is_set(bag: Any) -> None:
    assert {task.executor for dag in bag.dags.values() for task in dag.tasks} == {None}


def test_the_steps_stand_in_their_order(bag: Any) -> None:
    dag = bag.dags["predict_plain"]
    edges = {name: sorted(task.downstream_task_ids) for name, task in dag.task_dict.items()}
    assert edges == {
        "list_images": ["deduplicate", "publish_run"],
        "deduplicate": ["predict_and_upsert"],
        "predict_and_upsert": ["publish_run"],
        "publish_run": ["close_run"],
        "close_run": [],
    }


def test_announcements_start_a_dag_of_the_same_steps(bag: Any) -> None:
    usual, announced = bag.dags["predict_announced"], bag.dags["predict_announced_events"]
    assert set(announced.task_dict) == {*usual.task_dict, "follow_up"}
    assert sorted(announced.params) == ["dry_run", "force", "keys", "limit"]
    assert "`keys`" in announced.doc_md
    for name, task in usual.task_dict.items():
        wanted = task.downstream_task_ids | ({"follow_up"} if name == "predict_and_upsert" else set())
        assert announced.task_dict[name].downstream_task_ids == wanted
    asset = announced.timetable.asset_condition.objects[0]
    assert (asset.name, asset.uri) == ("images_announced", "x-afterimage://images/announced")
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1]["queue"] == "https://sqs.eu-west-1.amazonaws.com/123456789012/images"


def test_what_follows_up_hides_no_failure(bag: Any) -> None:
    dag = bag.dags["predict_announced_events"]
    assert dag.task_dict["follow_up"].trigger_rule == "all_done"
    leaves = {name for name, task in dag.task_dict.items() if task.downstream_task_ids <= {"close_run"}}
    assert leaves == {"publish_run", "follow_up", "close_run"}, "publish_run decides as well"


def test_shards_go_to_the_gpu_and_nothing_else_does(bag: Any) -> None:
    for dag in bag.dags.values():
        for name, task in dag.task_dict.items():
            on_gpu = name in ("predict_and_upsert", "retry_failures")
            assert (task.pool == "gpu", task.queue == "gpu") == (on_gpu, on_gpu), name


def test_the_pool_alone_says_how_many_shards_run(bag: Any) -> None:
    for dag in bag.dags.values():
        assert dag.max_active_tasks == 64, "all shards of a run, wherever there are as many GPUs"


def test_a_day_is_a_day_wide(bag: Any) -> None:
    timetable = bag.dags["predict_plain"].timetable
    assert type(timetable).__name__ == "CronDataIntervalTimetable"
    assert bag.dags["predict_manual"].timetable.can_be_scheduled is False


def test_dags_do_not_catch_up_do_not_overlap_and_have_an_end(bag: Any) -> None:
    for dag in bag.dags.values():
        assert dag.catchup is False
        assert dag.max_active_runs == 1
        assert dag.dagrun_timeout is not None


def test_tasks_are_tried_again_with_backoff_and_have_a_time_out(bag: Any) -> None:
    for dag in bag.dags.values():
        for task in dag.task_dict.values():
            assert task.retries == 3
            assert task.retry_exponential_backoff == 2.0
            assert task.execution_timeout >= timedelta(hours=1)


def test_what_cannot_be_mended_by_another_try_is_not_tried_again(bag: Any) -> None:
    from airflow.sdk import RetryAction

    from tasks.errors import DatabaseUnavailable, DriftExceeded, ModelError, TooManyFailures, TransientStorageError

    policy = bag.dags["predict_plain"].task_dict["list_images"].retry_policy
    for error in (ModelError("x"), TooManyFailures("x"), DriftExceeded("x")):
        assert policy.evaluate(error, 1, 3).action == RetryAction.FAIL, error
    for error in (TransientStorageError("x"), DatabaseUnavailable("x")):
        assert policy.evaluate(error, 1, 3).action != RetryAction.FAIL, error


def test_the_manual_is_on_the_dag_and_names_every_param(bag: Any) -> None:
    dag = bag.dags["predict_plain"]
    assert sorted(dag.params) == ["dry_run", "force", "limit", "window_end", "window_start"]
    for name in dag.params:
        assert f"`{name}`" in dag.doc_md


def test_the_teardown_does_not_decide_the_state_of_the_run(bag: Any) -> None:
    dag = bag.dags["predict_plain"]
    assert dag.task_dict["close_run"].is_teardown is True
    assert dag.task_dict["close_run"].on_failure_fail_dagrun is False
    assert dag.task_dict["publish_run"].trigger_rule == "none_failed"
