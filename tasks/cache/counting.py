"""Sums over images: how many of each label and score on each day, and how two models answered the same image.

They are set-based and alike on both databases. tasks/cache/sums.py says when they are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    Integer,
    Row,
    Select,
    Subquery,
    and_,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
)

from tasks.cache.database import is_sqlite
from tasks.cache.schema import image, label_count, pair_count, prediction, run, score_count, work_item

BINS = 20
"""Equal parts of a score's range from 0 to 1; the last one includes 1."""

COUNTED = ("predicted", "reused")
"""Outcomes of images that came to the cache with a run."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose rows these are: one attempt of list_images, so that clearing a run loses nothing of the attempt before."""

    pipeline: str
    model_no: int
    run_no: int
    generation: int


def add_up(connection: Connection, row: Row[Any]) -> None:
    """Replace the sums of a run by what its staging says; `row` is the run's, and locked.

    Without staging it keeps what it had, and so does a folder that the command line was pointed at, which is no pipeline.
    """
    mine = (work_item.c.run_no == row.run_no, work_item.c.generation == row.generation)
    staged = select(work_item.c.key).where(*mine).limit(1)
    if row.pipeline is None or row.model_no is None or connection.execute(staged).first() is None:
        return
    owner = Owner(row.pipeline, row.model_no, row.run_no, row.generation)
    came = (
        select(image.c.digest, image.c.last_modified)
        .join_from(work_item, image, and_(image.c.source_no == row.source_no, image.c.key == work_item.c.key))
        .where(*mine, work_item.c.outcome.in_(COUNTED))
    )
    if row.force and _is_counted(connection, owner):
        # The others were counted when they came.
        came = came.where(image.c.recorded_at >= row.started_at)
    remove(connection, owner)
    write(connection, owner, came, other_models(connection, owner))


def _is_counted(connection: Connection, owner: Owner) -> bool:
    """Whether other attempts have counted images of this model."""
    others = or_(score_count.c.run_no != owner.run_no, score_count.c.generation != owner.generation)
    query = select(score_count.c.run_no).where(
        score_count.c.pipeline == owner.pipeline, score_count.c.model_no == owner.model_no, others
    )
    return connection.execute(query.limit(1)).first() is not None


def other_models(connection: Connection, owner: Owner) -> list[int]:
    """The other models that have predicted for the pipeline."""
    query = select(run.c.model_no).where(
        run.c.pipeline == owner.pipeline, run.c.model_no.is_not(None), run.c.model_no != owner.model_no
    )
    return sorted(connection.execute(query.distinct()).scalars())


def remove(connection: Connection, owner: Owner) -> None:
    """Remove the rows of one attempt."""
    for table in (label_count, score_count, pair_count):
        mine = (table.c.run_no == owner.run_no, table.c.generation == owner.generation)
        connection.execute(delete(table).where(*mine))


def write(connection: Connection, owner: Owner, images: Select[Any], others: list[int]) -> None:
    """Add up images, given with `digest` and `last_modified`: labels, scores, and pairs with other models."""
    scored = _scored(connection, owner.model_no, images)
    _insert(connection, label_count, owner, scored, [scored.c.day, scored.c.label_index])
    _insert(connection, score_count, owner, scored, [scored.c.day, scored.c.bin])
    if others:
        other = prediction.alias("other")
        pairs = scored.join(other, and_(other.c.digest == scored.c.digest, other.c.model_no.in_(others)))
        kinds = [other.c.model_no, scored.c.label_index, other.c.label_index]
        _insert(connection, pair_count, owner, pairs, kinds)


def _scored(connection: Connection, model_no: int, images: Select[Any]) -> Subquery:
    """A row for each image: day, label_index, bin, digest."""
    found = images.subquery("found")
    same = and_(prediction.c.digest == found.c.digest, prediction.c.model_no == model_no)
    return (
        select(
            day_of(connection, found.c.last_modified).label("day"),
            prediction.c.label_index,
            _bin_of(connection, prediction.c.score).label("bin"),
            found.c.digest,
        )
        .join_from(found, prediction, same)
        .subquery("scored")
    )


def _insert(connection: Connection, table: Any, owner: Owner, source: Any, kinds: list[Any]) -> None:
    """The columns of a table are pipeline, model_no, what is counted, run_no, generation and images, in this order."""
    whose = [literal(owner.pipeline), literal(owner.model_no)]
    attempt = [literal(owner.run_no), literal(owner.generation)]
    counted: list[Any] = [*whose, *kinds, *attempt, func.count()]
    query = select(*counted).select_from(source).group_by(*kinds)
    connection.execute(table.insert().from_select([column.name for column in table.c], query))


def day_of(connection: Connection, moment: ColumnElement[Any]) -> ColumnElement[Any]:
    """The day of a moment in UTC."""
    if is_sqlite(connection):
        return func.date(moment, type_=Date)
    return cast(func.timezone("UTC", moment), Date)


def _bin_of(connection: Connection, score: ColumnElement[Any]) -> ColumnElement[int]:
    """The part of 0 to 1 that a score lies in. PostgreSQL would round where SQLite cuts off."""
    part = score * BINS
    if is_sqlite(connection):
        return func.min(cast(part, Integer), BINS - 1)
    return func.least(cast(func.floor(part), Integer), BINS - 1)
