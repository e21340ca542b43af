"""Migration 0006 over a cache that holds predictions: up, down, and up again beside those who use it."""

from __future__ import annotations

import json
import threading
import time
from hashlib import sha256
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from tasks.cache import migrating
from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.schema import SCHEMA, metadata
from tests.database_roles import as_owner, as_reader

PREDICTIONS = 300
# The second model is a cascade: its spec has no labels, and only its best labels have numbers yet.
SPECS = {
    1: {"labels": ["cat", "dog", "tench", "crane", "crane", "é\u202e"]},
    2: {"stages": [{"name": "s"}, {"name": "l"}]},
}
NAMES = ("cat", "dog", "tench", "crane", "é\u202e")


@pytest.fixture
def before(database_url: str) -> Engine:
    """A cache of version 0005 with predictions of two models."""
    engine = connect(as_owner(database_url))
    migrating.downgrade(engine, "0005")
    with writing(engine) as connection:
        run(connection, "INSERT INTO {s}source (source_no, uri) VALUES (1, 's3://bucket')")
        for number, spec in SPECS.items():
            said = {"n": number, "id": str(number) * 64, "spec": json.dumps(spec)}
            run(
                connection,
                "INSERT INTO {s}model (model_no, model_id, name, version, spec, created_at) "
                "VALUES (:n, :id, 'm', '1', :spec, '2026-11-01')",
                **said,
            )
        run(connection, "INSERT INTO {s}pipeline VALUES ('photos', 1, '', 2, '2026-11-01')")
        for index, name in enumerate(NAMES[:2]):
            run(connection, "INSERT INTO {s}model_label VALUES (2, :i, :name)", i=index, name=name)
        for number in range(PREDICTIONS):
            insert_before(connection, number)
    return engine


def run(connection: Connection, statement: str, **values: Any) -> Any:
    schema = "" if is_sqlite(connection) else f"{SCHEMA}."
    return connection.execute(text(statement.format(s=schema)), values)


