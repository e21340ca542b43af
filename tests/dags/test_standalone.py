"""Under `airflow standalone`: a scheduled run, backfills, manual triggers and an asset, against the command line's rows.

The cache is PostgreSQL. The tests build on each other, because one Airflow takes most of a minute to start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tasks.cache.schema import to_single
from tasks.models.bundle import read_bundle
from tests.conftest import ROOT, free_port, fresh_cache, fresh_postgres, wait_until
from tests.dags.standalone import Standalone
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.ray_nodes import ray_nodes
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.alone

DAY = datetime(2026, 3, 1, tzinfo=UTC)
PER_DAY = 30
RAY_PORT = free_port()

PIPELINES = """
[daily]
images = "{home}/daily"
model = "{home}/model"
schedule = "@daily"
commit_images = 10

[history]
images = "{home}/history"
model = "{home}/model"
schedule = "@daily"
commit_images = 10

[overlap]
images = "{home}/overlap"
model = "{home}/other-model"
schedule = "@daily"
commit_images = 5

[dated]
images = "{home}/dated/{{{{ ds }}}}/"
model = "{home}/model"
schedule = "@daily"
lookback_days = 1

[clustered]
images = "{home}/clustered"
model = "{home}/model"
engine = "ray"
workers = 4
commit_images = 20
"""

PHOTOGRAPH = picture(0, (640, 480), "JPEG")  # what follows a JPEG changes its digest and none of its pixels
CLUSTERED = 2_000  # some seconds of work for a node of one processor, so that a run can be cancelled on its way

ASSET_DAG = '''
"""A DAG of the user's own: the pipeline `daily` again, whenever its predictions have changed. airflow"""
import os
from pathlib import Path

wanted = Path(os.environ["AFTERIMAGE_PIPELINES"])
os.environ["AFTERIMAGE_PIPELINES"] = str(wanted.with_name("none.toml"))
from airflow.sdk import Asset
import predict_images
from tasks.pipelines import find_pipeline
os.environ["AFTERIMAGE_PIPELINES"] = str(wanted)

after = find_pipeline(wanted, "daily").model_copy(update={"name": "after"})
dag = predict_images.build(after, schedule=[Asset(name="predictions_daily", uri="x-afterimage://predictions/daily")])
'''

IMPATIENT_DAG = '''
"""A pipeline whose shards give up their slot after every commit, as long ones do after half an hour. airflow"""
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

wanted = Path(os.environ["AFTERIMAGE_PIPELINES"])
os.environ["AFTERIMAGE_PIPELINES"] = str(wanted.with_name("none.toml"))
import predict_images
from tasks import road
from tasks.pipelines import find_pipeline
os.environ["AFTERIMAGE_PIPELINES"] = str(wanted)

