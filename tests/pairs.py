"""What a model says of each image of a pipeline, read without index and without limit."""

from __future__ import annotations

from sqlalchemy import Engine, select

from tasks.cache.database import reading
from tasks.cache.naming import label_of
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import image, prediction


def labels_by_key(engine: Engine, scope: PipelineScope, model_no: int) -> dict[str, tuple[int, str, float]]:
    """{key: (label's index, label, score)} of a pipeline's living images under a model."""
    query = (
        select(image.c.key, prediction.c.label_index, label_of().label("label"), prediction.c.score)
        .join(prediction, prediction.c.digest == image.c.digest)
        .where(image.c.source_no == scope.source_no, image.c.deleted_at.is_(None), prediction.c.model_no == model_no)
    )
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return {row.key: (row.label_index, row.label, row.score) for row in rows if row.key.startswith(scope.prefix)}
