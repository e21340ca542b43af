"""The cache that the pages read: the same that the DAGs use, with few connections and little patience.

A slow query must not hold up Airflow's API server, whose threads all plugins share.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from tasks.cache.database import connect
from tasks.cache.migrating import prepare
from tasks.settings import Settings, connection_overrides, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

PAGE_TIMEOUT = timedelta(seconds=2)
EXPORT_TIMEOUT = timedelta(minutes=10)
PAGE_CONNECTIONS = 4
EXPORT_CONNECTIONS = 2


@cache
def settings() -> Settings:
    """The environment's settings; the Connections afterimage_database and afterimage_storage win over them, as in the DAGs."""
    database, storage = _connection("afterimage_database"), _connection("afterimage_storage")
    return load_settings(**connection_overrides(database, storage))


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
