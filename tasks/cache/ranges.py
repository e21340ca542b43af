"""listing_range: one listing in parts, each of which somebody stages page by page and anybody may cut in two.

A page and the key that its range has come to are one transaction. It locks the range, reads its end anew and drops what lies
behind it, so that a range that was cut meanwhile loses no key and doubles none; whoever comes after a kill goes on at that key. A
range that was taken from its holder is not his any more: nothing of his page is kept. All lock the run's row before a range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, func, select, update

from tasks.cache.database import reading, repeated, writing
from tasks.cache.listed import Wanted, Write, write_page
from tasks.cache.runs import SUCCESS, RunKey, Staging, check_generation, count_listed, insert, now
from tasks.cache.schema import listing_range, run, source
from tasks.errors import ListingIncomplete
from tasks.storage.base import ImageObject, Span
from tasks.window import EVENTS, RETRY

# A holder that has staged no page for so long is dead, or asks a store that does not answer.
LEASE = timedelta(minutes=2)


Choose = Callable[[Sequence[ImageObject], Span], Wanted]


@dataclass(frozen=True, slots=True)
class Part:
    """A range that is not done: its keys, the last of them that is staged, how many were seen, and whether somebody holds it."""

    number: int
    span: Span
    last: str | None = None
    objects: int = 0
    is_held: bool = False

    @property
    def start(self) -> str | None:
        """The key behind which it goes on."""
        return self.span.after if self.last is None else self.last


@repeated
def begin(engine: Engine, staging: Staging, parts: Sequence[tuple[Span, str | None]]) -> None:
    """Write the ranges of a listing, each with the last of its keys that is staged already."""
    with writing(engine) as connection:
        check_generation(connection, staging, shared=True)
        rows = [{**_values(staging, number, span), "last_key": last} for number, (span, last) in enumerate(parts)]
        for row in rows:
            connection.execute(insert(connection, listing_range).values(row).on_conflict_do_nothing())


def open_parts(engine: Engine, staging: Staging) -> list[Part]:
    """The ranges that are not done, in the order of their numbers."""
    with reading(engine) as connection:
        found = connection.execute(select(listing_range).where(*_open(staging)).order_by(listing_range.c.number)).all()
    return [_part(row) for row in found]


@repeated
def take(engine: Engine, staging: Staging, holder: str, number: int, *, by_force: bool = False) -> Part | None:
    """Take a range that nobody holds, or by force whoever does; None where it is done or somebody was faster."""
    with writing(engine) as connection:
        check_generation(connection, staging, shared=True)
        row = _locked(connection, staging, number)
        if row is None or row.done or (_is_held(row) and row.holder != holder and not by_force):
            return None
        connection.execute(update(listing_range).where(*_one(staging, number)).values(holder=holder, held_at=now()))
        return _part(row)


@repeated
def release(engine: Engine, staging: Staging, holder: str) -> None:
    """Let others take at once what a holder has not done."""
    with writing(engine) as connection:
        mine = (*_open(staging), listing_range.c.holder == holder)
        connection.execute(update(listing_range).where(*mine).values(holder=None, held_at=None))


@repeated
def stage_part(
    engine: Engine,
    staging: Staging,
    holder: str,
    number: int,
    objects: Sequence[ImageObject],
    choose: Choose,
    *,
    is_last: bool,
    write: Write = write_page,
) -> bool:
    """Stage the next objects of a range, in byte order; whether there is more of it to list for this holder.

    `is_last` says that the store has no more. Raises StaleGeneration.
    """
    with writing(engine) as connection:
        check_generation(connection, staging, shared=True)
        row = _locked(connection, staging, number)
        if row is None or row.done or row.holder != holder:
            return False
        until = row.until_key
        done = is_last or (until is not None and bool(objects) and objects[-1].key >= until)
        fresh = [found for found in objects if _is_inside(found.key, row.last_key, until)]
        if not fresh and not done:
            return True
        start = row.after_key if row.last_key is None else row.last_key
        page = choose(fresh, Span(row.prefix, start, until if done else fresh[-1].key))
        dropped = write(connection, staging, page)
        seen = {"objects": row.objects + len(fresh), "listed": row.listed + len(page.images)}
        state = {"last_key": None if done else fresh[-1].key, "done": done, "holder": None if done else holder}
        connection.execute(
            update(listing_range)
            .where(*_one(staging, number))
            .values(**seen, **state, ignored=row.ignored + page.ignored, dropped=row.dropped + dropped, held_at=now())
        )
    return not done


@repeated
def cut(engine: Engine, staging: Staging, number: int, at: str, holder: str | None = None) -> Part | None:
    """End a range at a key, and make a new one of what lies behind it; None where it has come further than that."""
    with writing(engine) as connection:
        check_generation(connection, staging, shared=True)
        row = _locked(connection, staging, number)
        if row is None or row.done or not _is_inside(at, row.last_key, row.until_key) or at == row.until_key:
            return None
        upper = Span(row.prefix, at, row.until_key)
        connection.execute(update(listing_range).where(*_one(staging, number)).values(until_key=at))
        return Part(_add(connection, staging, upper, holder), upper, is_held=holder is not None)


def _add(connection: Connection, staging: Staging, span: Span, holder: str | None) -> int:
    """Write a new range; its number. Two who add at the same moment get two numbers."""
    held = {"holder": holder, "held_at": None if holder is None else now()}
    while True:
        number = 1 + connection.execute(select(func.max(listing_range.c.number)).where(*_of(staging))).scalar_one()
        statement = insert(connection, listing_range).values(**_values(staging, number, span), **held)
        added = connection.execute(statement.on_conflict_do_nothing().returning(listing_range.c.number)).one_or_none()
        if added is not None:
            return int(number)


@repeated
def settle(engine: Engine, staging: Staging) -> None:
    """Add what the ranges have counted to the run's row."""
    with writing(engine) as connection:
        check_generation(connection, staging)
        _settle(connection, staging)


