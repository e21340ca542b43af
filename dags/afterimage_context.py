"""From Airflow's context to the program's own values: which run this is, what was asked for, which secrets apply."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import Connection, get_current_context
from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

from tasks.pipelines import Pipeline
from tasks.plan import RunRequest
from tasks.settings import Settings, connection_overrides, load_settings

log = logging.getLogger(__name__)


def current_request(pipeline: Pipeline, *, is_announced: bool = False) -> RunRequest:
    """The run that the current task belongs to. A run without a logical date has no interval in its context.

    With `is_announced` it looks at the keys that started it, or that the form named, and at nothing else.
    """
    from tasks.cache.runs import RunKey
    from tasks.location import parse_location
    from tasks.window import EVENTS, resolve

    context: Any = get_current_context()
    params, dag_run = context["params"], context["dag_run"]
    run_type = EVENTS if is_announced else str(getattr(dag_run.run_type, "value", dag_run.run_type))
    window = resolve(
        run_type=run_type,
        window_start=params.get("window_start"),
        window_end=params.get("window_end"),
        data_interval_start=context.get("data_interval_start"),
        data_interval_end=context.get("data_interval_end"),
        templated=parse_location(pipeline.images).template is not None,
        lookback_days=pipeline.lookback_days,
    )
    return RunRequest(
        key=RunKey(dag_run.dag_id, dag_run.run_id),
        run_type=run_type,
        pipeline=pipeline,
        name=pipeline.name,
        window=window,
        force=params["force"],
        limit=params["limit"],
        dry_run=params["dry_run"],
        keys=announced_keys(context) if is_announced else None,
    )


def announced_keys(context: Any) -> tuple[str, ...]:
    """The keys in the asset events that started a run, and in its form; for a run that is cleared they are the same again."""
    keys = set(context["params"].get("keys") or ())
    for events in (context.get("triggering_asset_events") or {}).values():
        for event in events:
            keys |= _keys_of(event.extra or {})
    return tuple(sorted(keys))


def _keys_of(extra: dict[str, Any]) -> set[str]:
    """Anybody who may may make an event of an asset by hand, and write into it what he likes."""
    payload = extra.get("payload", extra)
    keys = payload.get("keys") if isinstance(payload, dict) else None
    if not isinstance(keys, list):
        log.warning("An event of the asset has no list of keys: %.500r", extra)
        return set()
    return {key for key in keys if isinstance(key, str)}


def current_settings() -> Settings:
    """The environment's settings; the Connections afterimage_database and afterimage_storage win over them."""
    database, storage = _connection("afterimage_database"), _connection("afterimage_storage")
    return load_settings(**connection_overrides(database, storage))


def owner_settings() -> Settings:
    """The same, with the cache as its owner opens it, where the Connection afterimage_owner says how."""
    database, storage = (
        _connection("afterimage_owner") or _connection("afterimage_database"),
        _connection("afterimage_storage"),
    )
    return load_settings(**connection_overrides(database, storage))


def _connection(name: str) -> Connection | None:
    try:
        return Connection.get(name)  # type: ignore[no-any-return]
    except (AirflowException, AirflowRuntimeError):
        return None
