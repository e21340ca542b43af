"""The cache that the pages read: the same that the DAGs use, with few connections and little patience.

A slow query must not hold up Airflow's API server, whose threads all plugins share.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

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
    """The environment's settings; the Connection afterimage_database wins over them, as in the DAGs."""
    url = _connection_url("afterimage_database")
    return load_settings(**({} if url is None else {"database": url}))


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


def _connection_url(name: str) -> str | None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

    try:
        return str(Connection.get(name).get_uri())
    except (AirflowException, AirflowRuntimeError):
        return None