def insert_before(connection: Connection, number: int) -> None:
    """An image and a prediction as 0005 keeps them."""
    digest = sha256(str(number).encode()).digest()
    run(
        connection,
        "INSERT INTO {s}image VALUES (1, :key, 'e', 1, '2026-11-01', :digest, '2026-11-01', NULL)",
        key=f"{number:06}",
        digest=digest,
    )
    names = [NAMES[(number + step) % 5] for step in range(number % 5 + 1)]
    scores = [round(0.9 / (place + 1) - number / 10_000, 6) for place in range(len(names))]
    model_no = 1 + number % 2
    best = (number % 2) if model_no == 2 else SPECS[1]["labels"].index(names[0])
    names = [NAMES[best], *names[1:]] if model_no == 2 else names
    run(
        connection,
        "INSERT INTO {s}prediction (model_no, digest, label_index, label, score, margin, entropy, top_k, run_no, generation, "
        "predicted_at, cascade_stage) VALUES (:m, :digest, :best, :label, :score, :margin, 0.25, :top_k, :run, 1, "
        "'2026-11-02 03:04:05', :stage)",
        m=model_no,
        digest=digest,
        best=best,
        label=names[0],
        score=scores[0],
        margin=scores[0] / 3,
        top_k=json.dumps([{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]),
        run=number,
        stage=None if model_no == 1 else 1 + number % 4 // 2,
    )


def seen(engine: Engine, view: str = "v_prediction") -> list[dict[str, Any]]:
    """What a user sees, scores to the precision that is promised."""
    with reading(engine) as connection:
        found = run(connection, "SELECT * FROM {s}" + view + " ORDER BY key").mappings().all()
    return [{name: plain(value) for name, value in row.items()} for row in found]


def plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("[{"):
        value = json.loads(value)
    if isinstance(value, list):
        return [(entry["label"], round(entry["score"], 5)) for entry in value]
    return round(value, 5) if isinstance(value, float) else value


def test_users_see_after_it_what_they_saw_before_and_after_it_is_taken_back(before: Engine) -> None:
    expected = seen(before), seen(before, "v_current_prediction")
    assert len(expected[0]) == PREDICTIONS
    assert {row["cascade_stage"] for row in expected[0]} == {None, 1, 2}
    assert {len(row["top_k"]) for row in expected[0]} == {1, 2, 3, 4, 5}

    migrating.migrate(before)
    assert (seen(before), seen(before, "v_current_prediction")) == expected
    migrating.downgrade(before, "0005")
    assert (seen(before), seen(before, "v_current_prediction")) == expected
    migrating.migrate(before)
    assert (seen(before), seen(before, "v_current_prediction")) == expected


def test_with_partitions_in_it_nothing_differs_from_schema_py(before: Engine) -> None:
    migrating.migrate(before)
    if is_sqlite(before):
        return
    options = {
        "version_table": migrating.VERSION_TABLE,
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        "include_object": lambda _thing, name, kind, _reflected, _to: kind != "table" or "prediction_" not in name,
        "compare_type": True,
    }
    with reading(before) as connection:
        partitions = run(
            connection,
            "SELECT c.relname, count(*) FROM {s}prediction p JOIN pg_class c ON c.oid = p.tableoid GROUP BY 1 ORDER BY 1",
        ).all()
        assert partitions == [("prediction_1", PREDICTIONS // 2), ("prediction_2", PREDICTIONS // 2)]
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


@pytest.fixture
def crowded(before: Engine) -> Engine:
    if is_sqlite(before):
        pytest.skip("SQLite has one writer at a time")
    return before


def test_who_writes_meanwhile_loses_nothing_and_readers_hardly_wait(crowded: Engine, postgres_url: str) -> None:
    """An older program goes on until its statements are refused; a long read does not stop the migration for good."""
    written, waits, finished, stop = [PREDICTIONS - 1], [0.0], list[str](), threading.Event()

    def write() -> None:
        engine = connect(as_owner(postgres_url))
        try:
            while not stop.is_set():
                with writing(engine) as connection:
                    insert_before(connection, written[-1] + 1)
                written.append(written[-1] + 1)
        except DBAPIError:
            pass  # The tables are the new program's now.

    def read() -> None:
        engine = connect(as_reader(postgres_url))
        while not stop.is_set():
            started = time.monotonic()
            with reading(engine) as connection:
                run(connection, "SELECT count(*) FROM {s}v_prediction WHERE key < '000010'")
            waits.append(time.monotonic() - started)
            time.sleep(0.02)
        finished.append("read")

    def look_long() -> None:
        with reading(connect(as_reader(postgres_url))) as connection:
            run(connection, "SELECT count(*) FROM {s}v_prediction")
            time.sleep(3)
            finished.append("look_long")

    threads = [threading.Thread(target=work) for work in (write, read, look_long)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        migrating.migrate(crowded)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)

    assert sorted(finished) == ["look_long", "read"], "no reader was turned away"
    assert len(written) > 3
    with reading(crowded) as connection:
        kept = run(connection, "SELECT key FROM {s}v_prediction ORDER BY key").scalars().all()
    assert [int(key) for key in kept] == list(range(written[-1] + 1))
    assert max(waits) < 2.5, "a lock is waited for half a second at a time"


def test_one_that_does_not_get_its_lock_changes_nothing_and_goes_on_when_it_is_run_again(
    crowded: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seen(crowded)
    with crowded.connect() as reader:
        run(reader, "SELECT count(*) FROM {s}prediction")
        with pytest.raises(DBAPIError, match="lock timeout"):
            migrate_with_few_attempts(crowded, monkeypatch)
    assert migrating.version(crowded) == "0005"
    assert seen(crowded) == expected
    migrating.migrate(crowded)
    assert seen(crowded) == expected


def migrate_with_few_attempts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alembic loads the script by itself, so that is where it can be told to be impatient."""
    from alembic.script import ScriptDirectory

    load = ScriptDirectory._load_revisions

    def impatient(self: ScriptDirectory) -> Any:
        for revision in load(self):
            if revision.revision == "0006":
                revision.module.LOCK_ATTEMPTS = 2
            yield revision

    monkeypatch.setattr(ScriptDirectory, "_load_revisions", impatient)
    migrating.migrate(engine)
