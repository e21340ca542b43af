"""One source listed by many at once: threads in this process, and where Airflow maps `list_range`, other tasks.

A LIST brings a thousand keys and waits for the network most of the time. A listing begins with one worker, page by page, and
costs nothing more. Once it is large the rest is a range of keys, which idle workers cut in two: each takes the upper half of
what the largest range still holds, until nothing is left. The ranges are rows (tasks/cache/ranges.py): whoever dies is replaced
where he stopped, and two who are at one range stage each key once. Folders, and stores that list in another order or ignore
where to begin, are listed page by page to their end.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Engine

from tasks.cache import ranges
from tasks.cache.database import is_sqlite
from tasks.cache.known import Ledger
from tasks.cache.listed import Write, stage_page, write_page
from tasks.cache.ranges import Part
from tasks.cache.runs import Staging
from tasks.errors import TransientStorageError
from tasks.listing import Page, Selection, can_be_stored
from tasks.listing.splitting import FirstKey, cut_points, is_in_byte_order, left
from tasks.storage.base import ImageObject, ObjectStore, Span

log = logging.getLogger(__name__)

# Below this a listing takes a few minutes, and is not worth the questions that a cut costs.
SPLIT_OBJECTS = 1_000_000

# Of objects that are compared with the cache: a statement for a few thousand costs little more than for one thousand.
GROUP_OBJECTS = 2_000

# Each thread that stages holds a connection; the others wait for the store anyway. SQLite has one writer.
WRITERS = 4

# Into so many more parts a range is cut at once, for as many who wait: the first cut takes most of the time.
CUTS = 3

SETTLE_SECONDS = 2.0
IDLE_SECONDS = 1.0
"""How long a worker that finds nothing to do waits at most for the next page or cut here; others may have ended in between."""
PATIENCE_SECONDS = 10.0
"""How long the end of the other workers is waited for when one has failed: a LIST may be tried again for minutes."""


Cut = Callable[[int, str], Part | None]
"""Cut a range, by its number, at a text; the upper half."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is listed, and where to."""

    engine: Engine
    staging: Staging
    store: ObjectStore
    selection: Selection
    ledger: Ledger | None = None

    @property
    def write(self) -> Write:
        """How a page is staged: without what the cache knows, where there is a ledger."""
        return write_page if self.ledger is None else self.ledger.write

    @property
    def group(self) -> int:
        """How many objects are staged in one transaction, at least: a page, and more where they are compared."""
        return 1 if self.ledger is None else GROUP_OBJECTS


def can_be_split(store: ObjectStore, prefix: str) -> bool:
    """Whether a store can begin behind any key of a prefix, and goes on in byte order. A few LISTs."""
    return store.is_ordered and store.begins_after(prefix) and is_in_byte_order(store.first_key, prefix)


def list_all(source: Source, workers: int, *, is_large: bool) -> tuple[int, int]:
    """Stage all that the run looks at, with so many workers where it is large or turns out to be; (listed, ignored).

    `is_large` says that it is known to be. The first error of a worker ends the others, and is raised.
    """
    rest = _list_flat(source, None if workers == 1 else 0 if is_large else SPLIT_OBJECTS)
    if rest:
        ranges.begin(source.engine, source.staging, rest)
        log.info("The listing is large: up to %d workers share what is left of it", workers)
        _Workers(source, workers).run()
    return ranges.listed_so_far(source.engine, source.staging)


def plan_ranges(source: Source, count: int) -> list[int]:
    """Divide a listing into about `count` ranges before it begins; their numbers, none where it cannot be divided."""
    prefixes = source.selection.prefixes()
    if not can_be_split(source.store, prefixes[0]):
        return []
    ranges.begin(source.engine, source.staging, [(Span(prefix), None) for prefix in prefixes])
    engine, staging = source.engine, source.staging
    cut = partial(ranges.cut, engine, staging)
    while (missing := count - len(parts := ranges.open_parts(engine, staging))) > 0:
        added = (_divide(part, missing, source.store.first_key, cut) for part in parts)
        if not any(added):
            break
    return [part.number for part in parts]


