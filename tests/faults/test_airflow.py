"""What Airflow does to a running shard: somebody marks it failed and clears it, or its heartbeat is lost and it comes back.

One Airflow with LocalExecutor; the cache is PostgreSQL. A gate in the store holds a shard open after its first commits.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import make_url

from tests.conftest import ROOT, fresh_cache, fresh_postgres, wait_until
from tests.dags.standalone import Standalone
from tests.faults.oracle import settle
from tests.faults.record import record
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

pytestmark = pytest.mark.alone

IMAGES = 60
HEARTBEAT_SECONDS = 8

PIPELINES = """
[marked]
images = "{home}/images"
model = "{home}/model"
commit_images = 10

[lost]
images = "{home}/images"
model = "{home}/other-model"
commit_images = 10
"""

# Reads of the later keys wait until somebody opens the gate; each attempt leaves its process number behind.
GATED_DAGS = '''
"""The pipelines of pipelines.toml, with a gate in the store. airflow"""
import os, time
from datetime import timedelta
from pathlib import Path
import predict_images
from tasks import road
from tasks.storage.local import LocalStore

home = Path(os.environ["AFTERIMAGE_PIPELINES"]).parent
read, predict = LocalStore.read, road.predict_shard

def gated(self, key, etag):
    while key >= "00030.png" and not (home / "gate").exists():
        time.sleep(0.05)
    return read(self, key, etag)

def noted(shard, *given, **named):
    (home / "attempts" / f"{time.time_ns()}-{os.getpid()}").touch()
    return predict(shard, *given, **named)

LocalStore.read, road.predict_shard = gated, noted
for pipeline in predict_images.read_pipelines(Path(os.environ["AFTERIMAGE_PIPELINES"]))[0].values():
    dag = predict_images.build(pipeline)
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=1)
    globals()[dag.dag_id] = dag
'''


@pytest.fixture(scope="module")
def url(postgres_server: str) -> Iterator[str]:
    """A migrated cache in PostgreSQL."""
    with fresh_cache(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two models, pipelines.toml, and dags/ with the gated pipelines."""
    home = tmp_path_factory.mktemp("kills")
    write_pictures(home / "images", IMAGES)
    write_small_bundle(home / "model")
    write_small_bundle(home / "other-model", seed=7)
    (home / "pipelines.toml").write_text(PIPELINES.format(home=home))
    for folder in ("attempts", "dags"):
        (home / folder).mkdir()
    for file in (ROOT / "dags").glob("afterimage_*.py"):
        (home / "dags" / file.name).symlink_to(file)
    (home / "dags" / "gated.py").write_text(GATED_DAGS)
    return home


@pytest.fixture(scope="module")
def airflow(home: Path, url: str, postgres_server: str) -> Iterator[Standalone]:
    """A running Airflow that misses a heartbeat after seconds."""
    with fresh_postgres(postgres_server) as metadata:
        environment = {
            "AFTERIMAGE_PIPELINES": str(home / "pipelines.toml"),
            "AFTERIMAGE_HOME": str(home / "afterimage"),
            "AFTERIMAGE_DATABASE": url,
            "AFTERIMAGE_READERS": "4",
            "AFTERIMAGE_BATCH_SIZE": "5",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'dags'}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_SECONDS),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        }
        address = make_url(metadata).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
        running = Standalone(home, address, environment)
        running.airflow("db", "migrate")
        running.airflow("pools", "set", "gpu", "3", "room for an attempt beside one that is thought dead")
        try:
            running.start()
            yield running
        finally:
            running.stop()


