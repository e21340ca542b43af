"""The least certain predictions of a run, found without looking at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, select, union_all

from tasks.cache.database import reading
from tasks.cache.pages.progress import RunProgress
from tasks.cache.schema import image, model_label, prediction, work_item

# Up to so many rows of a run are joined to their predictions; beyond that the index on margins is followed for a while.
JOINED = 20_000

# How many of the model's least certain predictions are looked at, over all labels.
SCANNED = 20_000

# SQLite takes 500 parts of a UNION.
LABELS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A prediction with the key that it was found under; a card of the pages."""

    digest: str
    key: str
    label: str
    score: float
    margin: float


def least_certain(engine: Engine, found: RunProgress, most: int) -> tuple[list[Doubtful], bool]:
    """The predictions of a run whose best score is least ahead of the second, and whether these are all that could be.

    For a large run only the least certain of the whole model are looked at, so that others of the run may be left out.
    """
    if found.model_no is None:
        return [], True
    with reading(engine) as connection:
        if found.listed <= JOINED:
            return _joined(connection, found, most), True
        return _scanned(connection, found, most), False


def _joined(connection: Connection, found: RunProgress, most: int) -> list[Doubtful]:
    columns = (prediction.c.digest, image.c.key, prediction.c.label, prediction.c.score, prediction.c.margin)
    query = (
        select(*columns)
        .select_from(work_item)
        .join(image, (image.c.source_no == found.source_no) & (image.c.key == work_item.c.key))
        .join(prediction, (prediction.c.model_no == found.model_no) & (prediction.c.digest == image.c.digest))
        .where(
            work_item.c.run_no == found.run_no,
            work_item.c.generation == found.generation,
            work_item.c.outcome == "predicted",
        )
        .order_by(prediction.c.margin, image.c.key)
        .limit(most)
    )
    return [Doubtful(bytes(row[0]).hex(), *row[1:]) for row in connection.execute(query)]


def _scanned(connection: Connection, found: RunProgress, most: int) -> list[Doubtful]:
    """From each label's least certain on, so many rows, those of this run."""
    names = select(model_label.c.label_index).where(model_label.c.model_no == found.model_no)
    labels = list(connection.execute(names.order_by(model_label.c.label_index).limit(SCANNED)).scalars())
    rows: list[Row[Any]] = []
    each = max(most, SCANNED // max(1, len(labels)))
    for start in range(0, len(labels), LABELS_AT_ONCE):
        parts = [_of_label(found, label, each, most) for label in labels[start : start + LABELS_AT_ONCE]]
        rows += connection.execute(union_all(*parts)).all()
    first = sorted(rows, key=lambda row: (row.margin, row.digest))[:most]
    keys = _keys(connection, found, [row.digest for row in first])
    return [
        Doubtful(bytes(row.digest).hex(), keys[bytes(row.digest)], row.label, row.score, row.margin)
        for row in first
        if bytes(row.digest) in keys
    ]


def _of_label(found: RunProgress, label: int, each: int, most: int) -> Select[Any]:
    least = (
        select(prediction)
        .where(prediction.c.model_no == found.model_no, prediction.c.label_index == label)
        .order_by(prediction.c.margin)
        .limit(each)
        .subquery()
    )
    columns = (least.c.digest, least.c.label, least.c.score, least.c.margin)
    mine = select(*columns).where(least.c.run_no == found.run_no, least.c.generation == found.generation)
    return select(mine.order_by(least.c.margin).limit(most).subquery())


def _keys(connection: Connection, found: RunProgress, digests: Sequence[bytes]) -> dict[bytes, str]:
    """{digest: the first key that holds these bytes}, of the images under the run's prefix."""
    under = func.substr(image.c.key, 1, len(found.prefix)) == found.prefix
    query = select(image.c.digest, func.min(image.c.key)).where(
        image.c.digest.in_(digests), image.c.source_no == found.source_no, under
    )
    rows = connection.execute(query.group_by(image.c.digest)).all() if digests else []
    return {bytes(row[0]): row[1] for row in rows}
