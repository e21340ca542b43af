"""Compare: two models of a pipeline side by side, and the images on which they differ."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import asking, caches, shell
from afterimage_ui.access import READ_PIPELINE
from afterimage_ui.subjects import scope_of
from afterimage_ui.thumbnails import thumbnails_of
from tasks.cache.pages import comparison, reviewing
from tasks.cache.pages.comparison import Confusion, Difference
from tasks.cache.pages.scope import ModelName, PipelineScope
from tasks.cache.pages.walking import Found
from tasks.listing import can_be_stored

router = APIRouter(dependencies=[READ_PIPELINE])

IMAGES, PAIRS = 24, 10
HEATS = 10  # the classes heat-0 to heat-9 of the style sheet

From = Annotated[str, Query(alias="from")]


@router.get("/pipelines/{pipeline}/compare", response_class=HTMLResponse)
def page(
    request: Request, pipeline: str, a: str = "", b: str = "", from_: From = "", to: str = "", after: str = ""
) -> Response:
    """Models `a` and `b`, by default the one before and the current one; `from` and `to` choose labels of theirs."""
    cache = caches.page_cache()
    scope = scope_of(pipeline)
    if len(scope.models) < 2:
        return shell.render(request, "compare.html", pipeline=pipeline, current="compare", scope=scope, pair=None)
    pair = _pair(scope, a, b)
    position = asking.position_in(after)
    differences: Found[Difference] = Found([], None, 0)
    if can_be_stored(from_) and can_be_stored(to):
        differences = comparison.differing(cache, scope, *pair, from_ or None, to or None, position, IMAGES)
    agreement = comparison.agreement(cache, pipeline, *pair)
    table = comparison.confusion(agreement)
    models = {"a": pair[0].model_id, "b": pair[1].model_id}
    cell = {name: label for name, label in (("from", from_), ("to", to)) if label}
    return shell.render(
        request,
        "compare.html",
        pipeline=pipeline,
        current="compare",
        scope=scope,
        pair=pair,
        agreement=agreement,
        pairs=agreement.pairs[:PAIRS],
        table=table,
        heats=_heats(table),
        accuracies=[(model, reviewing.judged(cache, pipeline, model.model_no)) for model in pair],
        differences=differences,
        is_full=len(differences.rows) == IMAGES,
        cell=cell,
        here="?" + urlencode(models),
        next="?" + urlencode({**models, **cell, "after": str(differences.after or "")}),
        thumbnails=thumbnails_of(pipeline),
    )


def _pair(scope: PipelineScope, a: str, b: str) -> tuple[ModelName, ModelName]:
    """The models asked for; by default the current one, and the newest of the others. Raises PageProblem."""
    one = scope.model(a) if a else None
    # Where only A is chosen and is the current model, B is the newest of the others.
    rest = [model for model in (scope.current, *scope.models) if model != one]
    other = scope.model(b) if b else rest[0]
    if not a:
        one = next(model for model in scope.models if model != other)
    if one is None or other is None:
        missing = (b if other is None else a)[:80]
        raise shell.PageProblem(
            f"The pipeline {scope.name} has not run with the model {missing!r}. Choose another one."
        )
    if one == other:
        raise shell.PageProblem(f"Both are {one.title}. Go back, and choose two models that differ.", 422)
    return one, other


def _heats(table: Confusion) -> dict[tuple[str | None, str | None], int]:
    """How hot each cell is, from 0 to HEATS - 1, by its share of the hottest pair; what is folded together is as hot at most."""
    most = max((images for cell, images in table.images.items() if None not in cell), default=1)
    return {cell: min(HEATS - 1, images * HEATS // (most + 1)) for cell, images in table.images.items()}
