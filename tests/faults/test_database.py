"""The database goes away, is full, takes no writes or has no room for one more: the task fails at once, and no image is blamed.

The moments are held open by the database itself: a lock, a trigger or a stand-by that does not exist.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tasks.cache import database
from tasks.cache.runs import RunKey
from tasks.errors import DatabaseUnavailable
from tests.faults.held import HeldShard
from tests.faults.oracle import settle
from tests.faults.postgres import (
    USER,
    WAITS_FOR_LOCK,
    WAITS_FOR_STANDBY,
    OwnPostgres,
    locked,
    own_database,
    own_postgres,
)
from tests.faults.record import record
from tests.faults.small_disk import filled, seen_read_only, small_disk
from tests.faults.victim import CALM, end_victim
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

IMAGES = 120
COMMIT = 40  # more rows than fit on a page of the database, so that a full disk is noticed


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipeline of all tests here."""
    folder = tmp_path_factory.mktemp("database")
    write_pictures(folder / "images", IMAGES)
    model = write_small_bundle(folder / "model")
    return {"images": str(folder / "images"), "model": str(model), "commit_images": COMMIT}


@pytest.fixture(scope="module")
def calm(home: Path, table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of a run that nobody disturbs."""
    runner = Runner(home, f"sqlite:///{tmp_path_factory.mktemp('calm') / 'calm.db'}", **table)
    runner.run()
    return runner.predictions()


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture
def url(server: OwnPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    with own_database(server, f"cache_{abs(hash(request.node.name)) % 10**9}") as url:
        yield url


@pytest.fixture
def runner(home: Path, table: dict[str, Any], url: str) -> Runner:
    return new_runner(home, table, url)


def new_runner(home: Path, table: dict[str, Any], url: str) -> Runner:
    return Runner(home, url, {"batch_size": 8, "readers": 4}, **table)


def survived(name: str, runner: Runner, calm: dict[str, Any], injected: int, answer: str) -> None:
    """Nobody was quarantined, one clean run settles, and the fault is written down."""
    assert runner.rows("SELECT * FROM failure") == []
    settled = settle(runner, calm)
    assert len(runner.predictions()) == IMAGES
    record("database", name, injected=injected, answer=answer, lost=settled.lost, doubled=settled.doubled)


def test_a_server_that_stops_at_once_during_an_upsert(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any]
) -> None:
    with HeldShard(runner) as held, locked(server, runner.settings.database_url, "work_item"):
        held.go()
        server.wait_for_backends(f"{WAITS_FOR_LOCK} AND query LIKE 'UPDATE afterimage.work_item%'")
        server.stop_at_once()
        try:
            held.refused("cannot be reached: .* Start it, or correct AFTERIMAGE_DATABASE")
        finally:
            server.start()
    assert held.closed() == COMMIT
    answer = "repeated for some seconds, then the task fails; what was committed stays"
    survived("PostgreSQL stopped at once during an upsert", runner, calm, 1, answer)


def test_a_server_that_is_back_within_seconds_fails_nothing(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any]
) -> None:
    with HeldShard(runner) as held, locked(server, runner.settings.database_url, "work_item"):
        held.go()
        server.wait_for_backends(WAITS_FOR_LOCK)
        server.stop_at_once()
        server.start()
        assert held.end() == {"predicted": IMAGES}
    answer = "the transaction is repeated when the server is back"
    survived("PostgreSQL restarted at once during an upsert", runner, calm, 1, answer)


def test_a_connection_that_is_terminated_during_an_upsert(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks.cache.database")
    with HeldShard(runner) as held:
        with locked(server, runner.settings.database_url, "work_item"):
            held.go()
            struck = server.terminate(server.wait_for_backends(WAITS_FOR_LOCK))
        assert held.end() == {"predicted": IMAGES}
    assert "commit is repeated after attempt 1" in caplog.text
    survived("connection terminated during an upsert", runner, calm, struck, "the transaction is repeated, and kept")


def test_connections_that_are_terminated_again_and_again(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any]
) -> None:
    struck = 0
    with HeldShard(runner) as held, locked(server, runner.settings.database_url, "work_item"):
        held.go()
        while not held.is_over:
            struck += server.terminate(server.backends(WAITS_FOR_LOCK))
        held.refused("was lost on the way")
    assert struck == 5
    assert held.closed() == COMMIT
    answer = "repeated, 5 attempts, then the task fails; what was committed stays"
    survived("connection terminated at every attempt", runner, calm, struck, answer)


def test_a_connection_that_dies_in_commit_before_it_is_done(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any]
) -> None:
    name = str(make_url(runner.settings.database_url).database)
    with HeldShard(runner) as held:
        with waiting_in_commit(server, name):
            held.go()
            struck = server.terminate(server.wait_for_backends("wait_event = 'advisory' AND query = 'COMMIT'"))
            assert held.closed() == COMMIT, "it was rolled back"
        assert held.end() == {"predicted": IMAGES}
    answer = "the transaction was rolled back; it is repeated, and kept"
    survived("connection lost in COMMIT, which was not done", runner, calm, struck, answer)


@contextmanager
def waiting_in_commit(server: OwnPostgres, name: str) -> Iterator[None]:
    """A trigger that runs in COMMIT, before anything lasts, and waits for a lock that is ours."""
    function = "BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END"
    server.tell(f"CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS '{function}'", name)
    server.tell(
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON afterimage.prediction DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()",
        name,
    )
    with server.admin(name) as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        yield


def test_a_connection_that_dies_in_commit_after_it_was_done(
    server: OwnPostgres, runner: Runner, calm: dict[str, Any]
) -> None:
    """PostgreSQL commits, waits for a stand-by before it says so, and is ended while it waits: nobody ever hears of it."""
    with HeldShard(runner) as held:
        with locked(server, runner.settings.database_url, "work_item"):
            held.go()
            server.wait_for_backends(WAITS_FOR_LOCK)
            server.configure("synchronous_standby_names", "nobody")
        try:
            struck = server.terminate(server.wait_for_backends(f"{WAITS_FOR_STANDBY} AND query = 'COMMIT'"))
            again = server.wait_for_backends(WAITS_FOR_STANDBY)
            assert held.closed() == 2 * COMMIT, "it was kept, although its connection died"
            assert again
        finally:
            server.configure("synchronous_standby_names", None)
        assert held.end() == {"predicted": IMAGES}
    answer = "the transaction was kept; the repeated one finds its rows closed and adds nothing"
    survived("connection lost in COMMIT, which was done", runner, calm, struck, answer)


def test_no_connection_is_left_when_a_run_begins(server: OwnPostgres, runner: Runner, calm: dict[str, Any]) -> None:
    plain = make_url(runner.settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as taken:
        with pytest.raises(psycopg.OperationalError, match="connection slots"):  # noqa: PT012  # which one, is unknown
            while True:
                taken.enter_context(psycopg.connect(plain))
        with pytest.raises(DatabaseUnavailable, match=r"has no connection left: .*Raise max_connections"):
            runner.run()
    survived("no connection left when a run begins", runner, calm, 1, "the task fails at once")


def test_no_connection_is_left_for_the_next_commit(server: OwnPostgres, runner: Runner, calm: dict[str, Any]) -> None:
    with HeldShard(runner) as held:
        server.tell(f"ALTER ROLE {USER} CONNECTION LIMIT 0")
        try:
            struck = server.terminate(server.backends("true"))
            held.go()
            held.refused("has no connection left")
        finally:
            server.tell(f"ALTER ROLE {USER} CONNECTION LIMIT -1")
    assert held.closed() == COMMIT
    answer = "repeated for some seconds, then the task fails; what was committed stays"
    survived("no connection left for the next commit", runner, calm, struck, answer)


def test_a_primary_that_becomes_a_stand_by(server: OwnPostgres, runner: Runner, calm: dict[str, Any]) -> None:
    with HeldShard(runner) as held:
        server.configure("default_transaction_read_only", "on")
        try:
            held.go()
            held.refused("takes no writes: .*name the primary in AFTERIMAGE_DATABASE")
        finally:
            server.configure("default_transaction_read_only", None)
    assert held.closed() == COMMIT
    survived("PostgreSQL takes no writes any more", runner, calm, 1, "the task fails at once; what was committed stays")


def test_a_disk_of_postgresql_that_is_full(
    server: OwnPostgres, home: Path, table: dict[str, Any], calm: dict[str, Any]
) -> None:
    with small_disk(server.folder / "disk", 32) as disk:
        if server.user is not None:
            shutil.chown(disk, server.user)
        server.tell(f"CREATE TABLESPACE small LOCATION '{disk}'")
        with own_database(server, "on_a_small_disk", "TABLESPACE small") as url:
            runner = new_runner(home, table, url)
            with HeldShard(runner) as held, filled(disk) as taken:
                assert taken > 0
                held.go()
                held.refused("has no room on its disk: .*No space left on device.*Make room there")
            assert held.closed() == COMMIT
            answer = "the task fails at once; what was committed stays"
            survived("disk of PostgreSQL full during an upsert", runner, calm, 1, answer)
        server.tell("DROP TABLESPACE small")


def test_a_disk_of_sqlite_that_is_full(home: Path, table: dict[str, Any], tmp_path: Path, calm: dict[str, Any]) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        runner = new_runner(home, table, f"sqlite:///{disk / 'cache.db'}")
        with HeldShard(runner) as held, filled(disk) as taken:
            assert taken > 0
            held.go()
            held.refused("has no room on its disk")
        assert held.closed() == COMMIT
        answer = "the task fails at once; what was committed stays"
        survived("disk of SQLite full during an upsert", runner, calm, 1, answer)


LOCK_FILE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_file_of_sqlite_that_another_process_holds(
    home: Path, table: dict[str, Any], tmp_path: Path, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(seconds=1))
    file = tmp_path / "cache.db"
    runner = new_runner(home, table, f"sqlite:///{file}")
    with HeldShard(runner) as held:
        command = [sys.executable, "-c", LOCK_FILE, str(file)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            held.go()
            held.refused("is held by another process for longer than the busy time-out")
            holder.communicate("")
    assert held.closed() == COMMIT
    answer = "waits for the busy time-out, then the task fails; what was committed stays"
    survived("SQLite file held by another process", runner, calm, 1, answer)


def test_a_file_of_sqlite_that_takes_no_writes(
    home: Path, table: dict[str, Any], tmp_path: Path, calm: dict[str, Any]
) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        runner = new_runner(home, table, f"sqlite:///{disk / 'cache.db'}")
        runner.run(limit=COMMIT)
        with seen_read_only(disk, tmp_path / "seen") as seen:
            # In a process of its own: SQLite shares what it knows of a file among all connections of a process.
            other = new_runner(home, table, f"sqlite:///{seen / 'cache.db'}")
            refused = end_victim(other, tmp_path, CALM, RunKey("test", "read-only"))
        assert refused.code == 1
        assert "takes no writes: " in refused.error
        survived("SQLite file takes no writes", runner, calm, 1, "the task fails at once")


def test_what_is_repeated_is_bounded() -> None:
    """The pauses of all attempts together; a server that stays away must not hold a slot of a GPU for long."""
    lost = DatabaseUnavailable("gone")
    lost.__cause__ = database.DBAPIError(None, None, psycopg.OperationalError("gone"))
    pauses = [database._pause(lost, attempt) or 0.0 for attempt in range(1, database._ATTEMPTS)]
    assert 2 < sum(pauses) < database._PATIENCE_SECONDS