predict = road.predict_shard
road.predict_shard = lambda shard, *given, stop_after, **named: predict(
    replace(shard, commit_images=8), *given, stop_after=timedelta(0), **named
)
pipeline = find_pipeline(wanted, "daily").model_copy(update={"name": "impatient", "schedule": None})
dag = predict_images.build(pipeline.model_copy(update={"model": str(wanted.with_name("other-model"))}))
'''


@pytest.fixture(scope="module")
def url(postgres_server: str) -> Iterator[str]:
    """A migrated cache in PostgreSQL."""
    with fresh_cache(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, two models, pipelines.toml, and dags/ with one DAG more."""
    home = tmp_path_factory.mktemp("standalone")
    write_small_bundle(home / "model")
    write_small_bundle(home / "other-model", seed=7)
    write_pictures(home / "daily", 20)
    for folder in ("history", "overlap", "dated", "clustered"):
        (home / folder).mkdir()
    (home / "pipelines.toml").write_text(PIPELINES.format(home=home))
    (home / "none.toml").write_text("")
    dags = home / "dags"
    dags.mkdir()
    for file in (ROOT / "dags").iterdir():
        if file.is_file():
            (dags / file.name).symlink_to(file)
    (dags / "after_daily.py").write_text(ASSET_DAG)
    (dags / "impatient.py").write_text(IMPATIENT_DAG)
    return home


@pytest.fixture(scope="module")
def metadata_url(postgres_server: str) -> Iterator[str]:
    """A database for Airflow's own metadata, never the one of the cache."""
    with fresh_postgres(postgres_server) as url:
        yield make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def airflow(home: Path, url: str, metadata_url: str) -> Iterator[Standalone]:
    """A running Airflow."""
    environment = {
        "AFTERIMAGE_PIPELINES": str(home / "pipelines.toml"),
        "AFTERIMAGE_HOME": str(home / "afterimage"),
        "AFTERIMAGE_DATABASE": url,
        "AFTERIMAGE_DEVICE": "cpu",
        "AFTERIMAGE_RAY_ADDRESS": f"127.0.0.1:{RAY_PORT}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
    }
    running = Standalone(home, metadata_url, environment)
    running.airflow("db", "migrate")
    running.airflow("pools", "set", "gpu", "3", "three slots, so that backfills overlap")
    try:
        running.start()
        yield running
    finally:
        running.stop()


def cache(home: Path, url: str, **table: Any) -> Runner:
    """The cache of the Airflow runs, for looking at rows."""
    return Runner(home / "afterimage", url, **{"images": str(home / "daily"), "model": str(home / "model"), **table})


def row_of(home: Path, url: str, run: dict[str, Any]) -> dict[str, Any]:
    query = "SELECT * FROM v_run WHERE dag_id = :dag_id AND run_id = :run_id"
    return cache(home, url).rows(query, dag_id=run["dag_id"], run_id=run["dag_run_id"])[0]


def by_command_line(home: Path, tmp_path: Path, images: str, model: str) -> dict[str, Any]:
    """What the command line gives for the same objects in a cache of its own."""
    runner = Runner(
        tmp_path / "home", f"sqlite:///{tmp_path / 'cli.db'}", images=str(home / images), model=str(home / model)
    )
    runner.run()
    return runner.predictions()


def predictions(home: Path, url: str, images: str, model: str) -> dict[str, Any]:
    """The rows of one folder and one model in the cache of the Airflow runs."""
    rows = cache(home, url).rows(
        "SELECT * FROM v_prediction WHERE source = :source AND model_id = :model",
        source=f"file://{home / images}",
        model=read_bundle(home / model).model_id,
    )
    return {
        row["key"]: (row["etag"], row["digest"], row["model_id"], row["label"], round(to_single(row["score"]), 5))
        for row in rows
    }


def fill(folder: Path, start: int) -> None:
    """PER_DAY images of each of three days, some of them twins."""
    for number in range(3):
        moment = (DAY + timedelta(days=number, hours=6)).timestamp()
        for key in write_pictures(folder, PER_DAY, start=start + 1000 * number):
            os.utime(folder / key, (moment, moment))
        (folder / f"twin-{number}.png").write_bytes(picture(start))
        os.utime(folder / f"twin-{number}.png", (moment, moment))


def test_a_scheduled_run_predicts_what_the_command_line_predicts(
    airflow: Standalone, home: Path, url: str, tmp_path: Path
) -> None:
    airflow.unpause("predict_after")
    airflow.unpause("predict_daily")
    (run,) = airflow.finished("predict_daily", "scheduled", 1)
    row = row_of(home, url, run)
    assert (row["state"], row["run_type"], row["window_start"]) == ("success", "scheduled", None)
    assert outcomes(row) == {"predicted": 20}
    assert predictions(home, url, "daily", "model") == by_command_line(home, tmp_path, "daily", "model")


def test_the_result_of_the_run_is_its_counts(airflow: Standalone) -> None:
    run = airflow.runs("predict_daily", "scheduled")[0]
    path = f"/dags/predict_daily/dagRuns/{run['dag_run_id']}/taskInstances/publish_run/xcomEntries/return_value"
    counts = airflow.get(path)["value"]
    assert (counts["listed"], counts["predicted"], counts["reads"]) == (20, 20, 20)


def test_a_shard_reads_like_one_in_the_grid(airflow: Standalone) -> None:
    run = airflow.runs("predict_daily", "scheduled")[0]
    shard = airflow.get(f"/dags/predict_daily/dagRuns/{run['dag_run_id']}/taskInstances/predict_and_upsert/0")
    assert shard["rendered_map_index"] == "shard 1/1 · 20 images"
    assert (shard["pool"], shard["queue"]) == ("gpu", "gpu")


def test_the_asset_of_a_run_starts_another_dag_which_looks_at_everything(
    airflow: Standalone, home: Path, url: str
) -> None:
    (run,) = airflow.finished("predict_after", "asset_triggered", 1)
    row = row_of(home, url, run)
    assert (row["run_type"], row["window_start"]) == ("asset_triggered", None)
    assert outcomes(row) == {"cached": 20}
    events = airflow.get("/assets/events?limit=10")["asset_events"]
    assert 20 in [event["extra"]["predicted"] for event in events if event["source_dag_id"] == "predict_daily"]


def test_a_manual_trigger_through_the_rest_api(airflow: Standalone, home: Path, url: str) -> None:
    row = row_of(home, url, airflow.trigger("predict_daily"))
    assert (row["run_type"], outcomes(row), row["reads"]) == ("manual", {"cached": 20}, 0)
    dated = airflow.trigger("predict_daily", logical_date=(DAY + timedelta(days=3)).isoformat())
    assert dated["data_interval_start"] is not None
    row = row_of(home, url, dated)
    assert (row["window_start"], outcomes(row)) == (None, {"cached": 20})


def test_a_long_shard_gives_up_its_slot_and_spends_no_retry(airflow: Standalone, home: Path, url: str) -> None:
    airflow.unpause("predict_impatient")
    run = airflow.trigger("predict_impatient")
    assert outcomes(row_of(home, url, run)) == {"predicted": 20}
    path = f"/dags/predict_impatient/dagRuns/{run['dag_run_id']}/taskInstances/predict_and_upsert/0"
    assert airflow.get(path)["try_number"] == 1
    log = airflow.get(f"{path.removesuffix('/0')}/logs/1?map_index=0")
    assert str(log).count("Rescheduling task") >= 1 or str(log).count("reschedule") >= 1


def test_a_backfill_over_three_days_takes_each_day_its_images(
    airflow: Standalone, home: Path, url: str, tmp_path: Path
) -> None:
    airflow.unpause("predict_history")
    airflow.finished("predict_history", "scheduled", 1)
    fill(home / "history", start=100)
    days = {"from_date": DAY.isoformat(), "to_date": (DAY + timedelta(days=2)).isoformat()}
    airflow.post("/backfills", {"dag_id": "predict_history", **days})
    runs = airflow.finished("predict_history", "backfill", 3)
    rows = sorted((row_of(home, url, run) for run in runs), key=lambda row: row["window_start"])
    assert [row["window_start"] for row in rows] == [DAY + timedelta(days=number) for number in range(3)]
    assert [row["listed"] for row in rows] == [PER_DAY + 1] * 3
    assert sum(row["predicted"] for row in rows) == 3 * PER_DAY
    assert sum(row["reused"] for row in rows) == 3
    assert predictions(home, url, "history", "model") == by_command_line(home, tmp_path, "history", "model")


def test_overlapping_backfill_runs_over_the_same_objects_leave_every_row_once(
    airflow: Standalone, home: Path, url: str, tmp_path: Path
) -> None:
    """Airflow lets a backfill have 10 runs at a time, whatever max_active_runs says."""
    airflow.unpause("predict_overlap")
    airflow.finished("predict_overlap", "scheduled", 1)
    fill(home / "overlap", start=5000)
    everything = {"window_start": DAY.isoformat(), "window_end": (DAY + timedelta(days=3)).isoformat()}
    days = {"from_date": DAY.isoformat(), "to_date": (DAY + timedelta(days=2)).isoformat()}
    airflow.post("/backfills", {"dag_id": "predict_overlap", "dag_run_conf": everything, **days})
    runs = airflow.finished("predict_overlap", "backfill", 3)
    assert max(run["start_date"] for run in runs) < min(run["end_date"] for run in runs), "the runs did not overlap"
    rows = [row_of(home, url, run) for run in runs]
    total = 3 * PER_DAY + 3
    assert [row["listed"] for row in rows] == [total] * 3
    assert sum(row["predicted"] for row in rows) == 3 * PER_DAY
    assert all(row["cached"] + row["reused"] + row["predicted"] == total for row in rows)
    assert predictions(home, url, "overlap", "other-model") == by_command_line(home, tmp_path, "overlap", "other-model")


def test_the_backfill_command_and_a_date_template(airflow: Standalone, home: Path, url: str) -> None:
    airflow.unpause("predict_dated")
    airflow.finished("predict_dated", "scheduled", 1)
    for number in range(3):
        write_pictures(
            home / "dated" / (DAY + timedelta(days=number)).strftime("%Y-%m-%d"), 2, start=9000 + 10 * number
        )
    airflow.airflow(
        "backfill", "create", "--dag-id", "predict_dated", "--from-date", "2026-03-01", "--to-date", "2026-03-02"
    )
    runs = airflow.finished("predict_dated", "backfill", 2)
    rows = [row_of(home, url, run) for run in runs]
    assert [(row["listed"], row["predicted"]) for row in rows] == [(2, 2)] * 2
    assert cache(home, url).rows("SELECT count(*) AS n FROM image WHERE key LIKE '2026-03-%'") == [{"n": 4}]


def test_a_scheduled_run_over_a_date_template_takes_its_day_and_lookback_days(
    airflow: Standalone, home: Path, url: str
) -> None:
    run = airflow.runs("predict_dated", "scheduled")[0]
    row = row_of(home, url, run)
    assert row["window_end"] - row["window_start"] == timedelta(days=2)


def test_the_tab_of_a_run_shows_its_counts_to_those_who_may_read_it(airflow: Standalone) -> None:
    run = airflow.runs("predict_daily", "scheduled")[0]
    path = f"/afterimage/runs/predict_daily/{run['dag_run_id']}"
    page = airflow.page(path)
    assert page.status_code == 200
    assert "success: 20 images listed" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "none of a pipeline" in airflow.page("/afterimage/runs/predict_daily/no-such-run").text


def test_nobody_else_is_let_in(airflow: Standalone) -> None:
    for path in ("/afterimage/runs/predict_daily/any", "/afterimage/runs/other/any", "/afterimage/assets/style.css"):
        assert airflow.page(path, anonymous=True).status_code == 401
    for path in ("/afterimage/docs", "/afterimage/redoc", "/afterimage/openapi.json"):
        assert airflow.page(path, anonymous=True).status_code == 404


def test_a_run_on_ray_that_is_marked_failed_ends_its_actors_and_goes_on_when_cleared(
    airflow: Standalone, home: Path, url: str, tmp_path: Path
) -> None:
    """As somebody cancels it in the UI: what was committed stays, and the cluster is free for others at once."""
    pytest.importorskip("ray")
    for number in range(CLUSTERED):
        (home / "clustered" / f"{number:05}.jpg").write_bytes(PHOTOGRAPH + number.to_bytes(4, "big"))
    runner = cache(home, url)
    done = "SELECT count(outcome) done FROM work_item JOIN run USING (run_no) WHERE dag_id = 'predict_clustered'"

    def committed() -> int:
        return int(runner.rows(done)[0]["done"])

    with ray_nodes(1, home / "node", port=RAY_PORT) as nodes:
        airflow.unpause("predict_clustered")
        run_id = airflow.post("/dags/predict_clustered/dagRuns", {"logical_date": None})["dag_run_id"]
        airflow.wait(lambda: committed() > 0, 120, "a commit")
        assert nodes.actors()
        task = f"/dags/predict_clustered/dagRuns/{run_id}/taskInstances/predict_on_ray"
        airflow.patch(task, {"new_state": "failed"})
        seconds = wait_until(lambda: not nodes.actors(), 30, "the end of the actors")
        print(f"the actors ended {seconds:.1f} s after the task was marked failed")
        assert 0 < committed() < CLUSTERED

        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["predict_on_ray"], "include_downstream": True}
        airflow.post("/dags/predict_clustered/clearTaskInstances", {**body, "only_failed": False})
        run = f"/dags/predict_clustered/dagRuns/{run_id}"
        airflow.wait(lambda: airflow.get(run)["state"] == "success", 120, "the end of the cleared run")
    assert committed() == CLUSTERED
    assert predictions(home, url, "clustered", "model") == by_command_line(home, tmp_path, "clustered", "model")
