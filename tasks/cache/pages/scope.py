"""Which images and models belong to a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from tasks.cache.database import reading
from tasks.cache.schema import model, pipeline, run, source


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as a person knows it."""

    model_no: int
    model_id: str
    name: str
    version: str

    @property
    def title(self) -> str:
        """`resnet50 2`."""
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class PipelineScope:
    """The images under `prefix` of a source, and the models that have predicted them, the newest first.

    `current` is the model whose predictions the pipeline's users see.
    """

    name: str
    source_no: int
    source: str
    prefix: str
    current: ModelName
    models: tuple[ModelName, ...]

    def model(self, model_id: str | None) -> ModelName | None:
        """One of the models by its id or the beginning of it; the current one for None."""
        if model_id is None:
            return self.current
        return next((one for one in self.models if model_id and one.model_id.startswith(model_id)), None)


def known_pipelines(engine: Engine) -> list[str]:
    """The names of all pipelines that have run, in alphabetical order."""
    with reading(engine) as connection:
        query = select(run.c.pipeline).where(run.c.pipeline.is_not(None)).distinct().order_by(run.c.pipeline)
        return list(connection.execute(query).scalars())


def pipeline_scope(engine: Engine, name: str) -> PipelineScope | None:
    """The scope of a pipeline; None before its first successful run."""
    with reading(engine) as connection:
        found = connection.execute(
            select(pipeline.c.source_no, pipeline.c.prefix, pipeline.c.model_no, source.c.uri)
            .join(source, source.c.source_no == pipeline.c.source_no)
            .where(pipeline.c.name == name)
        ).one_or_none()
        if found is None:
            return None
        used = (
            select(run.c.model_no, func.max(run.c.run_no).label("newest"))
            .where(run.c.pipeline == name, run.c.model_no.is_not(None))
            .group_by(run.c.model_no)
            .subquery()
        )
        rows = connection.execute(
            select(model.c.model_no, model.c.model_id, model.c.name, model.c.version)
            .join(used, used.c.model_no == model.c.model_no)
            .order_by(used.c.newest.desc())
        )
        models = tuple(ModelName(*row) for row in rows)
    current = next(one for one in models if one.model_no == found.model_no)
    return PipelineScope(name, found.source_no, found.uri, found.prefix, current, models)
