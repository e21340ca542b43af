"""`airflow standalone` as a user starts it, in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.airflow_server import COMMAND, AirflowServer


class Standalone(AirflowServer):
    """One Airflow: scheduler, DAG processor, API server and triggerer, with LocalExecutor."""

    def __init__(self, home: Path, metadata_url: str, environment: Mapping[str, str]) -> None:
        super().__init__(home, metadata_url, environment)
        self.log = home / "standalone.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it can run tasks."""
        command = [COMMAND, "airflow", "standalone"]
        with open(self.log, "wb") as out:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.log_in()

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
        self.close()

    def check(self) -> None:
        """See AirflowServer.check."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"airflow standalone ended: {self.tail()}")

    def tail(self) -> str:
        """See AirflowServer.tail."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else "no log"
