"""`airflow standalone` as a user starts it, in a process group of its own, and its REST API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT, free_port, outer_environment

START_SECONDS = 180
RUN_SECONDS = 240


class Standalone:
    """One Airflow: scheduler, DAG processor, API server and triggerer, with LocalExecutor.

    Its metadata lies in PostgreSQL, as in production: on SQLite Airflow refuses a backfill whenever its scheduler
    happens to write at the same moment.
    """

    def __init__(self, home: Path, metadata_url: str, environment: Mapping[str, str]) -> None:
        self.home = home
        self.port = free_port()
        self.log = home / "standalone.log"
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
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def airflow(self, *arguments: str) -> str:
        """Run an Airflow command of this installation; its output."""
        command = [str(ROOT / "scripts" / "with-airflow"), "airflow", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def start(self) -> None:
        """Start it and wait until it can run tasks."""
        command = [str(ROOT / "scripts" / "with-airflow"), "airflow", "standalone"]
        with open(self.log, "wb") as out:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.wait(self._is_healthy, START_SECONDS, "a healthy Airflow")
        answer = self._client.post("/auth/token", json={"username": "admin", "password": "admin"})
        self._client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"

    def stop(self) -> None:
        """SIGINT to the whole group, then SIGKILL for what is left of it."""
        if self._process is None:
            return
        for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self._client.close()

    def get(self, path: str) -> Any:
        """GET below /api/v2."""
        return self._client.get(f"/api/v2{path}").raise_for_status().json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST below /api/v2."""
        answer = self._client.post(f"/api/v2{path}", json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        """PATCH below /api/v2."""
        answer = self._client.patch(f"/api/v2{path}", json=body)
        assert answer.status_code < 300, answer.text

    def page(self, path: str, *, anonymous: bool = False) -> httpx.Response:
        """GET outside the REST API, with or without a token."""
        if not anonymous:
            return self._client.get(path)
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def unpause(self, dag_id: str) -> None:
        """Wait for the DAG to be parsed, and let it run."""
        self.wait(lambda: self._client.get(f"/api/v2/dags/{dag_id}").status_code == 200, 120, f"the DAG {dag_id}")
        self._client.patch(f"/api/v2/dags/{dag_id}", json={"is_paused": False}).raise_for_status()

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
        run_id = self.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None, **body})["dag_run_id"]

        def ended() -> bool:
            return self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"] in ("success", "failed")

        self.wait(ended, RUN_SECONDS, f"the run {run_id} of {dag_id}")
        run: dict[str, Any] = self.get(f"/dags/{dag_id}/dagRuns/{run_id}")
        assert run["state"] == "success", self.tail()
        return run

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something, with an error that says for what."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"airflow standalone ended: {self.tail()}")
            try:
                if condition():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError(f"waited {seconds} s for {what}: {self.tail()}")

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else "no log"

    def _is_healthy(self) -> bool:
        health = self.get("/monitor/health")
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))
