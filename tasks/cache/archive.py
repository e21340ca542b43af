"""Predictions that leave the cache as a whole and come back: which of them, in one snapshot, and as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, exists, select

from tasks.cache import bulk
from tasks.cache.blocking import blocked_digests, hold_off_erasing
from tasks.cache.commits import PREDICTION, first_insert_wins
from tasks.cache.database import reading_one_moment, repeated, writing
from tasks.cache.keeping.counting import count
from tasks.cache.keeping.retention import find_model, model_numbers
from tasks.cache.models import add_partition, register_model
from tasks.cache.naming import labels_of
from tasks.cache.pages.filters import key_range
from tasks.cache.runs import insert
from tasks.cache.schema import image, model, model_label, pipeline, prediction, run
from tasks.errors import ConfigurationError

NO_RUN, NO_GENERATION = 0, 0
"""What made a prediction that came with a file: no run of this cache."""


@dataclass(frozen=True, slots=True)
class Asked:
    """All must hold; None asks for nothing. Moments are those of the predictions: `since` is included, `before` is not.

    `model` is a model_id or NAME@VERSION; `pipeline` means the bytes of all images under its prefix, by whatever model.
    """

    model: str | None = None
    pipeline: str | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeptModel:
    """What a cache knows of a model; `labels` are those outputs that have a name."""

    model_id: str
    name: str
    version: str
    spec: Mapping[str, Any]
    labels: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How many predictions there are, the models that made them, and the predictions themselves, a model at a time.

    A row has digest, label_index, score, margin, entropy, top_k as it is packed, predicted_at, dag_id and run_id.
    """

    count: int
    models: Sequence[KeptModel]
    groups: Iterator[tuple[KeptModel, Sequence[Row[Any]]]]


@dataclass(frozen=True, slots=True)
class Restored:
    """Predictions that were new, that were there already, and whose bytes were erased for good."""

    inserted: int = 0
    there: int = 0
    blocked: int = 0

    def __add__(self, other: Restored) -> Restored:
        return Restored(self.inserted + other.inserted, self.there + other.there, self.blocked + other.blocked)


@contextmanager
def snapshot(engine: Engine, asked: Asked, group_rows: int) -> Iterator[Snapshot]:
    """All of one moment, in groups of so many rows. Raises ConfigurationError where model or pipeline is not known."""
    with reading_one_moment(engine) as connection:
        conditions = _conditions(connection, asked)
        numbers = _model_numbers(connection, conditions)
        models = {number: _kept(connection, number) for number in numbers}
        rows = count(connection, select(prediction.c.digest).where(*conditions))
        yield Snapshot(rows, list(models.values()), _groups(connection, models, conditions, group_rows))


def _conditions(connection: Connection, asked: Asked) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if asked.model is not None:
        conditions.append(prediction.c.model_no == find_model(connection, asked.model))
    if asked.since is not None:
        conditions.append(prediction.c.predicted_at >= asked.since)
    if asked.before is not None:
        conditions.append(prediction.c.predicted_at < asked.before)
    if asked.pipeline is not None:
        conditions.append(_of_pipeline(connection, asked.pipeline))
    return conditions


def _of_pipeline(connection: Connection, name: str) -> ColumnElement[bool]:
    known = {row.name: row for row in connection.execute(select(pipeline))}
    if name not in known:
        raise ConfigurationError(
            f"The cache knows no pipeline {name!r}. It knows: {', '.join(sorted(known)) or 'none'}. Name one of them."
        )
    here = (image.c.source_no == known[name].source_no, *key_range(image.c.key, (known[name].prefix,)))
    return exists().where(image.c.digest == prediction.c.digest, *here)


def _model_numbers(connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> list[int]:
    """Those that have made any of them; each is asked for its first one, because there are few models and many rows."""
    any_of = select(prediction.c.model_no).where(*conditions).limit(1)
    return [
        number
        for number in model_numbers(connection)
        if connection.execute(any_of.where(prediction.c.model_no == number)).first()
    ]


def _kept(connection: Connection, number: int) -> KeptModel:
    row = connection.execute(select(model).where(model.c.model_no == number)).one()
    return KeptModel(row.model_id, row.name, row.version, json.loads(row.spec), labels_of(connection, number))


def _groups(
    connection: Connection,
    models: Mapping[int, KeptModel],
    conditions: Sequence[ColumnElement[bool]],
    group_rows: int,
) -> Iterator[tuple[KeptModel, Sequence[Row[Any]]]]:
    streaming = connection.execution_options(yield_per=group_rows)
    for number, kept in models.items():
        found = streaming.execute(_rows(number, conditions))
        for rows in found.partitions():
            yield kept, rows


def _rows(number: int, conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """In no order: PostgreSQL then reads the table from its beginning to its end."""
    columns = (
        prediction.c[name] for name in ("digest", "label_index", "score", "margin", "entropy", "top_k", "predicted_at")
    )
    made = prediction.outerjoin(run, run.c.run_no == prediction.c.run_no)
    query = select(*columns, run.c.dag_id, run.c.run_id).select_from(made)
    return query.where(prediction.c.model_no == number, *conditions)


def register(engine: Engine, models: Sequence[KeptModel]) -> dict[str, int]:
    """{model_id: number} of models that come with a file. Raises ConfigurationError where the cache knows one otherwise."""
    with writing(engine) as connection:
        return {one.model_id: _register(connection, one) for one in models}


def _register(connection: Connection, one: KeptModel) -> int:
    known = connection.execute(select(model).where(model.c.model_id == one.model_id)).one_or_none()
    if known is not None:
        _check_same(connection, known, one)
    number = register_model(connection, one.model_id, one.name, one.version, one.spec)
    rows = [{"model_no": number, "label_index": index, "label": label} for index, label in one.labels.items()]
    if rows:
        connection.execute(insert(connection, model_label).on_conflict_do_nothing(), rows)
    return number


def _check_same(connection: Connection, known: Row[Any], one: KeptModel) -> None:
    said = f"The model {one.model_id[:12]} ({one.name} {one.version})"
    if json.loads(known.spec) != one.spec:
        raise ConfigurationError(
            f"{said} has another spec in the cache than in the file: the file was changed. Export it anew."
        )
    for index, label in labels_of(connection, known.model_no).items():
        if one.labels.get(index, label) != label:
            raise ConfigurationError(
                f"{said} calls its output {index} {one.labels[index]!r} in the file and {label!r} in the cache: the file was "
                "changed. Export it anew."
            )


@repeated
def restore(engine: Engine, model_no: int, rows: Sequence[bulk.Row]) -> Restored:
    """Insert predictions of one model, whose digests are all different; what is there stays as it is.

    Rows are those of `restored_row`. What was erased for good stays out.
    """
    place = PREDICTION.index("digest")
    with writing(engine) as connection:
        hold_off_erasing(connection)
        add_partition(connection, model_no)  # Somebody may have dropped it since the model was registered.
        banned = blocked_digests(connection, {row[place] for row in rows})
        fresh = [row for row in rows if row[place] not in banned]
        made = bulk.write(connection, prediction, PREDICTION, fresh, first_insert_wins)
        inserted = 0 if made is None else len(made.all())
    return Restored(inserted, len(fresh) - inserted, len(rows) - len(fresh))


def restored_row(
    model_no: int, digest: bytes, numbers: tuple[int, float, float, float], top_k: bytes, predicted_at: datetime
) -> bulk.Row:
    """The values of a prediction that came with a file; `numbers` are label_index, score, margin and entropy."""
    return predicted_at, model_no, NO_RUN, *numbers, NO_GENERATION, digest, top_k
