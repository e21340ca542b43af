"""All predictions of a model in PostgreSQL: its partition, whose files go at once, with nothing to vacuum.

Dropping it takes the table from readers for a moment, in the transaction that has found the model unused. DETACH CONCURRENTLY
would not, but it cannot be in one transaction with that look, and where it is interrupted the partition is neither there nor
gone: a run that comes to the model just then would have no place for its predictions.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, Table, update

from tasks.cache.keeping.retention import check_unused
from tasks.cache.schema import SCHEMA, model


def drop_partition(connection: Connection, model_no: int) -> None:
    """The model's next run makes another one, and believes no mark of an image. Raises ConfigurationError where it is in use."""
    check_unused(connection, model_no)
    connection.execute(update(model).where(model.c.model_no == model_no).values(epoch=model.c.epoch + 1))
    Table(f"prediction_{model_no}", MetaData(), schema=SCHEMA).drop(connection, checkfirst=True)
