"""This machine's own Airflow, which keeps everything under var/airflow: its commands, and its database made ready."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tasks.settings import PROJECT, load_settings

COMMAND = str(PROJECT / "scripts" / "with-airflow")


def home() -> Path:
    """Where Airflow keeps its files."""
    return Path(os.environ.get("AIRFLOW_HOME", PROJECT / "var" / "airflow"))


def airflow(*arguments: str) -> None:
    """Run an Airflow command; its end is shown where it fails."""
    if not succeeds(*arguments):
        tail = _log().read_text(errors="replace").splitlines()[-40:]
        raise SystemExit("\n".join([*tail, f"airflow {' '.join(arguments)} failed; the whole log: {_log()}"]))


def succeeds(*arguments: str) -> bool:
    """Run an Airflow command; its output goes to a log file."""
    _log().parent.mkdir(parents=True, exist_ok=True)
    with open(_log(), "ab") as out:
        done = subprocess.run([COMMAND, "airflow", *arguments], stdout=out, stderr=subprocess.STDOUT, check=False)
    return done.returncode == 0


def _log() -> Path:
    return load_settings().home / "demo" / "airflow.log"


def migrate_airflow() -> None:
    """Bring Airflow's database to its version and make the pool of the shards; one that is there stays as it is."""
    airflow("db", "migrate")
    pool = os.environ.get("AFTERIMAGE_POOL", "gpu")
    if not succeeds("pools", "get", pool):
        airflow("pools", "set", pool, "1", "one slot for each GPU")
