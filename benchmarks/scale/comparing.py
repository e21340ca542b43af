"""Keys a second of the comparison with the cache alone: pages that somebody else has listed, against a ledger of millions.

Three ways, in turn: by the marks of the images (what a listing does), by the predictions (as without marks), and by staging: COPY
into work_item and one UPDATE with an anti-join, as below a million objects.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import text

from benchmarks.rounds import in_turn
from benchmarks.scale.ledger import Cache
from benchmarks.scale.objects import object_of
from tasks.cache.database import writing
from tasks.cache.known import Ledger
from tasks.cache.listed import stage_page
from tasks.cache.models import mark_of
from tasks.cache.runs import RunKey, RunStart, open_run, source_number
from tasks.cache.staging import Rules, classify, refresh_statistics
from tasks.listing import Page
from tasks.range_listing import GROUP_OBJECTS
from tasks.storage.base import ImageObject, Span
from tasks.window import EVERYTHING

MARKS, PREDICTIONS, STAGING = "by marks", "by predictions", "staged, then one anti-join"
PAGES = 20


def comparison_rates(
    cache: Cache, source: str, objects: int, rounds: int, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """{way: keys a second in each round}; every object of the ledger is known."""
    with writing(cache.engine) as connection:
        number, mark = source_number(connection, source), mark_of(connection, cache.model_no)
    started = datetime.now(UTC) + timedelta(days=1)
    by_marks = Ledger(number, cache.model_no, mark, None, started)
    # A mark of another model: all are looked up, and none is changed.
    by_predictions = Ledger(number, cache.model_no, mark + 1, None, started)
    draw = random.Random(0)

    def pages() -> list[list[ImageObject]]:
        starts = [draw.randrange(objects - GROUP_OBJECTS) for _ in range(PAGES)]
        return [[object_of(start + place) for place in range(GROUP_OBJECTS)] for start in starts]

    return in_turn(
        {
            MARKS: lambda: _compared(cache, by_marks, pages()),
            PREDICTIONS: lambda: _compared(cache, by_predictions, pages()),
            STAGING: partial(_staged, cache, source, number, mark, objects),
        },
        rounds,
        say,
    )


def _compared(cache: Cache, ledger: Ledger, pages: list[list[ImageObject]]) -> float:
    started = time.perf_counter()
    for page in pages:
        covers = Span("", page[0].key[:-1], page[-1].key)
        with writing(cache.engine) as connection:
            assert ledger.unknown(connection, page, covers) == []
    return sum(map(len, pages)) / (time.perf_counter() - started)


def _staged(cache: Cache, source: str, source_no: int, mark: int, objects: int) -> float:
    """As many keys as the others, in one range."""
    first = objects // 3
    images = [object_of(first + place) for place in range(PAGES * GROUP_OBJECTS)]
    started = time.perf_counter()
    start = RunStart(
        RunKey("bench", str(time.time_ns())), "manual", None, source, "", EVERYTHING, force=False, listing={}
    )
    staging = open_run(cache.engine, start)
    for place in range(0, len(images), 1_000):
        stage_page(cache.engine, staging, Page(images[place : place + 1_000], 0))
    refresh_statistics(cache.engine)
    with writing(cache.engine) as connection:
        classify(connection, staging, Rules(cache.model_no, mark, "decoder", force=False, limit=None))
    seconds = time.perf_counter() - started
    with writing(cache.engine) as connection:
        counted = "SELECT count(*) FROM afterimage.work_item WHERE run_no = :run_no AND outcome = 'cached'"
        assert connection.execute(text(counted), {"run_no": staging.run_no}).scalar_one() == len(images)
        connection.execute(text("TRUNCATE afterimage.work_item"))
    return len(images) / seconds