class Held:
    """A run of a gated pipeline, whose shard has committed something and waits at the gate."""

    def __init__(self, airflow: Standalone, home: Path, url: str, tmp_path: Path, pipeline: str, model: str) -> None:
        self.airflow, self.home, self.dag_id = airflow, home, f"predict_{pipeline}"
        table = {"images": str(home / "images"), "model": str(home / model)}
        self.runner = Runner(home / "afterimage", url, **table)
        calm = Runner(tmp_path / "home", f"sqlite:///{tmp_path / 'calm.db'}", **table)
        calm.run()
        self.calm = calm.predictions()
        (home / "gate").unlink(missing_ok=True)
        self.attempts_before = len(self.attempts())
        airflow.unpause(self.dag_id)
        self.run_id = airflow.begin(self.dag_id)
        airflow.wait(lambda: self.committed() >= 10, 120, "a commit")

    def attempts(self) -> list[int]:
        """Process numbers of all attempts so far, the oldest first."""
        return [int(file.name.split("-")[1]) for file in sorted((self.home / "attempts").iterdir())]

    def attempt(self, number: int) -> int:
        """Wait for the attempt of that number, from 0 on; its process."""
        self.airflow.wait(lambda: len(self.attempts()) > self.attempts_before + number, 60, f"attempt {number}")
        return self.attempts()[self.attempts_before + number]

    def committed(self) -> int:
        """How many rows of the run have their outcome."""
        query = "SELECT count(outcome) AS done FROM work_item JOIN run USING (run_no) WHERE dag_id = :dag_id"
        return int(self.runner.rows(query, dag_id=self.dag_id)[0]["done"])

    def open_gate(self) -> None:
        """Everybody may read."""
        (self.home / "gate").touch()

    def survived(self, name: str, injected: int, answer: str) -> None:
        """The run ends well, every row has one outcome, and one clean run settles."""
        run = f"/dags/{self.dag_id}/dagRuns/{self.run_id}"
        self.airflow.wait(lambda: self.airflow.get(run)["state"] in ("success", "failed"), 120, "the end of the run")
        tasks = self.airflow.get(f"{run}/taskInstances")["task_instances"]
        assert self.airflow.get(run)["state"] == "success", [(task["task_id"], task["state"]) for task in tasks]
        row = self.runner.rows("SELECT * FROM v_run WHERE dag_id = :dag_id", dag_id=self.dag_id)[-1]
        assert (row["listed"], row["predicted"], row["open"]) == (IMAGES, IMAGES, 0)
        assert self.runner.rows("SELECT * FROM failure") == []
        settled = settle(self.runner, self.calm)
        record("airflow", name, injected=injected, answer=answer, lost=settled.lost, doubled=settled.doubled)


def is_alive(pid: int) -> bool:
    """Whether a process still works; a zombie in the system's sense does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_shard_that_is_marked_failed_and_cleared(airflow: Standalone, home: Path, url: str, tmp_path: Path) -> None:
    held = Held(airflow, home, url, tmp_path, "marked", "model")
    victim = held.attempt(0)
    task = f"/dags/{held.dag_id}/dagRuns/{held.run_id}/taskInstances/predict_and_upsert/0"
    airflow.patch(task, {"new_state": "failed"})
    wait_until(lambda: not is_alive(victim), 30, "the end of the task's process")
    run = f"/dags/{held.dag_id}/dagRuns/{held.run_id}"
    airflow.wait(lambda: airflow.get(run)["state"] == "failed", 60, "the end of the run")
    assert 10 <= held.committed() < IMAGES
    held.open_gate()
    body: dict[str, Any] = {"dry_run": False, "dag_run_id": held.run_id, "only_failed": False}
    clear = f"/dags/{held.dag_id}/clearTaskInstances"
    airflow.post(clear, {**body, "task_ids": ["predict_and_upsert"], "include_downstream": True})
    assert held.attempt(1) != victim
    answer = "commits what is finished and ends; cleared, it goes on after the last commit"
    held.survived("shard marked failed in Airflow, then cleared", 1, answer)


def test_a_shard_whose_heartbeat_is_lost_and_which_comes_back(
    airflow: Standalone, home: Path, url: str, tmp_path: Path
) -> None:
    """As on a host that freezes: its supervisor and the task stop, a second attempt begins, and both go on side by side."""
    held = Held(airflow, home, url, tmp_path, "lost", "other-model")
    ghost = held.attempt(0)
    frozen = [ghost, psutil.Process(ghost).ppid()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    second = held.attempt(1)
    assert second != ghost
    assert psutil.Process(ghost).status() == psutil.STATUS_STOPPED
    held.open_gate()
    for pid in reversed(frozen):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_alive(ghost), 40, "the end of the attempt that was thought dead")
    answer = "a second attempt does the rest; what the first one commits late is found closed"
    held.survived("heartbeat lost, and the frozen attempt comes back", 1, answer)
