"""The model row, and which digests it has predicted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text

from tasks.cache.database import is_sqlite, reading, repeated
from tasks.cache.packing import MOST_LABELS
from tasks.cache.runs import Staging, insert, now
from tasks.cache.schema import EPOCHS, SCHEMA, model, model_label, prediction
from tasks.errors import ConfigurationError

CHUNK = 500


def register_model(
    connection: Connection, model_id: str, name: str, version: str, spec: Mapping[str, Any], labels: Sequence[str] = ()
) -> int:
    """The number of a model; a new one gets a row with its whole spec, and one for each label. Its first name stays.

    In PostgreSQL it also gets its partition of the predictions, where it has none. Raises ConfigurationError for more labels than
    a prediction can hold.
    """
    if len(labels) > MOST_LABELS:
        raise ConfigurationError(
            f"The model {name} {version} has {len(labels):,} labels, and the cache holds at most {MOST_LABELS:,} of a model. "
            "Use a model with fewer outputs."
        )
    values = {"model_id": model_id, "name": name, "version": version, "created_at": now()}
    connection.execute(
        insert(connection, model).values(**values, spec=json.dumps(spec, sort_keys=True)).on_conflict_do_nothing()
    )
    model_no = int(connection.execute(select(model.c.model_no).where(model.c.model_id == model_id)).scalar_one())
    known = select(func.count()).select_from(model_label).where(model_label.c.model_no == model_no)
    if connection.execute(known).scalar_one() < len(labels):
        rows = [{"model_no": model_no, "label_index": index, "label": label} for index, label in enumerate(labels)]
        connection.execute(insert(connection, model_label).on_conflict_do_nothing(), rows)
    add_partition(connection, model_no)
    return model_no


def is_known(engine: Engine, model_id: str) -> bool:
    """Whether a model was ever registered here."""
    with reading(engine) as connection:
        return connection.execute(select(model.c.model_no).where(model.c.model_id == model_id)).first() is not None


def mark_of(connection: Connection, model_no: int) -> int:
    """What an image bears whose bytes have a prediction of this model. It is another one once they were all dropped."""
    epoch = connection.execute(select(model.c.epoch).where(model.c.model_no == model_no)).scalar_one()
    return model_no * EPOCHS + int(epoch)


def add_partition(connection: Connection, model_no: int) -> None:
    """Make the place for the predictions of a model in PostgreSQL, where there is none. Only an owner may, so a function does."""
    if not is_sqlite(connection):
        connection.execute(text(f"SELECT {SCHEMA}.add_partition(:number)"), {"number": model_no})


@repeated
def predicted_digests(engine: Engine, model_no: int, digests: Collection[bytes], made_by: Staging | None) -> set[bytes]:
    """Which of these digests have a prediction of this model; with `made_by`, one that this attempt at a run made.

    A run that Airflow clears keeps its number and gets a new generation, so both are asked for.
    """
    with reading(engine) as connection:
        return predicted_now(connection, model_no, digests, made_by)


def predicted_now(
    connection: Connection, model_no: int, digests: Collection[bytes], made_by: Staging | None = None
) -> set[bytes]:
    """As predicted_digests, in the caller's transaction."""
    found: set[bytes] = set()
    ordered = sorted(digests)
    for start in range(0, len(ordered), CHUNK):
        wanted = select(prediction.c.digest).where(
            prediction.c.model_no == model_no, prediction.c.digest.in_(ordered[start : start + CHUNK])
        )
        if made_by is not None:
            wanted = wanted.where(prediction.c.run_no == made_by.run_no, prediction.c.generation == made_by.generation)
        found.update(bytes(digest) for (digest,) in connection.execute(wanted))
    return found
