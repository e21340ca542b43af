"""The rights of those who use a cache in PostgreSQL: roles.sql says which, and who runs it first."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text

from tasks.cache.schema import SCHEMA

SCRIPT = Path(__file__).with_name("roles.sql")

WRITER, READER = "afterimage_writer", "afterimage_reader"


def grant(connection: Connection) -> None:
    """Give the tables and views of this database their rights, and make the two roles where the server lacks them."""
    connection.exec_driver_sql(SCRIPT.read_text(encoding="utf-8"))


def have_been_granted(connection: Connection) -> bool:
    """Whether roles.sql ran in this database: the roles alone may belong to another cache of the server."""
    query = text("SELECT has_schema_privilege(to_regrole(:role)::oid, to_regnamespace(:schema)::oid, 'USAGE')")
    return bool(connection.execute(query, {"role": WRITER, "schema": SCHEMA}).scalar_one())
