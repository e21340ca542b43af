"""What listing side by side gains: one worker, and many, over a store that takes as long for a LIST as S3 does.

    python -m benchmarks.listing_together [--objects 200000] [--milliseconds 100] [--workers 16] [--rounds 2]

PostgreSQL, pages of a thousand keys, which are made when they are asked for, so that parsing is left out. A round is one and
many, in turn; the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Engine

from tasks.cache.database import connect
from tasks.cache.migrating import migrate
from tasks.cache.runs import RunKey, RunStart, open_run
from tasks.listing import KeyFilter, Selection
from tasks.location import parse_location
from tasks.range_listing import Source, list_all
from tasks.storage.base import PAGE_OBJECTS, Blob, ImageObject
from tasks.window import EVERYTHING
from tests.conftest import fresh_postgres, serving_postgres

MODIFIED = datetime(2026, 3, 1, tzinfo=UTC)
PER_DAY = 5_000
PREFIX = "raw/"


class MadeUp:
    """Days of images, PER_DAY each; each LIST takes some time. It counts them."""

    is_ordered = True

    def __init__(self, objects: int, seconds: float) -> None:
        self.objects, self.seconds, self.lists = objects, seconds, 0

    def key(self, number: int) -> str:
        """The key of an object."""
        day, place = divmod(number, PER_DAY)
        month, day = divmod(day, 28)
        return f"{PREFIX}{2020 + month // 12}/{month % 12 + 1:02}/{day + 1:02}/img_{place:06}.jpg"

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        """See ObjectStore.pages."""
        start = self._behind(after)
        while True:
            self._ask()
            end = min(start + PAGE_OBJECTS, self.objects)
            yield [ImageObject(self.key(number), f"{number:032x}", 100_000, MODIFIED) for number in range(start, end)]
            if end == self.objects:
                return
            start = end

    def begins_after(self, prefix: str) -> bool:
        """It does."""
        return True

    def head(self, key: str) -> ImageObject | None:
        """Nobody asks for a single object."""
        raise NotImplementedError(key)

    def first_key(self, prefix: str, after: str | None = None) -> str | None:
        """See ObjectStore.first_key."""
        self._ask()
        number = self._behind(after)
        return None if number == self.objects else self.key(number)

    def _ask(self) -> None:
        self.lists += 1
        time.sleep(self.seconds)

    def _behind(self, after: str | None) -> int:
        low, high = 0, self.objects if after is not None else 0
        while low < high:
            between = (low + high) // 2
            low, high = (between + 1, high) if self.key(between) <= (after or "") else (low, between)
        return low

    def read(self, key: str, etag: str | None) -> Blob:
        """Nothing is read."""
        raise NotImplementedError

    def sign(self, key: str, seconds: int) -> str:
        """Nothing is signed."""
        raise NotImplementedError


def listing(engine: Engine, store: MadeUp, workers: int) -> float:
    """Seconds of a listing by so many workers."""
    start = RunStart(RunKey("benchmark", uuid.uuid4().hex), "manual", None, "s3://b", PREFIX, EVERYTHING, False, {})
    selection = Selection(parse_location(f"s3://b/{PREFIX}"), EVERYTHING, KeyFilter(("*.jpg",), ()))
    source = Source(engine, open_run(engine, start), store, selection)
    store.lists, begun = 0, time.monotonic()
    listed, _ = list_all(source, workers, is_large=workers > 1)
    assert listed == store.objects
    return time.monotonic() - begun


def main(objects: int, seconds: float, workers: int, rounds: int) -> None:
    """Measure in turn, and print medians."""
    taken: dict[int, list[float]] = {1: [], workers: []}
    lists: dict[int, int] = {}
    with serving_postgres() as server, fresh_postgres(server) as url:
        engine = connect(url)
        migrate(engine)
        store = MadeUp(objects, seconds)
        for _ in range(rounds):
            for count in taken:
                taken[count].append(listing(engine, store, count))
                lists[count] = store.lists
        engine.dispose()
    for count, found in taken.items():
        middle = statistics.median(found)
        print(f"{count} workers: {middle:.1f} s, {objects / middle:,.0f} keys/s, {lists[count]:,} LISTs")
    print(f"{statistics.median(taken[1]) / statistics.median(taken[workers]):.2f} times as fast")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing_together", description=__doc__.split("\n")[0])
    for option, default in (("objects", 200_000), ("milliseconds", 100), ("workers", 16), ("rounds", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    main(given.objects, given.milliseconds / 1000, given.workers, given.rounds)
