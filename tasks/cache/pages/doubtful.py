"""The least certain predictions of a run, found without looking at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from tasks.cache.database import reading
from tasks.cache.naming import label_of
from tasks.cache.pages.progress import RunProgress
from tasks.cache.pages.walking import gather, way_of
from tasks.cache.schema import image, prediction, work_item

# Up to so many images that shards work on are looked up, so many at a time: for more, PostgreSQL would rather read all images
# there are. Beyond that the index on margins is followed for a while.
JOINED, CHUNK = 2_000, 500


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A prediction with the key that it was found under; a card of the pages."""

    digest: str
    key: str
    label: str
    score: float
    margin: float


@dataclass(frozen=True, slots=True)
class Least:
    """The least certain predictions of a run. `looked` is None where no more were asked for; else the time was up after so many
    of the model's least certain, and the run has others beyond them."""

    predictions: Sequence[Doubtful]
    looked: int | None


def least_certain(engine: Engine, found: RunProgress, most: int) -> Least:
    """The predictions of a run whose best score is least ahead of the second.

    In a large run the least certain of the whole model are walked through for a bounded time; there may be fewer than `most`.
    """
    if found.model_no is None:
        return Least((), None)
    with reading(engine) as connection:
        if found.expected <= JOINED:
            return Least(_joined(connection, found, most), None)
        return _walked(connection, found, found.model_no, most)


def _joined(connection: Connection, found: RunProgress, most: int) -> list[Doubtful]:
    mine = (work_item.c.run_no == found.run_no, work_item.c.generation == found.generation)
    worked_on = select(work_item.c.key).where(*mine, work_item.c.shard >= 0, work_item.c.outcome == "predicted")
    keys = list(connection.execute(worked_on.limit(JOINED)).scalars())
    rows: list[Doubtful] = []
    for start in range(0, len(keys), CHUNK):
        rows += _of_keys(connection, found, keys[start : start + CHUNK], most)
    return sorted(rows, key=lambda row: (row.margin, row.key))[:most]


def _of_keys(connection: Connection, found: RunProgress, keys: Sequence[str], most: int) -> list[Doubtful]:
    label = label_of().label("label")
    columns = (prediction.c.digest, image.c.key, label, prediction.c.score, prediction.c.margin)
    query = (
        select(*columns)
        .select_from(image)
        .join(prediction, (prediction.c.model_no == found.model_no) & (prediction.c.digest == image.c.digest))
        .where(image.c.source_no == found.source_no, image.c.key.in_(keys))
        .order_by(prediction.c.margin, image.c.key)
        .limit(most)
    )
    return [Doubtful(bytes(row[0]).hex(), *row[1:]) for row in connection.execute(query)]


def _walked(connection: Connection, found: RunProgress, model_no: int, most: int) -> Least:
    """From the model's least certain on, in their order, those of this run, until these are enough or the time is up."""
    walk = gather(connection, way_of(connection, model_no), None, most, lambda some: _of_run(connection, found, some))
    return Least(walk.rows, walk.looked if walk.after is not None and len(walk.rows) < most else None)


def _of_run(connection: Connection, found: RunProgress, digests: list[bytes]) -> dict[bytes, Doubtful]:
    """Those of the predictions that a run made, under the first key of each below the run's prefix."""
    # As an expression, or PostgreSQL may look for the least key through all keys of the source.
    least = func.min(image.c.key.concat(""))
    under = func.substr(image.c.key, 1, len(found.prefix)) == found.prefix
    here = (image.c.digest == prediction.c.digest, image.c.source_no == found.source_no, under)
    key = select(least).where(*here).correlate(prediction).scalar_subquery()
    label = label_of().label("label")
    columns = (prediction.c.digest, key.label("key"), label, prediction.c.score, prediction.c.margin)
    query = select(*columns).where(
        prediction.c.model_no == found.model_no,
        prediction.c.digest.in_(digests),
        prediction.c.run_no == found.run_no,
        prediction.c.generation == found.generation,
    )
    return {
        bytes(row.digest): Doubtful(bytes(row.digest).hex(), row.key, row.label, row.score, row.margin)
        for row in connection.execute(query)
        if row.key is not None
    }
