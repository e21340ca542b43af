"""Dropping what the cache knows while it is listed, page by page, for sources that are too large to stage.

A store lists in the byte order of its keys, and so does the primary key of `image`: what a page covers is one range of the index,
and the two are merged. What is there in the same state and has a prediction is counted and not staged. What the range holds and
the page does not is gone, and is marked at once: the staging cannot tell later. Everything else is staged, and so is whatever
has a word to say in deduplication: images in quarantine, those that came back, and keys that were erased for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, exists, false, func, select, true, update

from tasks.cache.blocking import is_anything_blocked
from tasks.cache.database import reading
from tasks.cache.listed import Wanted
from tasks.cache.models import mark_of
from tasks.cache.quarantine import under
from tasks.cache.runs import Staging, now
from tasks.cache.schema import block, failure, image, model, prediction, run
from tasks.cache.staging import write_rows
from tasks.storage.base import ImageObject, Span

CHUNK = 500


Keys = Callable[[ColumnElement[str]], Iterable[ColumnElement[Any]]]
"""Of a key, that it is one of those that a page speaks for."""

_Known = tuple[str, bool, bool, bool]
"""Of an image: its etag, that it is not marked as deleted, that its bytes have a prediction, and that it may be marked now."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the images of a source are compared with: predictions of a model, and the mark of those that are known to have one.

    `saw` tells of a key whether the listing would have shown it; None where nothing is to be marked as gone. Images recorded
    since `started_at`, when the listing began, are left alone: it may have been too early to see them.
    """

    source_no: int
    model_no: int
    mark: int
    saw: Callable[[str], bool] | None
    started_at: datetime

    def write(self, connection: Connection, staging: Staging, page: Wanted) -> int:
        """Stage what is unknown of a page; how many of its images are known. Without `covers` it says nothing of other keys."""
        found = self.unknown(connection, page.images, page.covers)
        write_rows(connection, staging, found)
        return len(page.images) - len(found)

    def unknown(self, connection: Connection, images: Sequence[ImageObject], covers: Span | None) -> list[ImageObject]:
        """Those of a page that are to be staged; what is gone from the keys that it covers is marked."""
        here = _one_of([one.key for one in images]) if covers is None else partial(within, covers=covers)
        rows = self._rows(connection, here)
        if any(row[1] and not row[2] for row in rows.values()):
            rows |= self._unmarked(connection, here)
        kept = self._kept(connection, here)
        found = [
            one
            for one in images
            if (row := rows.get(one.key)) is None or row[0] != one.etag or not row[2] or one.key in kept
        ]
        if self.saw is not None and covers is not None:
            listed = {one.key for one in images}
            self._mark(connection, [key for key, row in rows.items() if row[3] and key not in listed and self.saw(key)])
        return found

    def _rows(self, connection: Connection, here: Keys) -> dict[str, _Known]:
        """{key: ...} of the images under some keys, from their own rows alone."""
        marked = image.c.deleted_at.is_(None) & (image.c.mark == self.mark)
        return self._read(connection, here, func.coalesce(marked, false()))

    def _unmarked(self, connection: Connection, here: Keys) -> dict[str, _Known]:
        """Those that are predicted all the same: by the marked model as well, or before there were marks.

        Who has no mark gets it; where two models share a source, one of them has it, and it does not go to and fro.
        """
        predicted = exists().where(prediction.c.model_no == self.model_no, prediction.c.digest == image.c.digest)
        doubted = (image.c.deleted_at.is_(None), image.c.mark.is_distinct_from(self.mark), predicted)
        rows = self._read(connection, here, true(), *doubted)
        bare = [image.c.source_no == self.source_no, *here(image.c.key), image.c.mark.is_(None)]
        if connection.execute(select(image.c.key).where(*bare).limit(1)).first() is not None:
            bare += [image.c.deleted_at.is_(None), predicted]
            keys = list(connection.execute(select(image.c.key).where(*bare).order_by(image.c.key).with_for_update()))
            if keys:
                connection.execute(update(image).where(*bare).values(mark=self.mark))
        return rows

    def _read(
        self, connection: Connection, here: Keys, predicted: ColumnElement[bool], *which: ColumnElement[bool]
    ) -> dict[str, _Known]:
        living = image.c.deleted_at.is_(None)
        may_go = living & (image.c.recorded_at < self.started_at)
        query = select(image.c.key, image.c.etag, living, predicted, may_go)
        wanted = (image.c.source_no == self.source_no, *here(image.c.key), *which)
        found = connection.execute(query.where(*wanted).order_by(image.c.key))
        return {key: (etag, living, predicted, may_go) for key, etag, living, predicted, may_go in found}

    def _kept(self, connection: Connection, here: Keys) -> frozenset[str]:
        """Keys that deduplication has to see."""
        tables = [failure, block] if is_anything_blocked(connection) else [failure]
        found: set[str] = set()
        for table in tables:
            wanted = (table.c.source_no == self.source_no, *here(table.c.key))
            found.update(connection.execute(select(table.c.key).where(*wanted)).scalars())
        return frozenset(found)

    def _mark(self, connection: Connection, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), CHUNK):
            gone = (image.c.source_no == self.source_no, image.c.key.in_(keys[start : start + CHUNK]))
            # In the order in which commits lock them.
            connection.execute(select(image.c.key).where(*gone).order_by(image.c.key).with_for_update()).all()
            connection.execute(update(image).where(*gone, image.c.deleted_at.is_(None)).values(deleted_at=now()))


def ledger_of(engine: Engine, staging: Staging, model_id: str, saw: Callable[[str], bool] | None) -> Ledger:
    """What a run's objects are compared with: the predictions of a model that the cache knows."""
    with reading(engine) as connection:
        row = connection.execute(select(run.c.source_no, run.c.started_at).where(run.c.run_no == staging.run_no)).one()
        number = connection.execute(select(model.c.model_no).where(model.c.model_id == model_id)).scalar_one()
        return Ledger(row.source_no, number, mark_of(connection, number), saw, row.started_at)


def _one_of(keys: Sequence[str]) -> Keys:
    """Keys in no order, as inventories list them. A page of them is few enough for one statement."""
    return lambda key: [key.in_(keys)]


def within(key: ColumnElement[str], covers: Span) -> Iterator[ColumnElement[Any]]:
    """That a key lies in a span."""
    yield from under(key, covers.prefix)
    if covers.after is not None:
        yield key > covers.after
    if covers.until is not None:
        yield key <= covers.until
