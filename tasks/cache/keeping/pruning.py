"""Removing what a Retention names, in short transactions beside runs that are under way.

A batch is looked for without a lock, and removed under the lock that keeps erasing apart from commits, by keys, where it is
judged once more: an image that is back, or a digest that has an image by now, stays. A commit that counted on a prediction
which went finds that out, as after `erase`: the image stays open, and its shard's next attempt predicts it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Engine, and_, delete, not_, or_, select, text
from sqlalchemy.exc import OperationalError

from tasks.cache import blocking
from tasks.cache.database import is_sqlite, reading, reading_one_moment, repeated, writing
from tasks.cache.keeping import retention
from tasks.cache.keeping.counting import count
from tasks.cache.keeping.dropping import drop_partition
from tasks.cache.keeping.retention import Going, Retention
from tasks.cache.owning import check_owner
from tasks.cache.schema import SCHEMA, image, prediction, source
from tasks.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

BATCH = 10_000
CHUNK = 1_000

# Who waits for a lock keeps others behind it waiting too, so nobody waits for long; a division may take minutes.
LOCK_SECONDS = 2
PAUSES_SECONDS = (1.0, 2.0, 5.0, *(10.0,) * 60)

VANISHED, DROPPED, OLD, ORPHANS = (
    "vanished images",
    "predictions of the model",
    "old predictions",
    "orphaned predictions",
)

Result = TypeVar("Result")

Left = Callable[[str, Collection[Any]], None]
"""Is told after each batch by which rule rows left, and their keys: of orphans, these are digests that no image has."""


def _untold(_what: str, _keys: Collection[Any]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Step:
    """One rule: the rows that it found, and those that left; the same, unless others changed rows meanwhile."""

    what: str
    table: str
    found: int
    removed: int


@dataclass(frozen=True, slots=True)
class Change:
    """The rows of a table: before - removed + others = after, where `others` is what runs added or erasing took meanwhile."""

    table: str
    before: int
    removed: int
    others: int
    after: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or in a dry run what would."""

    dry_run: bool
    steps: Sequence[Step]
    changes: Sequence[Change]

    def plain(self) -> dict[str, Any]:
        """For a program."""
        steps, changes = [asdict(step) for step in self.steps], [asdict(change) for change in self.changes]
        return {"dry_run": self.dry_run, "steps": steps, "tables": changes}

    def lines(self) -> Iterator[str]:
        """For a log."""
        for step in self.steps:
            told = "would go" if self.dry_run else f"found, {step.removed:,} removed"
            yield f"{step.what}: {step.found:,} {told}"
        for one in self.changes:
            yield f"{one.table}: {one.before:,} - {one.removed:,} + {one.others:,} by others = {one.after:,} rows"


def look(engine: Engine, asked: Retention) -> Pruned:
    """A dry run: count what would go, and change nothing. Raises ConfigurationError."""
    check_owner(engine, "prune")
    with reading_one_moment(engine) as connection:
        return _look(connection, retention.going_of(connection, asked))


def prune(engine: Engine, asked: Retention, left: Left = _untold) -> Pruned:
    """Remove what a dry run counts, and then have the planner look at the tables anew.

    Where it is stopped, what was removed stays removed, and
    the rest goes when it is called again. Raises ConfigurationError, and DatabaseUnavailable where others hold the lock for
    minutes.
    """
    check_owner(engine, "prune")
    with reading_one_moment(engine) as connection:
        going = retention.going_of(connection, asked)
        before = _look(connection, going)
    removed = {VANISHED: _prune_images(engine, going, left)}
    removed[DROPPED] = _drop(
        engine, going, next((step.found for step in before.steps if step.what == DROPPED), 0), left
    )
    removed[OLD] = _prune_old(engine, going, left)
    removed[ORPHANS] = _prune_orphans(engine, going, left)
    with reading_one_moment(engine) as connection:
        after = {table.name: count(connection, select(table)) for table in (image, prediction)}
    steps = [Step(step.what, step.table, step.found, removed[step.what]) for step in before.steps]
    changes = [_change(change, steps, after[change.table]) for change in before.changes]
    refresh(engine, [change.table for change in changes if change.removed])
    return Pruned(False, steps, changes)


def _change(before: Change, steps: Sequence[Step], after: int) -> Change:
    removed = sum(step.removed for step in steps if step.table == before.table)
    return Change(before.table, before.before, removed, after - before.before + removed, after)


def _look(connection: Connection, going: Going) -> Pruned:
    dropped, old = retention.dropped(going), retention.old(going)
    # What two rules name goes once, by the first of them.
    conditions: dict[str, tuple[Any, ColumnElement[bool], bool]] = {
        VANISHED: (image, retention.vanished(going), going.vanished_before is not None),
        DROPPED: (prediction, dropped, going.model_no is not None),
        OLD: (prediction, old & not_(dropped), going.predicted_before is not None),
        ORPHANS: (prediction, retention.orphaned(going) & not_(or_(dropped, old)), going.orphans),
    }
    steps = [
        Step(what, table.name, count(connection, select(table).where(condition)), 0)
        for what, (table, condition, asked) in conditions.items()
        if asked
    ]
    tables = {table.name: count(connection, select(table)) for table in (image, prediction)}
    found = {name: sum(step.found for step in steps if step.table == name) for name in tables}
    changes = [Change(name, rows, found[name], 0, rows - found[name]) for name, rows in tables.items()]
    return Pruned(True, steps, changes)


