"""One source that many list at once: every key is staged once, whoever cuts, dies, comes again or is late. On both databases."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update

from tasks import range_listing
from tasks.cache import erasing, ranges
from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.cache.schema import listing_range, run, work_item
from tasks.errors import AccessDenied, ListingIncomplete, StaleGeneration, TransientStorageError
from tasks.listing import KeyFilter, Selection
from tasks.listing.splitting import split_point
from tasks.location import parse_location
from tasks.range_listing import Source, list_all, list_range, plan_ranges
from tasks.storage.base import ImageObject, Span
from tasks.window import EVERYTHING, Window
from tests.conftest import SEED
from tests.database_roles import as_owner
from tests.memory_store import MOMENT, MemoryStore
from tests.property.values import ODD_KEYS

IMAGES = KeyFilter(("*.jpg",), ())
DAYS = [f"raw/2026-03-{day:02}/img_{number:05}.jpg" for day in range(1, 13) for number in range(100)]
CAMERAS = [
    f"raw/{'abc'[min(2, number // 30)]}/{number:05}.{'txt' if number % 7 == 0 else 'jpg'}" for number in range(1_500)
]
ODD = [f"raw/{number % 97:02}{key}{number}.jpg" for number, key in enumerate(ODD_KEYS * 30) if len(key) < 1_000]
NUL = [f"raw/{number:04}{chr(0) if number % 3 else ''}.jpg" for number in range(900)]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def small_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", 200)
    monkeypatch.setattr(range_listing, "PATIENCE_SECONDS", 2.0)


def opened(engine: Engine, run_id: str | None = None) -> Staging:
    key = RunKey("test", run_id or uuid.uuid4().hex)
    return open_run(engine, RunStart(key, "manual", None, "s3://b", "raw/", EVERYTHING, False, {}))


def source_of(engine: Engine, store: MemoryStore, uri: str = "s3://b/raw/", window: Window = EVERYTHING) -> Source:
    return Source(engine, opened(engine), store, Selection(parse_location(uri), window, IMAGES))


def staged(source: Source) -> list[tuple[str, str, int]]:
    mine = (work_item.c.run_no == source.staging.run_no, work_item.c.generation == source.staging.generation)
    columns = (work_item.c.key, work_item.c.etag, work_item.c.size)
    with reading(source.engine) as connection:
        return [tuple(row) for row in connection.execute(select(*columns).where(*mine).order_by(work_item.c.key))]


def range_rows(source: Source) -> int:
    with reading(source.engine) as connection:
        return int(connection.execute(select(func.count()).select_from(listing_range)).scalar_one())


@pytest.mark.parametrize("keys", [DAYS, CAMERAS, ODD, NUL], ids=["days", "cameras", "odd keys", "NUL"])
def test_many_workers_stage_the_rows_of_one(engine: Engine, keys: list[str]) -> None:
    flat, shared = MemoryStore(keys), MemoryStore(keys, page=20, seconds=0.004)
    alone = source_of(engine, flat)
    expected = list_all(alone, 1, is_large=False)
    source = source_of(engine, shared)
    assert list_all(source, 8, is_large=False) == expected
    assert staged(source) == staged(alone)
    assert len(staged(source)) == expected[0] >= 300
    assert len(shared.names - {threading.current_thread().name}) > 2, "several threads listed pages"
    assert range_rows(source) == 0, "no key stays where nobody looks for it"


def test_a_listing_that_is_known_to_be_large_is_shared_from_its_first_key(engine: Engine) -> None:
    store = MemoryStore(DAYS, seconds=0.002)
    source = source_of(engine, store)
    assert list_all(source, 8, is_large=True) == (1_200, 0)
    assert threading.current_thread().name not in store.names
    assert len(staged(source)) == 1_200


def test_a_small_listing_costs_no_question_and_no_row(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a range of a small listing")

    monkeypatch.setattr(ranges, "begin", refuse)
    store = MemoryStore(DAYS[:190])
    assert list_all(source_of(engine, store), 16, is_large=False) == (190, 0)
    assert store.lists == 4


def test_one_worker_lists_page_by_page_however_large_it_is(engine: Engine) -> None:
    store = MemoryStore(DAYS)
    assert list_all(source_of(engine, store), 1, is_large=True) == (1_200, 0)
    assert store.lists == 25
    assert store.names == {threading.current_thread().name}


class Deaf(MemoryStore):
    """A store that ignores where to begin, and goes on by tokens of its own."""

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        assert after is None, "it was found out before"
        yield from super().pages(prefix)

    def begins_after(self, prefix: str) -> bool:
        return False


class Folders(MemoryStore):
    """A store that lists folder by folder: `a/x` before `a-b`."""

    def _list(self, prefix: str, after: str | None, count: int) -> list[str]:
        def order(key: str) -> str:
            return key.replace("/", "\0")

        self.lists += 1
        behind = sorted((key for key in self.keys if after is None or order(key) > order(after)), key=order)
        return [key for key in behind if key.startswith(prefix)][:count]


@pytest.mark.parametrize("kind", [Deaf, Folders])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_store_that_cannot_begin_behind_a_key_is_listed_page_by_page(
    engine: Engine, kind: type[MemoryStore], is_large: bool
) -> None:
    keys = [*CAMERAS, *(f"raw/a-{number}.jpg" for number in range(300))]
    source = source_of(engine, kind(keys))
    listed, ignored = list_all(source, 8, is_large=is_large)
    assert listed + ignored == len(keys)
    assert len(staged(source)) == listed
    assert plan_ranges(source_of(engine, kind(keys)), 4) == []


def test_days_of_a_template_are_shared_too(engine: Engine) -> None:
    window = Window(MOMENT, MOMENT.replace(day=13))
    uri = "s3://b/raw/{{ ds }}/"
    alone = source_of(engine, MemoryStore(DAYS), uri, window)
    store = MemoryStore(DAYS, seconds=0.002)
    source = source_of(engine, store, uri, window)
    assert list_all(source, 8, is_large=False) == list_all(alone, 1, is_large=False) == (1_200, 0)
    assert staged(source) == staged(alone)
    assert len(store.names) > 2


def test_who_is_killed_goes_on_where_he_was_and_nothing_is_listed_from_its_start_again(engine: Engine) -> None:
    store = MemoryStore(DAYS, page=20, seconds=0.001)
    source = source_of(engine, store)
    numbers = plan_ranges(source, 4)
    assert len(numbers) == 4
    fails, pages = AccessDenied("no more"), iter(range(10**6))

    def strike(_after: str | None) -> None:
        if next(pages) == 25:
            raise fails

    store.at_page = strike
    with pytest.raises(AccessDenied, match="no more"):
        list_range(source, 4, numbers[0])
    before = len(staged(source))
    assert 20 * 20 <= before < len(DAYS)
    with reading(engine) as connection:
        assert connection.execute(select(run.c.listed)).scalar_one() == before, "told although it failed"
    store.at_page, store.given = lambda _after: None, 0
    assert list_range(source, 4, numbers[1]) == (1_200, 0)
    assert len(staged(source)) == 1_200
    open_ranges = 40
    assert store.given <= len(DAYS) - before + 20 * open_ranges, "a page too many for each range"
    assert list_range(source, 4, numbers[2]) == (1_200, 0), "a task that comes late has nothing to do"


def test_a_range_whose_holder_died_without_a_word_is_taken_after_its_lease_or_by_its_own_task(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(engine, MemoryStore(DAYS))
    first, second = plan_ranges(source, 2)
    for number in (first, second):
        assert ranges.take(engine, source.staging, "dead", number) is not None
        assert ranges.take(engine, source.staging, "other", number) is None
    assert ranges.take(engine, source.staging, "its own task", first, by_force=True) is not None
    monkeypatch.setattr(ranges, "LEASE", -ranges.LEASE)
    assert ranges.take(engine, source.staging, "other", second) is not None
    objects = [ImageObject(DAYS[0], "e", 1, MOMENT)]
    late = ranges.stage_part(engine, source.staging, "dead", first, objects, source.selection.page, is_last=False)
    assert (late, staged(source)) == (False, []), "it is not his any more"


def test_whatever_workers_do_in_whatever_order_each_key_is_staged_once(engine: Engine) -> None:
    """Pages that are under way while their range is cut, workers that die with a page in hand, tasks that come again."""
    for number in range(3):
        _work_at_random(engine, random.Random(f"{SEED} {number}"))


def _work_at_random(engine: Engine, chance: random.Random) -> None:
    workers = chance.randint(2, 4)
    keys = chance.sample(CAMERAS, 80) + chance.sample(DAYS, 60)
    store = MemoryStore(keys, page=chance.randint(3, 9))
    source = source_of(engine, store)
    plan_ranges(source, chance.randint(1, 3))
    hands: dict[int, tuple[str, ranges.Part, list[ImageObject]]] = {}
    for _ in range(150):
        parts = ranges.open_parts(engine, source.staging)
        if not parts:
            break
        _one_step(source, store, hands, parts, chance, chance.randrange(workers))
    list_range(source, 2, 0) if parts and not hands else _drain(source, hands)
    wanted = sorted(key for key in keys if key.endswith(".jpg"))
    assert [key for key, _, _ in staged(source)] == wanted
    assert ranges.listed_so_far(engine, source.staging) == (len(wanted), len(set(keys)) - len(wanted))


def _one_step(
    source: Source,
    store: MemoryStore,
    hands: dict[int, tuple[str, ranges.Part, list[ImageObject]]],
    parts: list[ranges.Part],
    chance: random.Random,
    worker: int,
) -> None:
    """A worker stages the page in his hands, dies with it, cuts another one's range, or takes a range and lists a page of it."""
    held = hands.pop(worker, None)
    if held is not None and chance.random() < 0.85:
        _put(source, store, held)
        return
    if held is not None:
        return  # Dead; his range stays his until somebody takes it by force.
    part, holder = chance.choice(parts), uuid.uuid4().hex
    at = split_point(store.first_key, "raw/", part.start, part.span.until) if chance.random() < 0.5 else None
    mine = (
        ranges.take(source.engine, source.staging, holder, part.number, by_force=chance.random() < 0.4)
        if at is None
        else ranges.cut(source.engine, source.staging, part.number, at, holder)
    )
    if mine is not None:
        hands[worker] = (holder, mine, next(store.pages("raw/", mine.start)))


