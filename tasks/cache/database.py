"""Engines and transactions, alike for SQLite and PostgreSQL.

`reading` and `writing` are the only ways to a connection. A writer on SQLite begins IMMEDIATE: a transaction that
reads first and writes later would be refused at once, whatever the busy time-out says.
"""

from __future__ import annotations

import functools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from tasks.cache import refusals
from tasks.cache.schema import SCHEMA
from tasks.errors import ConfigurationError, DatabaseUnavailable

log = logging.getLogger(__name__)

Given = ParamSpec("Given")
Result = TypeVar("Result")

BUSY_TIMEOUT = timedelta(seconds=60)
POOL_TIMEOUT = timedelta(seconds=5)


def connect(url: str, statement_timeout: timedelta | None = None, most: int | None = None) -> Engine:
    """An engine for a database URL; PostgreSQL goes through psycopg 3.

    `statement_timeout` bounds every statement in PostgreSQL and every transaction in SQLite, so that a killed task leaves no
    query running. `most` bounds the connections; who needs one more waits for it, at most POOL_TIMEOUT.
    Raises ConfigurationError for URLs of other databases.
    """
    parsed = _parse(url)
    waits = POOL_TIMEOUT.total_seconds()
    pool: dict[str, Any] = {} if most is None else {"pool_size": most, "max_overflow": 0, "pool_timeout": waits}
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite(parsed, pool)
        if statement_timeout is not None:
            event.listen(engine, "begin", partial(_set_deadline, statement_timeout.total_seconds()))
        return engine
    options = str(parsed.query.get("options", ""))
    if statement_timeout is not None:
        options += f" -c statement_timeout={int(statement_timeout.total_seconds() * 1000)}"
    if most is not None:
        # Whose connections are few asks for little at a time: thousands of rows by their keys are there before millions are read.
        options += " -c random_page_cost=1.1"
    return create_engine(
        parsed,
        pool_pre_ping=True,
        connect_args={"options": options, "connect_timeout": 10, "application_name": "afterimage"},
        **pool,
    )


def cache_name(engine: Engine) -> str:
    """Which database this is, as far as all hosts agree on it: its kind and its name, without host and password."""
    return f"{engine.dialect.name} {engine.url.database}"


def described(engine: Engine) -> str:
    """The URL of a database for messages: without its password, and of its query the host alone, which may hold one too."""
    shown = {name: value for name, value in engine.url.query.items() if name == "host"}
    return engine.url.set(query=shown).render_as_string(hide_password=True)


def is_sqlite(engine: Engine | Connection) -> bool:
    """Whether this is SQLite, which is for one host and migrates itself."""
    return engine.dialect.name == "sqlite"


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reads; what is written on it is rolled back."""
    with _named(engine), engine.connect() as connection:
        yield connection


@contextmanager
def reading_one_moment(engine: Engine) -> Iterator[Connection]:
    """As reading; all its questions are answered as of the first one, whatever others write meanwhile."""
    with reading(engine) as connection:
        if not is_sqlite(engine):  # There a transaction reads what was there when it began to.
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end of the block, rolled back where it raises."""
    with _named(engine), engine.execution_options(writes=True).begin() as connection:
        yield connection


# Of SQLite's machine between two looks at the clock: some tenths of a millisecond.
_STEPS = 10_000

_ATTEMPTS = 5
# A server that restarts or fails over is back within seconds; for longer the task fails, and is tried again as a whole.
_PATIENCE_SECONDS = 15.0


def repeated(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """For a function that is one transaction: run it again where it was the victim of a deadlock, or its connection was lost.

    A connection that is lost during COMMIT leaves open whether the transaction was kept, so the function must be right
    either way. Bounded: 5 attempts, the last of them within 15 s after the first failure; then the error is raised.
    """

    @functools.wraps(function)
    def call(*arguments: Given.args, **named: Given.kwargs) -> Result:
        deadline = None
        for attempt in range(1, _ATTEMPTS):
            try:
                return function(*arguments, **named)
            except (DBAPIError, DatabaseUnavailable) as error:
                deadline = deadline or time.monotonic() + _PATIENCE_SECONDS
                pause = _pause(error, attempt)
                if pause is None or time.monotonic() + pause > deadline:
                    raise
                log.info("%s is repeated after attempt %d: %s", function.__name__, attempt, error)
                time.sleep(pause)
        return function(*arguments, **named)

    return call


def _pause(error: BaseException, attempt: int) -> float | None:
    """Seconds until the next attempt; None where none would help."""
    found = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
    if not isinstance(found, DBAPIError):
        return None
    if refusals.is_victim(found):
        return random.uniform(0, 0.1 * attempt)  # noqa: S311  # so that two victims do not meet again
    return 0.1 * 2**attempt if refusals.is_lost(found) else None


@contextmanager
def _named(engine: Engine) -> Iterator[None]:
    """Say which database refuses, how, and what to do; its password stays hidden."""
    try:
        yield
    except DBAPIError as error:
        told = refusals.explain(error)
        if told is None:
            raise
        raise DatabaseUnavailable(f"The database {described(engine)} {told}") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number.
        raise ConfigurationError(
            "AFTERIMAGE_DATABASE is not a database URL. Write sqlite:////path/file.db or postgresql://user:password@host/name."
        ) from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg2"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite" and (parsed.host or parsed.username or parsed.password or parsed.port):
        raise ConfigurationError(
            "AFTERIMAGE_DATABASE names a host, and SQLite is a file. Write sqlite:////path/file.db with all slashes."
        )
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigurationError(f"AFTERIMAGE_DATABASE names {parsed.drivername!r}. Use sqlite or postgresql.")
    if "@" in (parsed.host or ""):  # What stands before it is the end of a password, and hosts are in messages.
        raise ConfigurationError("AFTERIMAGE_DATABASE holds an @ before the host's. Write it as %40 in the password.")
    return parsed


def _sqlite(url: URL, pool: dict[str, Any]) -> Engine:
    if url.database and url.database != ":memory:":
        # Absolute, so that two processes in different folders see that they mean different files.
        try:
            url = url.set(database=str(Path(url.database).resolve()))
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"AFTERIMAGE_DATABASE names the file {url.database!r}, whose folder cannot be made: {error}. Name another one."
            ) from None
    options = {"timeout": BUSY_TIMEOUT.total_seconds(), "isolation_level": None}
    engine = create_engine(url, connect_args=options, **pool)
    engine = engine.execution_options(schema_translate_map={SCHEMA: None})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # WAL lets readers and one writer work at the same time; NORMAL loses no committed row when a process is killed.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _set_deadline(seconds: float, connection: Connection) -> None:
    """SQLite knows no statement time-out, but asks now and then whether to go on."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    deadline = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
