"""The pipeline and the model that a page is about."""

from __future__ import annotations

from afterimage_ui import caches
from afterimage_ui.shell import PageProblem
from tasks.cache.pages.scope import ModelName, PipelineScope, pipeline_scope
from tasks.listing import can_be_stored


def scope_of(pipeline: str) -> PipelineScope:
    """The scope of a pipeline. Raises PageProblem before its first successful run."""
    found = pipeline_scope(caches.page_cache(), pipeline) if can_be_stored(pipeline) else None
    if found is None:
        raise PageProblem(
            f"The pipeline {pipeline!r} has no predictions yet: no run of its whole schedule has ended well. Start one, or wait."
        )
    return found


def model_of(scope: PipelineScope, asked: str | None) -> tuple[ModelName, list[str]]:
    """The model that an address names by its id or the beginning of it; the current one and a problem for an unknown one."""
    found = scope.model(asked or None)
    if found is not None:
        return found, []
    known = ", ".join(f"{one.model_id[:12]} ({one.title})" for one in scope.models)
    return scope.current, [f"model is {asked!r}, which was left out. Expected the beginning of one of: {known}."]