def list_range(source: Source, workers: int, number: int) -> tuple[int, int]:
    """Stage a range, then help with the others until none is open; the run's (listed, ignored) at its end."""
    _Workers(source, workers).run(number)
    return ranges.listed_so_far(source.engine, source.staging)


def _list_flat(source: Source, most: int | None) -> list[tuple[Span, str | None]]:
    """List page by page; what is left once `most` objects (None: all) were seen, each with the key behind which it goes on."""
    prefixes = source.selection.prefixes()
    seen = 0
    for number, prefix in enumerate(prefixes):
        for last, objects in _pages(source, prefix):
            seen += objects
            if most is None or seen < most or (last is not None and not can_be_stored(last)):
                continue
            if can_be_split(source.store, prefix):
                return [(Span(prefix), last), *((Span(other), None) for other in prefixes[number + 1 :])]
            most = None
    return []


def _pages(source: Source, prefix: str) -> Iterator[tuple[str | None, int]]:
    """Stage page by page; the last key and the objects of each, and before the first one (None, 0)."""
    last: str | None = None
    waiting: list[ImageObject] = []
    yield last, 0
    for objects in source.store.pages(prefix):
        waiting += objects
        if len(waiting) >= source.group and (source.ledger is None or can_be_stored(waiting[-1].key)):
            _stage(source, waiting, Span(prefix, last, waiting[-1].key))
            last, seen, waiting = waiting[-1].key, len(waiting), []
            yield last, seen
    _stage(source, waiting, Span(prefix, last))


def _stage(source: Source, objects: Sequence[ImageObject], covers: Span) -> None:
    page = source.selection.page(objects, covers if source.store.is_ordered else None)
    if source.ledger is not None:
        _checked(covers.prefix, objects, covers.after)
    if page.images or page.ignored or source.ledger is not None:
        stage_page(source.engine, source.staging, page, source.write)


def _divide(part: Part, most: int, first_key: FirstKey, cut: Cut) -> int:
    """Cut what a range still holds into at most so many more, which nobody holds yet; how many there are."""
    pieces, made = [part], 0
    for at in cut_points(first_key, part.span.prefix, part.start, part.span.until):
        place = next((place for place, one in enumerate(pieces) if _may_hold(one.span, at)), None)
        upper = None if place is None else cut(pieces[place].number, at)
        if place is not None and upper is not None:  # Else others have cut it or come further meanwhile.
            lower = replace(pieces[place], span=replace(pieces[place].span, until=at))
            pieces[place : place + 1] = [lower, upper]
            made += 1
        if made == most:
            break
    return made


def _may_hold(span: Span, at: str) -> bool:
    return span.until is None or at < span.until


class _Over(Exception):
    """There is nothing left to share."""


