"""Which of Airflow's executors runs the shards: AFTERIMAGE_EXECUTOR."""

from __future__ import annotations

from typing import Any

from tasks.errors import ConfigurationError


def shard_options(executor: str) -> dict[str, Any]:
    """Keyword arguments of `@task` for predict_and_upsert; none where Airflow's default executor decides."""
    if executor in ("", "local"):
        return {}
    if executor == "celery":
        return {"executor": "CeleryExecutor"}
    raise ConfigurationError(f"AFTERIMAGE_EXECUTOR is {executor!r}. Set it to local or celery, or unset it.")
