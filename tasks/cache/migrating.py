"""Bring the cache's tables to the version of this program, or say that they are not.

SQLite migrates itself. PostgreSQL is migrated by `./afterimage migrate`, and tasks only check: a worker may lack the
right to change tables, and twenty workers should not try at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, column, inspect, select, table, text

from tasks.cache import roles
from tasks.cache.database import described, is_sqlite, reading, writing
from tasks.cache.schema import SCHEMA
from tasks.errors import MigrationNeeded

if TYPE_CHECKING:
    from alembic.config import Config

_SCRIPTS = Path(__file__).parent / "migrations"

VERSION_TABLE = "afterimage_version"

# pg_advisory_lock takes a number; any constant does, as long as nobody else in this database uses it.
_LOCK = 7_265_110_391


def prepare(engine: Engine) -> None:
    """Called before every use of the cache: migrate SQLite, check PostgreSQL. Raises MigrationNeeded."""
    current, head = version(engine), head_version()
    if current == head:
        return
    if is_sqlite(engine) and (current is None or current in _known_versions()):
        migrate(engine)
        return
    raise MigrationNeeded(
        f"The cache {described(engine)} is at version {current or 'none'}, and this program needs {head}. "
        "Run ./afterimage migrate; if it is newer than this program, update the program."
    )


def migrate(engine: Engine) -> str:
    """Upgrade to the newest version and return it. Processes that race wait for each other.

    Where the database has roles (roles.sql), new tables and views get their rights in the transaction that makes them, and rights
    that were changed by hand are what they should be in the end.
    """
    with _alone(engine) as connection:
        _alembic().upgrade(_config(connection), "head")
    if not is_sqlite(engine):
        with writing(engine) as connection:
            if roles.have_been_granted(connection):
                roles.grant(connection)
    return head_version()


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to an older version; `base` removes everything."""
    with _alone(engine) as connection:
        _alembic().downgrade(_config(connection), revision)


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A connection for migrations; who else migrates waits for its end.

    In SQLite it is one transaction. In PostgreSQL each migration is one, so the lock belongs to the session.
    """
    if is_sqlite(engine):
        with writing(engine) as connection:
            yield connection
        return
    with reading(engine) as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
        try:
            yield connection
        finally:
            # What a session holds beyond its transactions would stay with a connection that goes back to the pool.
            connection.invalidate()


def _alembic() -> Any:
    # Alembic tells of every plugin that it loads while it is imported; nobody who runs a pipeline wants to read that.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command

    return command


def version(engine: Engine) -> str | None:
    """The version that the tables have, None where there are none."""
    with reading(engine) as connection:
        schema = None if is_sqlite(engine) else SCHEMA
        if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
            return None
        return connection.execute(
            select(column("version_num")).select_from(table(VERSION_TABLE, schema=schema))
        ).scalar()


def head_version() -> str:
    """The version that this program was written for."""
    return max(_known_versions())


def _known_versions() -> set[str]:
    # From the names of the scripts: every shard asks, and Alembic takes half a second to import.
    return {script.name[:4] for script in (_SCRIPTS / "versions").glob("[0-9]*.py")}


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["connection"] = connection
    return config
