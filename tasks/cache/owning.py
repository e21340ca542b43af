"""Transactions of the tables' owner: who writes every day may not remove predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from tasks.cache.database import is_sqlite, reading, writing
from tasks.cache.schema import SCHEMA
from tasks.errors import ConfigurationError


@contextmanager
def owning(engine: Engine, doing: str) -> Iterator[Connection]:
    """A transaction in which predictions may be removed. Raises ConfigurationError; `doing` is the verb of its message."""
    with writing(engine) as connection:
        _check(connection, doing)
        yield connection


def check_owner(engine: Engine, doing: str) -> None:
    """Raises ConfigurationError where this role is not the owner of the tables, before any work is done."""
    with reading(engine) as connection:
        _check(connection, doing)


def _check(connection: Connection, doing: str) -> None:
    if is_sqlite(connection):
        return
    owner = connection.execute(
        text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass(:name)"),
        {"name": f"{SCHEMA}.prediction"},
    ).scalar_one()
    if not owner:
        raise ConfigurationError(
            f"The role {connection.engine.url.username} may not {doing}. Give the command again as the owner of the cache: "
            "--database with the URL that ./afterimage migrate is run with; in Airflow, as the Connection afterimage_owner."
        )
