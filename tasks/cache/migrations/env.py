"""Alembic's entry, over the connection that migrating.py opened.

In SQLite it runs inside one transaction of that connection. In PostgreSQL each migration is a transaction of its own, which it
may leave for what takes long or must stand alone, so that nobody waits for it.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from tasks.cache import roles
from tasks.cache.database import is_sqlite
from tasks.cache.migrating import VERSION_TABLE
from tasks.cache.schema import SCHEMA, metadata

connection = context.config.attributes["connection"]


def give_rights(*_context: Any, **_step: Any) -> None:
    """New tables and views have their rights as soon as anybody sees them."""
    if not is_sqlite(connection) and roles.have_been_granted(connection):
        roles.grant(connection)


context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=None if is_sqlite(connection) else SCHEMA,
    include_schemas=True,
    render_as_batch=is_sqlite(connection),
    on_version_apply=give_rights,
    transaction_per_migration=not is_sqlite(connection),
)
if is_sqlite(connection):
    context.run_migrations()
else:
    with context.begin_transaction():
        context.run_migrations()
