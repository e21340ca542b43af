"""What a page is asked for in its address; what makes no sense is told as a problem of the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from afterimage_ui.shell import PageProblem
from tasks.cache.pages.scope import PipelineScope, pipeline_scope
from tasks.cache.pages.walking import Position
from tasks.listing import can_be_stored

if TYPE_CHECKING:
    from sqlalchemy import Engine


def scope_of(cache: Engine, pipeline: str) -> PipelineScope:
    """The scope of a pipeline. Raises PageProblem before its first successful run."""
    scope = pipeline_scope(cache, pipeline) if can_be_stored(pipeline) else None
    if scope is None:
        raise PageProblem(f"The pipeline {pipeline} has no run that has succeeded yet. Trigger its DAG, and come back.")
    return scope


def number_in(name: str, text: str) -> float | None:
    """A number; None where the field is empty. Raises PageProblem."""
    try:
        number = float(text) if text.strip() else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise PageProblem(f"{name} = {text[:80]!r} is no number. Write one such as 0.25, or leave it empty.", 422)
    return number


def position_in(text: str) -> Position | None:
    """Where a walk goes on; None at its beginning. Raises PageProblem."""
    try:
        position = Position.parse(text) if text else None
    except ValueError:
        position = Position(math.nan, b"")
    if position is not None and not math.isfinite(position.margin):
        raise PageProblem(f"after = {text[:80]!r} is no place in the list. Begin again without it.", 422)
    return position