@repeated
def finish(engine: Engine, staging: Staging) -> None:
    """As `settle`, once all ranges are done; then their rows go, and no key stays in them. Raises ListingIncomplete where some
    are not done."""
    with writing(engine) as connection:
        check_generation(connection, staging)
        found = connection.execute(select(listing_range).where(*_open(staging)).order_by(listing_range.c.number)).all()
        if found:
            one = _part(found[0])
            raise ListingIncomplete(
                f"{len(found)} ranges of the listing are not done, such as range {one.number}: the keys under "
                f"{one.span.prefix!r} behind {one.start!r} up to {one.span.until!r}. Clear list_range of this run: it goes on "
                "there."
            )
        _settle(connection, staging)
        connection.execute(delete(listing_range).where(*_of(staging)))


def _settle(connection: Connection, staging: Staging) -> None:
    counted = (listing_range.c.listed, listing_range.c.ignored, listing_range.c.dropped)
    listed, ignored, dropped = connection.execute(
        select(*(func.coalesce(func.sum(column), 0) for column in counted)).where(*_of(staging))
    ).one()
    if listed or ignored:
        count_listed(connection, staging, int(listed), int(ignored), int(dropped))
        connection.execute(update(listing_range).where(*_of(staging)).values(listed=0, ignored=0, dropped=0))


def listed_so_far(engine: Engine, staging: Staging) -> tuple[int, int]:
    """The run's counts: listed, and ignored."""
    with reading(engine) as connection:
        found = connection.execute(select(run.c.listed, run.c.ignored).where(run.c.run_no == staging.run_no)).one()
    return found.listed, found.ignored


def listed_before(engine: Engine, uri: str, prefix: str, key: RunKey) -> int:
    """How many objects the newest other run saw that ended well over the same source and prefix; 0 where there is none."""
    same = (source.c.uri == uri, run.c.prefix == prefix, run.c.state == SUCCESS)
    partial = run.c.run_type.in_((RETRY, EVENTS))  # They look at a few.
    other = (run.c.dag_id != key.dag_id) | (run.c.run_id != key.run_id)
    query = select(run.c.listed + run.c.ignored).join_from(run, source).where(*same, ~partial, other)
    with reading(engine) as connection:
        found = connection.execute(query.order_by(run.c.run_no.desc()).limit(1)).scalar_one_or_none()
    return int(found or 0)


def _values(staging: Staging, number: int, span: Span) -> dict[str, Any]:
    mine = {"run_no": staging.run_no, "generation": staging.generation, "number": number}
    return {**mine, "prefix": span.prefix, "after_key": span.after, "until_key": span.until}


def _part(row: Row[Any]) -> Part:
    return Part(row.number, Span(row.prefix, row.after_key, row.until_key), row.last_key, row.objects, _is_held(row))


def _is_held(row: Row[Any]) -> bool:
    return row.holder is not None and bool(row.held_at > now() - LEASE)


def _is_inside(key: str, after: str | None, until: str | None) -> bool:
    return (after is None or key > after) and (until is None or key <= until)


def _of(staging: Staging) -> tuple[ColumnElement[bool], ...]:
    return listing_range.c.run_no == staging.run_no, listing_range.c.generation == staging.generation


def _open(staging: Staging) -> tuple[ColumnElement[bool], ...]:
    return *_of(staging), listing_range.c.done.is_(False)


def _one(staging: Staging, number: int) -> tuple[ColumnElement[bool], ...]:
    return *_of(staging), listing_range.c.number == number


def _locked(connection: Connection, staging: Staging, number: int) -> Row[Any] | None:
    return connection.execute(select(listing_range).where(*_one(staging, number)).with_for_update()).one_or_none()
