"""The least certain predictions of a pipeline that nobody has reviewed: what a person should look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, exists, select

from tasks.cache.database import reading
from tasks.cache.naming import top_ks
from tasks.cache.pages.scope import ModelName, PipelineScope
from tasks.cache.pages.walking import Found, Position, first_key, gather, way_of
from tasks.cache.schema import prediction, review


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A prediction; of several images with the same bytes the first key stands for all."""

    digest: str
    key: str
    label: str
    label_index: int
    score: float
    margin: float
    top_k: list[dict[str, Any]]


def uncertain(
    engine: Engine,
    scope: PipelineScope,
    model: ModelName,
    label: str | None = None,
    after: Position | None = None,
    limit: int = 20,
    margin_to: float | None = None,
) -> Found[Uncertain]:
    """Up to `limit` predictions of a model, by their margin; of one label, beyond a position, and up to a margin.

    It may end with fewer, and with a position from which to go on, where very many have been reviewed or are of another
    pipeline.
    """
    with reading(engine) as connection:
        way = way_of(connection, model.model_no, label, margin_to)
        return gather(connection, way, after, limit, lambda digests: _open(connection, scope, model.model_no, digests))


def _open(connection: Connection, scope: PipelineScope, model_no: int, digests: list[bytes]) -> dict[bytes, Uncertain]:
    """Those of the pipeline that have no review."""
    reviewed = exists().where(review.c.pipeline == scope.name, review.c.digest == prediction.c.digest)
    key = first_key(scope, prediction.c.digest).label("key")
    query = select(prediction, key).where(
        prediction.c.model_no == model_no, prediction.c.digest.in_(digests), ~reviewed
    )
    rows = [row for row in connection.execute(query) if row.key is not None]
    return {
        bytes(row.digest): Uncertain(
            bytes(row.digest).hex(), row.key, best[0]["label"], row.label_index, row.score, row.margin, best
        )
        for row, best in zip(rows, top_ks(connection, rows), strict=True)
    }
