"""One image: what every model said of its bytes, and where else they are. Nothing of what the reader may not see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, and_, or_, select

from tasks.cache.database import reading
from tasks.cache.naming import top_ks
from tasks.cache.pages.filters import key_range
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import failure, image, model, pipeline, prediction, review, run, source

MOST = 50

Columns = tuple[ColumnElement[Any], ...]

_OF_A_MODEL: Columns = (model.c.model_id, model.c.name.label("model_name"), model.c.version.label("model_version"))
_A_PREDICTION: Columns = (*prediction.c, *_OF_A_MODEL, run.c.dag_id, run.c.run_id, run.c.pipeline)
_A_FAILURE: Columns = (*failure.c, *_OF_A_MODEL)
_A_TWIN: Columns = (source.c.uri.label("source"), image.c.source_no, image.c.key, image.c.deleted_at)
_SAID: Columns = (review.c.label, review.c.reviewer, review.c.reviewed_at)


@dataclass(frozen=True, slots=True)
class Visible:
    """What a reader may see: pipelines by name, the ranges of keys of these, and the models that they have used."""

    pipelines: frozenset[str]
    ranges: tuple[tuple[int, str], ...]
    models: frozenset[int]


def visible(engine: Engine, readable: Iterable[str]) -> Visible:
    """What belongs to these pipelines."""
    names = frozenset(readable)
    with reading(engine) as connection:
        ranges = connection.execute(
            select(pipeline.c.source_no, pipeline.c.prefix).where(pipeline.c.name.in_(names)).distinct()
        ).all()
        used = connection.execute(
            select(run.c.model_no).where(run.c.pipeline.in_(names), run.c.model_no.is_not(None)).distinct()
        ).scalars()
        return Visible(names, tuple((row.source_no, row.prefix) for row in ranges), frozenset(used))


def image_of(engine: Engine, scope: PipelineScope, key: str) -> Row[Any] | None:
    """The image under a key; None where there is none, or where it is another pipeline's."""
    if not key.startswith(scope.prefix) or "\0" in key:
        return None
    query = select(image).where(image.c.source_no == scope.source_no, image.c.key == key)
    return next(iter(_rows(engine, query)), None)


def predictions_of(engine: Engine, digest: bytes, seen: Visible) -> Sequence[tuple[Row[Any], list[dict[str, Any]]]]:
    """What the models have said of some bytes, the newest first, with the run that said it; and the best labels of each."""
    query = (
        select(*_A_PREDICTION)
        .join(model, model.c.model_no == prediction.c.model_no)
        .outerjoin(run, run.c.run_no == prediction.c.run_no)
        .where(prediction.c.model_no.in_(seen.models), prediction.c.digest == digest)
        .order_by(prediction.c.predicted_at.desc(), prediction.c.model_no.desc())
        .limit(MOST)
    )
    rows = _rows(engine, query)
    with reading(engine) as connection:
        return list(zip(rows, top_ks(connection, rows), strict=True))


def failures_of(engine: Engine, scope: PipelineScope, key: str, seen: Visible) -> Sequence[Row[Any]]:
    """The quarantine's rows for a key, the newest first."""
    query = (
        select(*_A_FAILURE)
        .join(model, model.c.model_no == failure.c.model_no)
        .where(failure.c.source_no == scope.source_no, failure.c.key == key, failure.c.model_no.in_(seen.models))
        .order_by(failure.c.last_failed_at.desc())
        .limit(MOST)
    )
    return _rows(engine, query)


def review_of(engine: Engine, name: str, digest: bytes) -> Row[Any] | None:
    """What a person said of some bytes in a pipeline."""
    query = select(*_SAID).where(review.c.pipeline == name, review.c.digest == digest)
    return next(iter(_rows(engine, query)), None)


def twins_of(engine: Engine, found: Row[Any], seen: Visible) -> Sequence[Row[Any]]:
    """Other keys of the same bytes, at most MOST, in the pipelines that the reader may see."""
    if not seen.ranges:
        return []
    within = or_(*(and_(image.c.source_no == one, *key_range(image.c.key, (prefix,))) for one, prefix in seen.ranges))
    query = (
        select(*_A_TWIN)
        .join(source, source.c.source_no == image.c.source_no)
        .where(image.c.digest == found.digest, within)
        .where(or_(image.c.source_no != found.source_no, image.c.key != found.key))
        .order_by(image.c.source_no, image.c.key)
        .limit(MOST)
    )
    return _rows(engine, query)


def _rows(engine: Engine, query: Any) -> Sequence[Row[Any]]:
    with reading(engine) as connection:
        found: Sequence[Row[Any]] = connection.execute(query).all()
        return found
