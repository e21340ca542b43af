"""The cache that the pages read: the same that the DAGs use, with few connections and little patience.

A slow query must not hold up Airflow's API server, whose threads all plugins share.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from tasks.cache.database import connect
from tasks.cache.migrating import prepare
from tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

PAGE_TIMEOUT = timedelta(seconds=2)
EXPORT_TIMEOUT = timedelta(minutes=10)
PAGE_CONNECTIONS = 4
EXPORT_CONNECTIONS = 2


@cache
def settings() -> Settings:
    """The environment's settings; the Connections afterimage_database and afterimage_storage win over them, as in the DAGs."""
    given: dict[str, Any] = {}
    database, storage = _connection("afterimage_database"), _connection("afterimage_storage")
    if database is not None:
        given["database"] = database.get_uri()
    if storage is not None:
        given |= {
            "s3_access_key": storage.login or None,
            "s3_secret_key": storage.password or None,
            "s3_endpoint": storage.extra_dejson.get("endpoint_url"),
            "s3_region": storage.extra_dejson.get("region_name"),
        }
    return load_settings(**{name: value for name, value in given.items() if value is not None})


@cache
def page_cache() -> Engine:
    """For pages: a statement that takes longer than PAGE_TIMEOUT is ended. Raises MigrationNeeded."""
    return _opened(PAGE_TIMEOUT, PAGE_CONNECTIONS)


@cache
def export_cache() -> Engine:
    """For exports, which may take minutes; so many run at the same time. Raises MigrationNeeded."""
    return _opened(EXPORT_TIMEOUT, EXPORT_CONNECTIONS)


def _opened(patience: timedelta, connections: int) -> Engine:
    """Migrated where it is SQLite, which a first look may even make; checked where it is PostgreSQL."""
    engine = connect(settings().database_url, patience, connections)
    prepare(engine)
    return engine


def _connection(name: str) -> Any:
    """One of Airflow's Connections; None where there is none of that name."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

    try:
        return Connection.get(name)
    except (AirflowException, AirflowRuntimeError):
        return None
