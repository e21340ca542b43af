"""Workers that do anything in any order over one listing: each key is staged once, and counted once. On both databases."""

from __future__ import annotations

import random
import uuid
from typing import Any

from sqlalchemy import Engine, update

from tasks.cache import ranges
from tasks.cache.database import writing
from tasks.cache.schema import listing_range
from tasks.listing.splitting import split_point
from tasks.range_listing import Source, list_range, plan_ranges
from tasks.storage.base import ImageObject
from tests.conftest import SEED
from tests.integration.test_ranges import CAMERAS, DAYS, engine, source_of, staged
from tests.memory_store import MemoryStore

__all__ = ["engine"]


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
    _drain(source, hands)
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
    """The rest, while late workers still hold pages of it; then these come with them. Nobody waits for the leases of the dead."""
    with writing(source.engine) as connection:
        connection.execute(update(listing_range).values(holder=None))
    late = list(hands.values())
    list_range(source, 3, 0)
    for held in late:
        _put(source, source.store, held)  # type: ignore[arg-type]
