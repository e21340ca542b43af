"""Rows a second into a ledger of millions, what a replay changes, and how many bytes a prediction takes."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import text

from benchmarks.scale.ledger import LABELS, Cache
from tasks.cache import bulk
from tasks.cache.commits import PREDICTION, Scope, commit, first_insert_wins, prediction_row
from tasks.cache.database import writing
from tasks.cache.listed import stage_page
from tasks.cache.outcome import Finished, Progress, Scored
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.cache.schema import prediction
from tasks.cache.staging import assign_shards
from tasks.listing import Page
from tasks.storage.base import ImageObject
from tasks.window import EVERYTHING

BATCH = 20_000
COMMIT = 2_000


def upsert_rates(cache: Cache, batches: int, say: Callable[[str], None]) -> tuple[list[float], int]:
    """Predictions a second of each batch of new ones, top-5; and how many rows change when all are written once more."""
    scope = Scope(Staging(1, 1), 0, cache.model_no, "decoder", False)
    made = [_predictions(scope, number) for number in range(batches)]
    rates = []
    for number, rows in enumerate(made):
        started = time.perf_counter()
        assert _write(cache, rows) == len(rows)
        rates.append(len(rows) / (time.perf_counter() - started))
        say(f"batch {number + 1}/{batches}: {rates[-1]:,.0f} rows/s")
    replayed = sum(_replayed(cache, rows) for rows in made)
    return rates, replayed


def commit_rate(cache: Cache, commits: int) -> float:
    """Images a second of whole commits of 2,000: predictions, images, quarantine, outcomes and the shard's progress."""
    images = [
        ImageObject(f"new/{time.time_ns()}/{number:09}.jpg", f"{number:032x}", 100_000, datetime.now(UTC))
        for number in range(commits * COMMIT)
    ]
    start = RunStart(
        RunKey("bench", str(time.time_ns())), "manual", None, "s3://new", "", EVERYTHING, force=False, listing={}
    )
    staging = open_run(cache.engine, start)
    stage_page(cache.engine, staging, Page(images, 0))
    with writing(cache.engine) as connection:
        assign_shards(connection, staging, len(images), 1, 1)
    scope, draw = Scope(staging, 0, cache.model_no, "decoder", False), random.Random(1)
    done = [Finished(one.key, one, _digest(one.key), scored=_scored(draw)) for one in images]
    started = time.perf_counter()
    for place in range(0, len(done), COMMIT):
        some = done[place : place + COMMIT]
        assert len(commit(cache.engine, scope, some, Progress(COMMIT, COMMIT, 1.0, {}, "cpu"))) == COMMIT
    return len(done) / (time.perf_counter() - started)


def bytes_per_prediction(cache: Cache) -> dict[str, float]:
    """{part: bytes of each prediction}, of the model's partition: the table, its indexes, and all of it."""
    sizes = "SELECT c.relname, pg_table_size(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = "
    with writing(cache.engine) as connection:
        rows = connection.execute(text("SELECT count(*) FROM afterimage.prediction")).scalar_one()
        partition = f"afterimage.prediction_{cache.model_no}"
        whole = connection.execute(text("SELECT pg_total_relation_size(:name)"), {"name": partition}).scalar_one()
        parts: dict[str, int] = dict(
            connection.execute(text(f"{sizes} CAST(:name AS regclass)"), {"name": partition}).all()
        )
    return {**{name: size / rows for name, size in parts.items()}, "all": whole / rows}


def bytes_per_image(cache: Cache) -> float:
    """Bytes of each row of `image`, with all its indexes; before anything was written to it but by the ledger."""
    with writing(cache.engine) as connection:
        query = "SELECT pg_total_relation_size('afterimage.image') / count(*)::float FROM afterimage.image"
        return float(connection.execute(text(query)).scalar_one())


def _write(cache: Cache, rows: list[bulk.Row]) -> int:
    with writing(cache.engine) as connection:
        made = bulk.write(connection, prediction, PREDICTION, rows, first_insert_wins)
        return 0 if made is None else len(made.all())


def _replayed(cache: Cache, rows: list[bulk.Row]) -> int:
    """Rows that the server inserts, updates and deletes when the same ones are written once more."""
    query = (
        "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables WHERE relid = CAST(:name AS regclass)"
    )
    partition = {"name": f"afterimage.prediction_{cache.model_no}"}
    with writing(cache.engine) as connection:
        # What this connection did before may be in it as well.
        before = connection.execute(text(query), partition).scalar_one()
        bulk.write(connection, prediction, PREDICTION, rows, first_insert_wins)
        return int(connection.execute(text(query), partition).scalar_one() - before)


def _predictions(scope: Scope, batch: int) -> list[bulk.Row]:
    draw, moment = random.Random(batch), datetime.now(UTC)
    return [prediction_row(scope, _digest(f"{moment} {number}"), _scored(draw), moment) for number in range(BATCH)]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _scored(draw: random.Random) -> Scored:
    score = 1 - draw.random() ** 4
    entries = tuple((draw.randrange(LABELS), (1 - score) / (place + 2)) for place in range(4))
    return Scored(draw.randrange(LABELS), "", score, draw.random() * score, 1 - score, entries)
