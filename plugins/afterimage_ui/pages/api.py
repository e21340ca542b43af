"""The same rows as JSON, for programs: read only, with the rights of whoever asks."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder

from afterimage_ui import caches
from afterimage_ui.access import READ_PIPELINE, ReaderDep
from afterimage_ui.asked import Asked, asked_of, written_place
from afterimage_ui.listed import NotAsked, listing_of
from afterimage_ui.pages.browse import page_of
from afterimage_ui.pages.image import facts_of
from afterimage_ui.subjects import model_of, scope_of
from tasks.cache.pages import listings
from tasks.cache.pages.gallery import Question
from tasks.cache.pages.scope import known_pipelines, pipeline_scope

router = APIRouter()

MOST = 1_000


@router.get("/api/pipelines")
def pipelines(reader: ReaderDep) -> Response:
    """Those that the reader may see."""
    found = []
    for name in reader.readable(known_pipelines(caches.page_cache())):
        scope = pipeline_scope(caches.page_cache(), name)
        shown: dict[str, Any] = {"pipeline": name, "source": None, "prefix": None, "model_id": None, "models": []}
        if scope is not None:
            models = [
                {"model_id": one.model_id, "name": one.name, "version": one.version, "current": one == scope.current}
                for one in scope.models
            ]
            shown.update(source=scope.source, prefix=scope.prefix, model_id=scope.current.model_id, models=models)
        found.append(shown)
    return _json({"pipelines": found})


@router.get("/api/pipelines/{pipeline}/predictions", dependencies=[READ_PIPELINE])
def predictions(request: Request, pipeline: str, limit: str = "100", after: str | None = None) -> Response:
    """A page of what Browse shows; `next` is null at the end, and a page may be short before it (`looked_at`)."""
    asked, most = asked_of(request.query_params), _limit(limit)
    scope = scope_of(pipeline)
    model, problems = model_of(scope, asked.values.get("model"))
    if asked.problems or problems:
        raise _refused(" ".join([*asked.problems, *problems]))
    try:
        found = page_of(scope, model, asked, after, most)
    except ValueError:
        raise _refused(f"after is {after!r}. Expected what `next` of a page says.") from None
    listing = listings.predictions(Question(scope, model, asked.filter), sqlite=True)
    following = written_place(found.after, asked.order)
    return _json(
        {
            "predictions": listings.written(caches.page_cache(), listing, found.rows),
            "looked_at": found.looked_at,
            "next": _next(request, asked, most, following),
        }
    )


@router.get("/api/pipelines/{pipeline}/runs", dependencies=[READ_PIPELINE])
def runs(request: Request, pipeline: str, limit: str = "100", after: str | None = None) -> Response:
    """The newest first."""
    return _listed(request, pipeline, "runs", limit, after)


@router.get("/api/pipelines/{pipeline}/failures", dependencies=[READ_PIPELINE])
def failures(request: Request, pipeline: str, limit: str = "100", after: str | None = None) -> Response:
    """The quarantine, in the order of keys."""
    return _listed(request, pipeline, "failures", limit, after)


@router.get("/api/pipelines/{pipeline}/reviews", dependencies=[READ_PIPELINE])
def reviews(request: Request, pipeline: str, limit: str = "100", after: str | None = None) -> Response:
    """Labels that people gave, in the order of keys."""
    return _listed(request, pipeline, "reviews", limit, after)


@router.get("/api/pipelines/{pipeline}/image", dependencies=[READ_PIPELINE])
def image(reader: ReaderDep, pipeline: str, key: str = "") -> Response:
    """All that is known of one key."""
    found = facts_of(reader, scope_of(pipeline), key)
    if found is None:
        raise HTTPException(404, f"The pipeline {pipeline!r} has no image under the key {key!r}.")
    return _json(found)


def _listed(request: Request, pipeline: str, name: str, limit: str, after: str | None) -> Response:
    asked, most = asked_of({}), _limit(limit)
    try:
        place = None if after is None else json.loads(after)
        if place is not None and not isinstance(place, list):
            raise ValueError
        listing = listing_of(pipeline, name, asked)
        rows, following = listings.page(caches.page_cache(), listing, place, most)
    except NotAsked as problem:
        raise _refused(str(problem)) from None
    except ValueError:
        raise _refused(f"after is {after!r}. Expected what `next` of a page says.") from None
    written = None if following is None else json.dumps(following)
    return _json({name: rows, "next": _next(request, asked, most, written)})


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST:
        raise _refused(f"limit is {text!r}. Expected a number from 1 to {MOST}.")
    return int(text)


def _refused(problem: str) -> HTTPException:
    return HTTPException(400, problem.replace(", which was left out", ""))


def _next(request: Request, asked: Asked, limit: int, after: str | None) -> str | None:
    """The address of the next page, without the server's name."""
    if after is None:
        return None
    return f"{request.url.path}?{asked.query(after=after, limit=str(limit))}"


def _json(content: Any) -> Response:
    return Response(json.dumps(jsonable_encoder(content), ensure_ascii=False), media_type="application/json")