def _put(source: Source, store: MemoryStore, held: tuple[str, ranges.Part, list[ImageObject]]) -> None:
    holder, part, objects = held
    is_last = len(objects) < store.page
    ranges.stage_part(
        source.engine, source.staging, holder, part.number, objects, source.selection.page, is_last=is_last
    )


def _drain(source: Source, hands: dict[int, Any]) -> None:
    """The rest, while late workers still hold pages of it; then these come with them."""
    with writing(source.engine) as connection:
        connection.execute(update(listing_range).values(holder=None))
    late = list(hands.values())
    list_range(source, 3, 0)
    for held in late:
        _put(source, source.store, held)  # type: ignore[arg-type]


def test_an_error_of_one_ends_the_others_soon_and_is_the_one_that_is_raised(engine: Engine) -> None:
    store = MemoryStore([f"raw/{number:06}.jpg" for number in range(20_000)], page=10, seconds=0.01)
    source = source_of(engine, store)

    def strike(after: str | None) -> None:
        if after is not None and after > "raw/015":
            raise TransientStorageError("the store is down")

    store.at_page = strike
    began = time.monotonic()
    with pytest.raises(TransientStorageError, match="the store is down"):
        list_all(source, 8, is_large=True)
    assert time.monotonic() - began < 8
    assert len(staged(source)) < 15_001