class _Workers:
    """Threads that list the open ranges of a run. They hold a page each."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._writers = threading.BoundedSemaphore(1 if is_sqlite(source.engine) else WRITERS)
        self._lock = threading.Lock()
        self._news = threading.Condition()
        self._idle = 0
        self._busy: set[int] = set()
        """Ranges that one of these threads is about to cut, and those in which there was nothing more to cut."""

    def run(self, first: int | None = None) -> None:
        """List until no range is open. One thread begins with `first`, whoever holds it. Raises the first error of a thread."""
        threads = [
            threading.Thread(
                target=self._work, args=(first if place == 0 else None,), name=f"list-{place}", daemon=True
            )
            for place in range(self._count)
        ]
        try:
            for thread in threads:
                thread.start()
            self._wait(threads)
            if self._errors:
                raise self._errors[0]
            self._database(ranges.finish)
        except BaseException:
            self._end()
            deadline = time.monotonic() + PATIENCE_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))
            with suppress(Exception):  # The error that ended it is the one to raise.
                self._database(ranges.settle)
            raise

    def _wait(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for their end, and tell the run's row now and then how far they are."""
        for thread in threads:
            while thread.is_alive() and not self._errors:
                thread.join(SETTLE_SECONDS)
                if thread.is_alive():
                    self._database(ranges.settle)

    def _end(self) -> None:
        self._stop.set()
        with self._news:
            self._news.notify_all()

    def _tell(self) -> None:
        """Wake somebody who waits for a range that he may take or cut."""
        with self._news:
            self._news.notify()

    def _wait_for_news(self) -> None:
        with self._news:
            self._idle += 1
            self._news.wait(IDLE_SECONDS)
            self._idle -= 1

    def _work(self, first: int | None) -> None:
        holder = uuid.uuid4().hex
        try:
            part = None if first is None else self._database(ranges.take, holder, first, by_force=True)
            while not self._stop.is_set():
                if part is not None:
                    self._list(part, holder)
                    self._tell()
                parts = self._database(ranges.open_parts)
                if not parts:
                    self._end()
                    return
                part = self._free(parts, holder)
                if part is None and not self._cut(parts):
                    self._wait_for_news()
        except _Over:
            return
        except BaseException as error:
            self._errors.append(error)
            self._end()
        finally:
            with suppress(Exception):  # Then others wait for its lease to end.
                self._database(ranges.release, holder)

    def _free(self, parts: Sequence[Part], holder: str) -> Part | None:
        for part in parts:
            if not part.is_held:
                taken: Part | None = self._database(ranges.take, holder, part.number)
                if taken is not None:
                    return taken
        return None

    def _cut(self, parts: Sequence[Part]) -> bool:
        """Cut the range that seems to have most left, for all who wait. One whose first page is not there yet may be tiny."""
        sizes = {
            part: left(part.span.prefix, part.span.after, part.last, part.span.until, part.objects)
            for part in parts
            if part.last is not None
        }
        for part in sorted(sizes, key=lambda one: sizes[one], reverse=True):
            with self._lock:
                if part.number in self._busy:
                    continue
                self._busy.add(part.number)
            if _divide(part, min(CUTS, 1 + self._idle), self._first_key, self._give):
                with self._lock:
                    self._busy.discard(part.number)
                return True
        return False

    def _first_key(self, prefix: str, after: str | None) -> str | None:
        if self._stop.is_set():  # All is listed, or somebody failed: nobody needs the cut any more.
            raise _Over
        return self._source.store.first_key(prefix, after)

    def _give(self, number: int, at: str) -> Part | None:
        upper: Part | None = self._database(ranges.cut, number, at)
        if upper is not None:
            self._tell()
        return upper

    def _list(self, part: Part, holder: str) -> None:
        """Stage a range page by page, until its end or until somebody else has it."""
        waiting: list[ImageObject] = []
        last = part.start
        for objects in self._source.store.pages(part.span.prefix, part.start):
            if self._stop.is_set():
                return
            last = _checked(part.span.prefix, objects, last)
            waiting += objects
            # A key that no database can hold cannot be the one where it goes on: what ends with it waits for the next page.
            if len(waiting) >= self._source.group and can_be_stored(waiting[-1].key):
                if not self._stage(part, holder, waiting, is_last=False):
                    return
                waiting = []
                self._tell()
        self._stage(part, holder, waiting, is_last=True)

    def _stage(self, part: Part, holder: str, objects: list[ImageObject], *, is_last: bool) -> bool:
        choose: Callable[[Sequence[ImageObject], Span], Page] = self._source.selection.page
        arguments = (holder, part.number, objects, choose)
        return bool(self._database(ranges.stage_part, *arguments, is_last=is_last, write=self._source.write))

    def _database(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self._writers:
            return call(self._source.engine, self._source.staging, *arguments, **named)


def _checked(prefix: str, objects: Sequence[ImageObject], last: str | None) -> str | None:
    """The last key of a page. Raises TransientStorageError where it is not in byte order: keys would be lost between ranges, and
    images taken for deleted."""
    for found in objects:
        if last is not None and found.key <= last:
            raise TransientStorageError(
                f"The listing of {prefix!r} is not in byte order: {found.key!r} follows {last!r}. It cannot be "
                "shared, nor compared. Set list_workers = 1 and list_tasks = 1 in this pipeline, so that it is listed page by "
                "page."
            )
        last = found.key
    return last
