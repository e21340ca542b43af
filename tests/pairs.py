"""What tests of the pages need in the cache besides runs: sums of pairs of labels, counted one image at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Engine, delete, select

from tasks.cache.database import connect, reading, writing
from tasks.cache.pages.scope import PipelineScope, pipeline_scope
from tasks.cache.schema import image, pair_count, prediction, run


def labels_by_key(engine: Engine, scope: PipelineScope, model_no: int) -> dict[str, tuple[int, str, float]]:
    """{key: (label's index, label, score)} of a pipeline's living images under a model; without index and without limit."""
    query = (
        select(image.c.key, prediction.c.label_index, prediction.c.label, prediction.c.score)
        .join(prediction, prediction.c.digest == image.c.digest)
        .where(image.c.source_no == scope.source_no, image.c.deleted_at.is_(None), prediction.c.model_no == model_no)
    )
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return {row.key: (row.label_index, row.label, row.score) for row in rows if row.key.startswith(scope.prefix)}


def write_pair_counts(url: str, pipelines: Sequence[str]) -> None:
    """The pairs of each two models of a pipeline, as the later model's last run would have written them."""
    engine = connect(url)
    for name in pipelines:
        scope = pipeline_scope(engine, name)
        assert scope is not None
        with writing(engine) as connection:
            connection.execute(delete(pair_count).where(pair_count.c.pipeline == name))
        for place, later in enumerate(scope.models):
            for earlier in scope.models[place + 1 :]:
                _write(engine, scope, later.model_no, earlier.model_no)
    engine.dispose()


def _write(engine: Engine, scope: PipelineScope, later: int, earlier: int) -> None:
    ours, theirs = labels_by_key(engine, scope, later), labels_by_key(engine, scope, earlier)
    pairs = Counter((ours[key][0], theirs[key][0]) for key in ours.keys() & theirs.keys())
    with writing(engine) as connection:
        newest = select(run.c.run_no).where(run.c.pipeline == scope.name, run.c.model_no == later)
        run_no = max(connection.execute(newest).scalars())
        names = ("pipeline", "model_no", "other_model_no", "label_index", "other_label_index", "run_no", "images")
        values = [(scope.name, later, earlier, *pair, run_no, images) for pair, images in pairs.items()]
        if values:
            connection.execute(pair_count.insert(), [dict(zip(names, row, strict=True)) for row in values])