def _prune_images(engine: Engine, going: Going, left: Left) -> int:
    if going.vanished_before is None:
        return 0
    with reading(engine) as connection:
        sources = list(connection.execute(select(source.c.source_no).order_by(source.c.source_no)).scalars())
    rows = [_Rows(image.c.source_no == number, image.c.key, retention.vanished(going)) for number in sources]
    return sum(_prune_rows(engine, VANISHED, one, left) for one in rows)


def _drop(engine: Engine, going: Going, found: int, left: Left) -> int:
    """How many predictions went with a model; nobody has written any since they were found."""
    number = going.model_no
    if number is None:
        return 0
    if not is_sqlite(engine):
        apart_from_commits(engine, partial(drop_partition, model_no=number))
        return found
    rows = _predictions(number, retention.dropped(going))
    return _prune_rows(engine, DROPPED, rows, left, lambda connection: retention.check_unused(connection, number))


def _prune_old(engine: Engine, going: Going, left: Left) -> int:
    if going.predicted_before is None:
        return 0
    rows = [_predictions(number, retention.old(going)) for number in going.unused]
    return sum(_prune_rows(engine, OLD, one, left) for one in rows)


def _prune_orphans(engine: Engine, going: Going, left: Left) -> int:
    if not going.orphans:
        return 0
    with reading(engine) as connection:
        models = retention.model_numbers(connection)
    rows = [_predictions(number, retention.orphaned(going)) for number in models]
    return sum(_prune_rows(engine, ORPHANS, one, left) for one in rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a table that have the first column of its key in common, by the second one, as far as a condition holds."""

    common: ColumnElement[bool]
    key: Column[Any]
    condition: ColumnElement[bool]


def _predictions(model_no: int, condition: ColumnElement[bool]) -> _Rows:
    return _Rows(prediction.c.model_no == model_no, prediction.c.digest, condition)


def _prune_rows(
    engine: Engine,
    what: str,
    rows: _Rows,
    left: Left,
    check: Callable[[Connection], None] = lambda _connection: None,
) -> int:
    removed = 0
    for keys in _batches(engine, rows):
        gone = apart_from_commits(engine, partial(_remove, rows=rows, keys=keys, check=check))
        removed += len(gone)
        log.info("%s: %s removed", what, f"{removed:,}")
        left(what, gone)
    return removed


def _batches(engine: Engine, rows: _Rows) -> Iterator[list[Any]]:
    """The keys of what is to go, in their order; each batch is looked for when the one before has left."""
    after: list[ColumnElement[bool]] = []
    while True:
        query = select(rows.key).where(rows.common, rows.condition, *after).order_by(rows.key).limit(BATCH)
        with reading(engine) as connection:
            found = list(connection.execute(query).scalars())
        if found:
            yield found
        if len(found) < BATCH:
            return
        after = [rows.key > found[-1]]


def _remove(connection: Connection, rows: _Rows, keys: Sequence[Any], check: Callable[[Connection], None]) -> list[Any]:
    """Remove these rows as far as the condition still holds of them; the keys of those that left."""
    check(connection)
    _lock_images(connection, rows, keys)
    left: list[Any] = []
    for start in range(0, len(keys), CHUNK):
        table = rows.key.table
        gone = delete(table).where(rows.common, rows.key.in_(keys[start : start + CHUNK]), rows.condition)
        left += connection.execute(gone.returning(rows.key)).scalars()
    return left


def _lock_images(connection: Connection, rows: _Rows, keys: Sequence[Any]) -> None:
    """Lock the images that leave, or whose marks do with a prediction, in the order in which listings lock them beside this."""
    if is_sqlite(connection):
        return
    here = image.c.digest.in_(keys) if rows.key.table is prediction else and_(rows.common, rows.key.in_(keys))
    order = (image.c.source_no, image.c.key)
    connection.execute(select(image.c.key).where(here).order_by(*order).with_for_update()).all()


def apart_from_commits(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    """Do something in a transaction beside which nothing is committed or divided. Raises DatabaseUnavailable."""
    for pause in PAUSES_SECONDS:
        try:
            return _attempt(engine, work)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
            log.info("Others hold what is to be locked; trying again in %.0f s.", pause)
            time.sleep(pause)
    raise DatabaseUnavailable(
        "Others have kept the cache's rows for themselves for minutes: a run that divides its work, or somebody who reads for "
        "long. What was removed stays removed; give the command again when they are done."
    )


@repeated
def _attempt(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    with writing(engine) as connection:
        if not is_sqlite(connection):
            connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": f"{LOCK_SECONDS}s"})
        blocking.hold_off_commits(connection)
        return work(connection)


def refresh(engine: Engine, tables: Sequence[str]) -> None:
    """Have the database look at tables from which rows left, and give their room to new ones."""
    if is_sqlite(engine):
        with writing(engine) as connection:
            connection.exec_driver_sql("PRAGMA optimize")
        return
    with reading(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
        for name in tables:
            connection.execute(text(f"VACUUM (ANALYZE, SKIP_LOCKED) {SCHEMA}.{name}"))
