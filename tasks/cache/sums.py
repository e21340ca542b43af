"""The sums that pages read instead of images: a run adds up what came with it, once.

    label_count   images by day (UTC, of LastModified) and label
    score_count   images by day and by one of 20 parts of the score
    pair_count    images by this model's label and another model's; whoever reads adds (A, B) and (B, A), turned round

They are history: an image that is overwritten counts again on its new day, and one that is deleted or erased stays counted. Two
runs that read the same new object at the same time both count it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from tasks.cache import naming
from tasks.cache.counting import BINS, COUNTED, Owner, add_up, write
from tasks.cache.database import reading, repeated, writing
from tasks.cache.runs import SUCCESS, Staging, check_generation
from tasks.cache.schema import (
    image,
    label_count,
    pair_count,
    pipeline,
    run,
    score_count,
    work_item,
)
from tasks.errors import ConfigurationError

# Of no attempt, whose numbers begin with 1: no run that is published again replaces what was added up anew.
REBUILT = 0


@repeated
def count_run(engine: Engine, staging: Staging) -> None:
    """Add up what came with a run, in place of what it had added up before. Raises StaleGeneration.

    A run that has succeeded was added up before it did. Its images may have been overwritten since, so that is not repeated.
    """
    with writing(engine) as connection:
        row = check_generation(connection, staging)
        if row.state != SUCCESS:
            add_up(connection, row)


@repeated
def rebuild_sums(engine: Engine, name: str) -> int:
    """Add up all images of a pipeline anew, for every model that has predicted for it; how many images of all models that is.

    What is added up hangs on the newest successful run of each model. A run that has staging and has not succeeded may go on:
    its rows stay, and its images are left to it. Raises ConfigurationError before the first successful run.
    """
    with writing(engine) as connection:
        found = connection.execute(select(pipeline).where(pipeline.c.name == name)).one_or_none()
        if found is None:
            raise ConfigurationError(
                f"The pipeline {name!r} has no successful run, so there is nothing to add up. Run ./afterimage predict {name}."
            )
        _remove_rebuilt(connection, name)
        models = connection.execute(_models(name)).all()
        for place, (model_no, run_no) in enumerate(models):
            images = _left_to_nobody(found.source_no, found.prefix, name, model_no)
            # Each pair once: the later model is the one that looks back.
            earlier = [number for number, _ in models[:place]]
            write(connection, Owner(name, model_no, run_no, REBUILT), images, earlier)
        rebuilt = (score_count.c.pipeline == name, score_count.c.generation == REBUILT)
        return int(
            connection.execute(select(func.coalesce(func.sum(score_count.c.images), 0)).where(*rebuilt)).scalar_one()
        )


def _models(name: str) -> Select[Any]:
    """(model_no, run_no of its newest successful run, or else of its newest), the oldest model first."""
    succeeded = func.max(case((run.c.state == SUCCESS, run.c.run_no)))
    return (
        select(run.c.model_no, func.coalesce(succeeded, func.max(run.c.run_no)))
        .where(run.c.pipeline == name, run.c.model_no.is_not(None))
        .group_by(run.c.model_no)
        .order_by(func.max(run.c.run_no))
    )


def _unfinished(name: str) -> ColumnElement[bool]:
    return and_(run.c.pipeline == name, run.c.state != SUCCESS)


def _remove_rebuilt(connection: Connection, name: str) -> None:
    staged = exists().where(work_item.c.run_no == run.c.run_no, work_item.c.generation == run.c.generation)
    kept = select(run.c.run_no, run.c.generation).where(_unfinished(name), staged)
    for table in (label_count, score_count, pair_count):
        attempt = tuple_(table.c.run_no, table.c.generation)
        connection.execute(delete(table).where(table.c.pipeline == name, attempt.not_in(kept)))


def _left_to_nobody(source_no: int, prefix: str, name: str, model_no: int) -> Select[Any]:
    """The images of a pipeline but those that a run which may go on has counted, or will count."""
    theirs = exists().where(
        _unfinished(name),
        run.c.model_no == model_no,
        work_item.c.run_no == run.c.run_no,
        work_item.c.generation == run.c.generation,
        work_item.c.key == image.c.key,
        work_item.c.outcome.in_(COUNTED),
        or_(run.c.force.is_(False), image.c.recorded_at >= run.c.started_at),
    )
    mine = func.substr(image.c.key, 1, len(prefix)) == prefix
    return select(image.c.digest, image.c.last_modified).where(image.c.source_no == source_no, mine, ~theirs)


@dataclass(frozen=True, slots=True)
class Counts:
    """Images by label_index, and by part of the score."""

    labels: Mapping[int, int]
    scores: Sequence[int]

    @property
    def images(self) -> int:
        """How many they are."""
        return sum(self.scores)


def counts_of_run(engine: Engine, staging: Staging) -> Counts:
    """What a run has added up."""
    return _counts(
        engine, lambda table: and_(table.c.run_no == staging.run_no, table.c.generation == staging.generation)
    )


def counts_of_days(engine: Engine, name: str, model_no: int, first: date, last: date) -> Counts:
    """What all runs of a pipeline have added up for the days from `first` to `last`, both included."""
    return _counts(
        engine,
        lambda table: and_(table.c.pipeline == name, table.c.model_no == model_no, table.c.day.between(first, last)),
    )


def _counts(engine: Engine, which: Callable[[Table], ColumnElement[bool]]) -> Counts:
    with reading(engine) as connection:
        labels, scores = (
            {number: int(images) for number, images in connection.execute(_sum(table, kind).where(which(table)))}
            for table, kind in ((label_count, label_count.c.label_index), (score_count, score_count.c.bin))
        )
    return Counts(labels, [scores.get(number, 0) for number in range(BINS)])


def _sum(table: Table, kind: ColumnElement[int]) -> Select[int, int]:
    return select(kind, func.sum(table.c.images)).group_by(kind)


def model_of(engine: Engine, staging: Staging) -> int | None:
    """The model of a run; None before it deduplicated."""
    with reading(engine) as connection:
        query = select(run.c.model_no).where(run.c.run_no == staging.run_no, run.c.generation == staging.generation)
        found: int | None = connection.execute(query).scalar_one_or_none()
        return found


def labels_of(engine: Engine, model_no: int, indices: Collection[int]) -> dict[int, str]:
    """{label_index: label} of a model; `#7` where the cache does not know its name."""
    with reading(engine) as connection:
        return naming.labels_of(connection, model_no, indices)