def test_control_c_ends_all_of_them(engine: Engine) -> None:
    store = MemoryStore([f"raw/{number:06}.jpg" for number in range(20_000)], page=10, seconds=0.01)
    source = source_of(engine, store)
    asked = iter(range(10**6))

    def interrupt(_after: str | None) -> None:
        if next(asked) == 40:
            os.kill(os.getpid(), signal.SIGINT)

    store.at_page = interrupt
    with pytest.raises(KeyboardInterrupt):
        list_all(source, 8, is_large=True)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("list-")] == []
    assert 0 < len(staged(source)) < 10_000


def test_a_listing_that_began_anew_refuses_the_pages_of_the_old_one(engine: Engine) -> None:
    store = MemoryStore(DAYS, seconds=0.005)
    source = source_of(engine, store)
    with reading(engine) as connection:
        run_id = connection.execute(select(run.c.run_id)).scalar_one()
    asked = iter(range(10**6))

    def begin_anew(_after: str | None) -> None:
        if next(asked) == 8:
            opened(engine, run_id)

    store.at_page = begin_anew
    with pytest.raises(StaleGeneration):
        list_all(source, 8, is_large=True)
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(work_item)).scalar_one() == 0
        assert connection.execute(select(run.c.listed)).scalar_one() == 0


def test_ranges_that_are_open_are_refused_by_name(engine: Engine) -> None:
    source = source_of(engine, MemoryStore(DAYS))
    plan_ranges(source, 3)
    with pytest.raises(ListingIncomplete, match=r"3 ranges .* range 0: .*'raw/' behind None up to .*Clear list_range"):
        ranges.finish(engine, source.staging)


