"""Browse: the images of a pipeline as cards, by what was predicted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_PIPELINE
from afterimage_ui.asked import ORDERS, Asked, asked_of, place_of, written_place
from afterimage_ui.subjects import model_of, scope_of
from afterimage_ui.thumbnails import thumbnails_of
from tasks.cache.pages import gallery
from tasks.cache.pages.gallery import Found, Question
from tasks.cache.pages.scope import ModelName, PipelineScope

router = APIRouter(dependencies=[READ_PIPELINE])

CARDS = 48


@router.get("/pipelines/{pipeline}/browse", response_class=HTMLResponse)
def page(request: Request, pipeline: str) -> Response:
    """The filter is in the address, so that a page can be sent to somebody, and so is where it begins."""
    scope = scope_of(pipeline)
    asked = asked_of(request.query_params)
    model, problems = model_of(scope, asked.values.get("model"))
    after = request.query_params.get("after")
    try:
        found = page_of(scope, model, asked, after, CARDS)
    except ValueError:
        problems.append(f"after is {after!r}, which was left out. Expected what a page's own link says.")
        after = None
        found = page_of(scope, model, asked, after, CARDS)
    return shell.render(
        request,
        "browse.html",
        pipeline=pipeline,
        current="browse",
        scope=scope,
        model=model,
        asked=asked,
        orders=ORDERS,
        problems=[*asked.problems, *problems],
        labels=gallery.labels_of(caches.page_cache(), model.model_no),
        thumbnails=thumbnails_of(pipeline),
        **_shown(found, asked, after),
    )


def page_of(scope: PipelineScope, model: ModelName, asked: Asked, after: str | None, limit: int) -> Found:
    """A page of predictions. Raises ValueError where `after` is nothing that a page has written."""
    place = place_of(after, asked.order)
    question = Question(scope, model, asked.filter, limit)
    if asked.order == "key":
        return gallery.by_key(caches.page_cache(), question, place)
    return gallery.by_margin(caches.page_cache(), question, place)


def _shown(found: Found, asked: Asked, after: str | None) -> dict[str, Any]:
    following = written_place(found.after, asked.order)
    reached = found.after if asked.order == "key" or found.after is None else f"a margin of {found.after.margin:.4f}"
    return {
        "images": [{**row._mapping, "digest": row.digest.hex()} for row in found.rows],
        "found": found,
        "reached": reached,
        "first": asked.query() if after else None,
        "following": None if following is None else asked.query(after=following),
    }
