"""Migrations: up, down, and no difference to schema.py, on both databases."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from tasks.cache import migrating
from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.schema import SCHEMA, metadata
from tasks.errors import DatabaseUnavailable, MigrationNeeded
from tests.database_roles import as_owner

VIEWS = {"v_prediction", "v_current_prediction", "v_failure", "v_run", "v_review"}


def names(connection: Connection) -> tuple[set[str], set[str]]:
    schema = None if is_sqlite(connection) else SCHEMA
    found = inspect(connection)
    return set(found.get_table_names(schema)), set(found.get_view_names(schema))


def test_the_migrations_give_the_tables_of_schema_py(database_url: str) -> None:
    engine = connect(database_url)
    with reading(engine) as connection:
        tables, views = names(connection)
        assert tables == {table.name for table in metadata.tables.values()} | {migrating.VERSION_TABLE}
        assert views == VIEWS
        if is_sqlite(connection):
            return
        options = {
            "version_table": migrating.VERSION_TABLE,
            "version_table_schema": SCHEMA,
            "include_schemas": True,
            "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
            "compare_type": True,
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_columns_in_sqlite_are_those_of_schema_py(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'cache.db'}")
    migrating.migrate(engine)
    with reading(engine) as connection:
        for table in metadata.tables.values():
            columns = {column["name"]: column["nullable"] for column in inspect(connection).get_columns(table.name)}
            assert columns == {column.name: bool(column.nullable) for column in table.columns}, table.name


def test_down_and_up_again(database_url: str) -> None:
    engine = connect(as_owner(database_url))
    migrating.downgrade(engine, "base")
    assert migrating.version(engine) is None
    with reading(engine) as connection:
        tables, views = names(connection)
        assert tables <= {migrating.VERSION_TABLE}
        assert views == set()
    migrating.migrate(engine)
    assert migrating.version(engine) == migrating.head_version()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    engine = connect(as_owner(database_url))
    assert migrating.migrate(engine) == migrating.head_version()


def test_postgresql_is_checked_and_never_migrated_by_a_task(empty_postgres_url: str) -> None:
    engine = connect(empty_postgres_url)
    with pytest.raises(MigrationNeeded, match=r"\./afterimage migrate"):
        migrating.prepare(engine)
    assert migrating.version(engine) is None


def test_a_password_is_not_in_the_error(empty_postgres_url: str) -> None:
    from sqlalchemy import make_url

    url = make_url(empty_postgres_url).set(password="canary-4711").render_as_string(hide_password=False)
    with pytest.raises(MigrationNeeded) as error:
        migrating.prepare(connect(url))
    assert "canary-4711" not in str(error.value)


def test_sqlite_migrates_itself_even_when_processes_race(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'cache.db'}"
    script = (
        "import sys\nfrom tasks.cache.database import connect\nfrom tasks.cache.migrating import prepare\n"
        "prepare(connect(sys.argv[1]))"
    )
    racers = [subprocess.Popen([sys.executable, "-c", script, url], stderr=subprocess.PIPE) for _ in range(4)]
    ends = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert [code for _, code in ends] == [0] * 4, ends
    assert migrating.version(connect(url)) == migrating.head_version()


def test_a_cache_from_a_newer_program_is_refused(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'cache.db'}")
    migrating.migrate(engine)
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE {migrating.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(MigrationNeeded, match="update the program"):
        migrating.prepare(engine)


def test_a_statement_ends_when_its_task_would(postgres_url: str) -> None:
    engine = connect(f"{postgres_url}&options=-c%20work_mem%3D5MB", timedelta(seconds=0.2))
    with pytest.raises(OperationalError, match="statement timeout"), reading(engine) as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    with reading(engine) as connection:
        assert connection.execute(text("SHOW work_mem")).scalar_one() == "5MB"


def test_who_asks_for_little_at_a_time_has_it_looked_up(postgres_url: str) -> None:
    """A server that takes its disk for a spinning one would read a model's predictions whole for some thousands of them."""
    engine = connect(f"{postgres_url}&options=-c%20work_mem%3D5MB", most=2)
    with reading(engine) as connection:
        assert connection.execute(text("SHOW random_page_cost")).scalar_one() == "1.1"
        assert connection.execute(text("SHOW work_mem")).scalar_one() == "5MB"
    with reading(connect(postgres_url)) as connection:
        assert connection.execute(text("SHOW random_page_cost")).scalar_one() == "4"


def test_sqlite_ends_a_transaction_that_takes_too_long_and_goes_on_with_the_next(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'cache.db'}", timedelta(seconds=0.2))
    for_ever = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    with pytest.raises(OperationalError, match="interrupted"), reading(engine) as connection:
        connection.execute(for_ever)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    engine = connect("postgresql://me:canary-4711@127.0.0.1:1/nowhere")
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1/nowhere") as error:
        migrating.prepare(engine)
    assert "canary-4711" not in str(error.value)


def test_the_names_of_the_scripts_tell_their_versions_as_alembic_reads_them() -> None:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(migrating.__file__).parent / "migrations"))
    assert migrating._known_versions() == {script.revision for script in scripts.walk_revisions()}
    assert migrating.head_version() == scripts.get_current_head()


def test_a_shard_does_not_wait_for_alembic(tmp_path: Path) -> None:
    code = "import sys; from tasks import road; from tasks.settings import load_settings\n"
    open_it = f"road.open_cache(load_settings(database='sqlite:///{tmp_path}/cache.db'))\n"
    subprocess.run([sys.executable, "-c", code + open_it], check=True)
    subprocess.run([sys.executable, "-c", f"{code}{open_it}assert 'alembic' not in sys.modules"], check=True)
