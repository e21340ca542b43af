"""Bring the cache's tables to the version of this program, or say that they are not.

SQLite migrates itself. PostgreSQL is migrated by `./afterimage migrate`, and tasks only check: a worker may lack the
right to change tables, and twenty workers should not try at once.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from tasks.cache.database import is_sqlite, reading, writing
from tasks.cache.schema import SCHEMA
from tasks.errors import MigrationNeeded

# Alembic tells of every plugin that it loads while it is imported; nobody who runs a pipeline wants to read that.
logging.getLogger("alembic").setLevel(logging.WARNING)

from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402
from alembic.runtime.migration import MigrationContext  # noqa: E402
from alembic.script import ScriptDirectory  # noqa: E402

VERSION_TABLE = "afterimage_version"

# pg_advisory_xact_lock takes a number; any constant does, as long as nobody else in this database uses it.
_LOCK = 7_265_110_391


def prepare(engine: Engine) -> None:
    """Called before every use of the cache: migrate SQLite, check PostgreSQL. Raises MigrationNeeded."""
    current, head = version(engine), head_version()
    if current == head:
        return
    if is_sqlite(engine) and (current is None or current in _known_versions()):
        migrate(engine)
        return
    where = engine.url.render_as_string(hide_password=True)
    raise MigrationNeeded(
        f"The cache {where} is at version {current or 'none'}, and this program needs {head}. "
        "Run ./afterimage migrate; if it is newer than this program, update the program."
    )


def migrate(engine: Engine) -> str:
    """Upgrade to the newest version and return it. Processes that race wait for each other."""
    with writing(engine) as connection:
        if not is_sqlite(engine):
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        command.upgrade(_config(connection), "head")
    return head_version()


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to an older version; `base` removes everything."""
    with writing(engine) as connection:
        command.downgrade(_config(connection), revision)


def version(engine: Engine) -> str | None:
    """The version that the tables have, None where there are none."""
    with reading(engine) as connection:
        schema = None if is_sqlite(engine) else SCHEMA
        if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
            return None
        options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
        return MigrationContext.configure(connection, opts=options).get_current_revision()


def head_version() -> str:
    """The version that this program was written for."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


def _known_versions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
