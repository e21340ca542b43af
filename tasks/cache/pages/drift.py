"""Labels and scores of a model by day, from the sums of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, Engine, Table, func, select

from tasks.cache.counting import BINS
from tasks.cache.database import reading
from tasks.cache.schema import label_count, score_count
from tasks.cache.sums import Counts


def newest_days(engine: Engine, pipeline: str, model_no: int, count: int) -> tuple[date, date] | None:
    """The first and the last of the newest days with images; None where there are none."""
    found = _days(engine, pipeline, model_no, count, newest=True)
    return (found[-1], found[0]) if found else None


def first_days(engine: Engine, pipeline: str, model_no: int, count: int) -> tuple[date, date] | None:
    """The first and the last of the oldest days with images; None where there are none."""
    found = _days(engine, pipeline, model_no, count, newest=False)
    return (found[0], found[-1]) if found else None


def _days(engine: Engine, pipeline: str, model_no: int, count: int, *, newest: bool) -> Sequence[date]:
    """One step along the primary key for each day: DISTINCT would read every row of the model."""
    day, mine = score_count.c.day, (score_count.c.pipeline == pipeline, score_count.c.model_no == model_no)
    found: list[date] = []
    with reading(engine) as connection:
        while len(found) < count:
            edge = func.max(day) if newest else func.min(day)
            beyond = [day < found[-1] if newest else day > found[-1]] if found else []
            one = connection.execute(select(edge).where(*mine, *beyond)).scalar_one()
            if one is None:
                break
            found.append(one)
    return found


def counts_by_day(engine: Engine, pipeline: str, model_no: int, first: date, last: date) -> dict[date, Counts]:
    """What came on each day from `first` to `last`, both included, in their order; days without images are not there."""
    with reading(engine) as connection:
        labels = _by_day(connection, label_count, "label_index", pipeline, model_no, first, last)
        scores = _by_day(connection, score_count, "bin", pipeline, model_no, first, last)
    return {
        day: Counts(labels.get(day, {}), [scores[day].get(number, 0) for number in range(BINS)])
        for day in sorted(scores)
    }


def _by_day(
    connection: Connection, table: Table, kind: str, pipeline: str, model_no: int, first: date, last: date
) -> dict[date, dict[int, int]]:
    day = table.c.day
    mine = (table.c.pipeline == pipeline, table.c.model_no == model_no, day.between(first, last))
    query = select(day, table.c[kind], func.sum(table.c.images)).where(*mine).group_by(day, table.c[kind])
    found: dict[date, dict[int, int]] = {}
    for when, number, images in connection.execute(query):
        found.setdefault(when, {})[number] = int(images)
    return found


def together(days: Sequence[Counts]) -> Counts:
    """Several days together."""
    labels: dict[int, int] = {}
    for day in days:
        for index, images in day.labels.items():
            labels[index] = labels.get(index, 0) + images
    return Counts(labels, [sum(day.scores[number] for day in days) for number in range(BINS)])