def test_the_connections_are_few_however_many_list(database_url: str) -> None:
    engine = connect(database_url)
    open_now, most = 0, 0
    lock = threading.Lock()

    def count(by: int) -> None:
        nonlocal open_now, most
        with lock:
            open_now += by
            most = max(most, open_now)

    event.listen(engine, "checkout", lambda *_: count(1))
    event.listen(engine, "checkin", lambda *_: count(-1))
    source = source_of(engine, MemoryStore(DAYS, page=20, seconds=0.002))
    assert list_all(source, 32, is_large=True) == (1_200, 0)
    assert most <= (1 if is_sqlite(engine) else range_listing.WRITERS)
    engine.dispose()


def test_pages_say_which_keys_they_speak_for_and_leave_none_out(engine: Engine) -> None:
    """Who drops what is known already has to know where a page ends, and a range."""
    seen: list[Span] = []

    def watch(page: Any) -> None:
        seen.append(page.covers)

    store = MemoryStore(DAYS, seconds=0.002)
    source = source_of(engine, store)
    watched = _Watched(source.selection, watch)
    list_all(Source(engine, source.staging, store, watched), 6, is_large=False)  # type: ignore[arg-type]
    spans = sorted(seen, key=lambda span: span.after or "")
    assert (spans[0].after, spans[-1].until) == (None, None)
    assert all(one.until == other.after for one, other in pairwise(spans))


class _Watched:
    """A selection that tells of its pages."""

    def __init__(self, selection: Selection, tell: Any) -> None:
        self._selection, self._tell = selection, tell

    def prefixes(self) -> list[str]:
        return self._selection.prefixes()

    def page(self, objects: Any, covers: Span | None = None) -> Any:
        page = self._selection.page(objects, covers)
        self._tell(page)
        return page


def test_who_erases_a_key_finds_it_in_no_listing_that_is_under_way(database_url: str) -> None:
    engine = connect(as_owner(database_url))
    source = source_of(engine, MemoryStore(DAYS))
    (number,) = plan_ranges(source, 1)
    ranges.take(engine, source.staging, "me", number)
    objects = next(source.store.pages("raw/"))
    assert ranges.stage_part(engine, source.staging, "me", number, objects, source.selection.page, is_last=False)
    erasing.erase(engine, erasing.Target(key=objects[-1].key), block=True, dry_run=False)
    (part,) = ranges.open_parts(engine, source.staging)
    assert part.last == objects[-2].key
    engine.dispose()
