"""The roles of a cache in PostgreSQL, as tests use them: a login for the owner, for the writer and for the reader."""

from __future__ import annotations

from sqlalchemy import Connection, create_engine, make_url, text

from tasks.cache import roles

OWNER, WRITER, READER = "afterimage_test_owner", "afterimage_test_writer", "afterimage_test_reader"

_PASSWORD = "afterimage-test"


def give_roles(url: str) -> None:
    """Hand a new database, opened by a superuser, to an owner who is none, and run roles.sql in it."""
    engine = create_engine(url)
    with engine.begin() as connection:
        _log_in_as(connection, OWNER)
        connection.execute(text(f"ALTER DATABASE {make_url(url).database} OWNER TO {OWNER}"))
        roles.grant(connection)
        _log_in_as(connection, WRITER)
        _log_in_as(connection, READER)
        connection.execute(text(f"GRANT {roles.WRITER} TO {WRITER}"))
        connection.execute(text(f"GRANT {roles.READER} TO {READER}"))
    engine.dispose()


def as_owner(url: str) -> str:
    """The same database, opened by its owner; SQLite has none, and its URL stays."""
    return _as(url, OWNER)


def as_writer(url: str) -> str:
    """The same database, opened as the program opens it."""
    return _as(url, WRITER)


def as_reader(url: str) -> str:
    """The same database, opened by somebody who looks at the views."""
    return _as(url, READER)


def _as(url: str, role: str) -> str:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return url
    return parsed.set(username=role, password=_PASSWORD).render_as_string(hide_password=False)


def _log_in_as(connection: Connection, role: str) -> None:
    """Roles belong to the server, and another process of the tests may make them at the same moment."""
    connection.execute(
        text(
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    )
