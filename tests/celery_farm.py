"""An Airflow with Celery workers on one machine, without containers: each part is a process with a session of its own.

CPU steps run on LocalExecutor beside the scheduler, shards on the workers of the queue `gpu`. Everything listens on
loopback only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.airflow_server import COMMAND, START_SECONDS, AirflowServer
from tests.conftest import ROOT, free_port, wait_for_port

POOL = "gpu"
WORKER_CORES = 2  # of a worker, however many this machine has: what a shard has in flight grows with them
READY = " ready."  # how Celery says that a worker takes tasks

# No look for other workers at the start, no log server on all interfaces: a worker is ready sooner and stays on loopback.
WORKER = (
    *("celery", "worker", "--queues", "gpu", "--concurrency", "1"),
    *("--skip-serve-logs", "--without-mingle", "--without-gossip"),
)


class Part:
    """A process, and all others of its session: killing them is what the loss of a machine looks like.

    The process of a task has a group of its own, so killing the worker's group would leave it alive.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def members(self) -> list[int]:
        """Process ids of the session, zombies left out."""
        return [pid for pid in psutil.pids() if _session(pid) == self.process.pid and _is_alive(pid)]

    def kill(self) -> None:
        """SIGKILL for the whole session, until none is left."""
        while members := self.members():
            for pid in members:
                _kill(pid)
            time.sleep(0.02)
        self.process.wait()


class CeleryFarm(AirflowServer):
    """redis-server, API server, scheduler, DAG processor, and workers by name."""

    def __init__(self, home: Path, metadata_url: str, environment: Mapping[str, str]) -> None:
        self.redis_port = free_port()
        super().__init__(home, metadata_url, {**self._settings(home), **environment})
        self.parts: dict[str, Part] = {}
        self._ending: list[Part] = []

    def _settings(self, home: Path) -> dict[str, str]:
        (home / "none.toml").write_text("")
        return {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "dags")]),
            "AFTERIMAGE_EXECUTOR": "celery",
            "AFTERIMAGE_HOME": str(home / "afterimage"),
            # predict_images.py builds nothing when farm.py imports it.
            "AFTERIMAGE_PIPELINES": str(home / "none.toml"),
            "FARM_PIPELINES": str(home / "pipelines.toml"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "tests" / "farm_dags"),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,CeleryExecutor",
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "tests.farm_host.name",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "86400",
            "AIRFLOW__DAG_PROCESSOR__STALE_BUNDLE_CLEANUP_INTERVAL": "0",
            # A dead worker's shard comes back after ten seconds here; the default is five minutes.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        }

    def start(self, *workers: str) -> None:
        """Start everything, and wait until shards can go to these workers: a slot of the pool for each."""
        self.airflow("db", "migrate")
        options = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.parts["redis"] = Part(["redis-server", *options], os.environ, self.home / "redis.log")
        wait_for_port(self.redis_port, self.parts["redis"].process)
        for name in ("api-server", "scheduler", "dag-processor"):
            self._launch(name, [name])
        for name in workers:
            self.start_worker(name)
        self.log_in()
        self.post("/pools", {"name": POOL, "slots": len(workers), "description": "one slot for each worker"})
        for name in workers:
            self.wait_for_worker(name)

    def stop(self) -> None:
        """End every process, whatever state it is in."""
        for part in [*reversed(self.parts.values()), *self._ending]:
            part.kill()
        self.close()

    def _launch(self, name: str, arguments: list[str], **environment: str) -> None:
        command = [COMMAND, "airflow", *arguments]
        self.parts[name] = Part(command, {**self.environment, **environment}, self.home / f"{name}.log")

    def start_worker(self, name: str) -> None:
        """Start a worker of the queue `gpu`, as on a host of this name."""
        (self.home / f"{name}.log").unlink(missing_ok=True)
        self._launch(name, [*WORKER, "--celery-hostname", f"{name}@%h"], FARM_HOST=name)
        os.sched_setaffinity(self.parts[name].process.pid, sorted(os.sched_getaffinity(0))[:WORKER_CORES])

    def wait_for_worker(self, name: str) -> None:
        """Wait until a worker takes tasks."""
        log = self.parts[name].log
        self.wait(lambda: READY in log.read_text(errors="replace"), START_SECONDS, f"the worker {name}", 0.1)

    def kill_worker(self, name: str) -> None:
        """As if its machine had lost power."""
        self.parts.pop(name).kill()

    def tell_worker_to_stop(self, name: str) -> Part:
        """SIGTERM to its main process: it takes no more tasks, and ends when its last one has."""
        part = self.parts.pop(name)
        self._ending.append(part)
        part.process.send_signal(signal.SIGTERM)
        return part

    def set_slots(self, slots: int) -> None:
        """How many shards run at a time: as many as there are workers."""
        self.patch(f"/pools/{POOL}", {"pool": POOL, "slots": slots, "include_deferred": False})

    def shards(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run's shards in their latest try, the first shard first."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/predict_and_upsert/listMapped?limit=100"
        return sorted(self.get(path)["task_instances"], key=lambda shard: int(shard["map_index"]))

    def running_on(self, name: str, dag_id: str, run_id: str) -> int | None:
        """The number of the shard that a worker does at the moment, or None."""
        for shard in self.shards(dag_id, run_id):
            if shard["hostname"] == name and shard["state"] == "running":
                return int(shard["map_index"])
        return None

    def check(self) -> None:
        """See AirflowServer.check."""
        for name, part in self.parts.items():
            if part.process.poll() is not None:
                raise RuntimeError(f"{name} ended with {part.process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """See AirflowServer.tail."""
        logs = sorted(self.home.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}" for log in logs)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
