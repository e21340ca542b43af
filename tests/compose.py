"""docker-compose.yaml and .env.example, read for the tests of them: no engine runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tasks.settings import PROJECT

Service = dict[str, Any]

TEXT = (PROJECT / "docker-compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Service] = COMPOSE["services"]

WORKERS = ("cpu-worker", "gpu-worker", "shard-worker")
CELERY = ("celery-scheduler", *WORKERS)
AIRFLOW = ("init", "api-server", "scheduler", "dag-processor", "triggerer", *CELERY)


def example() -> dict[str, str]:
    """Name and value of every line of .env.example."""
    return values(PROJECT / ".env.example")


def values(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def conditions(service: str) -> dict[str, str]:
    """What a service waits for, apart from what may be missing."""
    waits = SERVICES[service].get("depends_on", {})
    return {name: wait["condition"] for name, wait in waits.items() if wait.get("required", True)}


def active(*profiles: str) -> set[str]:
    """The services that Compose starts with these profiles: those of one of them, and those of none."""
    return {
        name
        for name, service in SERVICES.items()
        if not service.get("profiles") or set(profiles) & {*service["profiles"]}
    }
