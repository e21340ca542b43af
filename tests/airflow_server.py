"""An Airflow that runs in processes of its own: its environment, its commands and its REST API."""

from __future__ import annotations

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT, free_port, outer_environment

START_SECONDS = 180
RUN_SECONDS = 240
COMMAND = str(ROOT / "scripts" / "with-airflow")


class AirflowServer(ABC):
    """What an Airflow needs in its environment, and how to talk to it; its processes are the subclass's.

    Its metadata lies in PostgreSQL, as in production: on SQLite Airflow refuses a backfill whenever its scheduler
    happens to write at the same moment.
    """

    def __init__(self, home: Path, metadata_url: str, environment: Mapping[str, str]) -> None:
        self.home = home
        self.port = free_port()
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps({"admin": "admin"}))
        self.environment = {
            **outer_environment(),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata_url,
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.port}/execution/",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{self.port}",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            **environment,
        }
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    @abstractmethod
    def check(self) -> None:
        """Raises RuntimeError where a process that must live has ended."""

    @abstractmethod
    def tail(self) -> str:
        """The end of the log."""

    def airflow(self, *arguments: str) -> str:
        """Run an Airflow command of this installation; its output."""
        command = [COMMAND, "airflow", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def log_in(self) -> None:
        """Wait until it can run tasks, and ask for a token."""
        self.wait(self._is_healthy, START_SECONDS, "a healthy Airflow")
        answer = self._client.post("/auth/token", json={"username": "admin", "password": "admin"})
        self._client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """GET below /api/v2."""
        return self._client.get(f"/api/v2{path}").raise_for_status().json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST below /api/v2."""
        return self._send("POST", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH below /api/v2."""
        return self._send("PATCH", path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        answer = self._client.request(method, f"/api/v2{path}", json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def page(self, path: str, *, anonymous: bool = False) -> httpx.Response:
        """GET outside the REST API, with or without a token."""
        if not anonymous:
            return self._client.get(path)
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def unpause(self, dag_id: str) -> None:
        """Wait for the DAG to be parsed, and let it run."""
        self.wait(lambda: self._client.get(f"/api/v2/dags/{dag_id}").status_code == 200, 120, f"the DAG {dag_id}")
        self.patch(f"/dags/{dag_id}", {"is_paused": False})

    def runs(self, dag_id: str, run_type: str | None = None) -> list[dict[str, Any]]:
        """The runs of a DAG, of one type or of all, the oldest first."""
        runs = self.get(f"/dags/{dag_id}/dagRuns?limit=100&order_by=run_after")["dag_runs"]
        return [run for run in runs if run_type in (None, run["run_type"])]

    def finished(self, dag_id: str, run_type: str, count: int) -> list[dict[str, Any]]:
        """Wait until the oldest `count` runs of a type have ended; all of them must have ended well.

        A schedule may start one more meanwhile: the tests run at midnight, too.
        """

        def all_ended() -> bool:
            runs = self.runs(dag_id, run_type)[:count]
            return len(runs) == count and all(run["state"] in ("success", "failed") for run in runs)

        self.wait(all_ended, RUN_SECONDS, f"{count} {run_type} runs of {dag_id}")
        runs = self.runs(dag_id, run_type)[:count]
        assert [run["state"] for run in runs] == ["success"] * count, self.tail()
        return runs

    def trigger(self, dag_id: str, **body: Any) -> dict[str, Any]:
        """A manual run through the REST API; returns it when it has ended well."""
        return self.ended(dag_id, self.begin(dag_id, **body))

    def begin(self, dag_id: str, **body: Any) -> str:
        """Trigger a manual run through the REST API; its run_id."""
        return str(self.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None, **body})["dag_run_id"])

    def ended(self, dag_id: str, run_id: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """Wait for the end of a run, which must be a good one."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}"
        self.wait(lambda: self.get(path)["state"] in ("success", "failed"), seconds, f"the run {run_id} of {dag_id}")
        run: dict[str, Any] = self.get(path)
        assert run["state"] == "success", self.tail()
        return run

    def wait(self, condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.5) -> None:
        """Wait for something, with an error that says for what."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            try:
                if condition():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(pause)
        raise TimeoutError(f"waited {seconds} s for {what}: {self.tail()}")

    def _is_healthy(self) -> bool:
        health = self.get("/monitor/health")
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))
