"""Alembic's entry: it runs inside the transaction that migrating.py opened."""

from __future__ import annotations

from alembic import context

from tasks.cache.database import is_sqlite
from tasks.cache.migrating import VERSION_TABLE
from tasks.cache.schema import SCHEMA, metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=None if is_sqlite(connection) else SCHEMA,
    include_schemas=True,
    render_as_batch=is_sqlite(connection),
)
context.run_migrations()
