"""Review: the least certain predictions that nobody has looked at, and what persons say of them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, StringConstraints

from afterimage_ui import asking, caches, shell
from afterimage_ui.access import CHANGE_PIPELINE, READ_PIPELINE, ReaderDep
from afterimage_ui.subjects import scope_of
from afterimage_ui.thumbnails import thumbnails_of
from tasks.cache.pages import reviewing
from tasks.cache.pages.scope import PipelineScope, pipeline_scope
from tasks.cache.pages.uncertain import Uncertain, uncertain
from tasks.cache.pages.walking import Found
from tasks.listing import can_be_stored
from tasks.tables import printable

router = APIRouter()

BATCH = 20
MOST_CHOICES = 9  # one for each digit

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Answer(BaseModel):
    """What a person says is on an image, and the model whose prediction the page showed."""

    model_config = ConfigDict(extra="forbid")

    digest: Digest
    label: Annotated[str, StringConstraints(max_length=10_000)]
    model_id: Annotated[str, StringConstraints(max_length=1_000)]


class Removed(BaseModel):
    """A review that is taken back."""

    model_config = ConfigDict(extra="forbid")

    digest: Digest


@router.get("/pipelines/{pipeline}/review", response_class=HTMLResponse, dependencies=[READ_PIPELINE])
def page(
    request: Request, pipeline: str, reader: ReaderDep, label: str = "", margin_to: str = "", after: str = ""
) -> Response:
    """The next images to review, of one label or up to a margin where that is asked for."""
    cache = caches.page_cache()
    scope = scope_of(pipeline)
    most, position = asking.number_in("margin_to", margin_to), asking.position_in(after)
    model = scope.current
    known = not label or (can_be_stored(label) and reviewing.has_label(cache, model.model_no, label))
    found: Found[Uncertain] = Found([], None, 0)
    if known:
        found = uncertain(cache, scope, model, label or None, position, BATCH, most)
    labels = reviewing.labels_of(cache, model.model_no)
    asked = {"label": label, "margin_to": margin_to}
    return shell.render(
        request,
        "review.html",
        pipeline=pipeline,
        current="review",
        model=model,
        found=found,
        labels=labels,
        knows_label=known,
        asked=asked,
        is_first=position is None,
        next=_query({**asked, "after": str(found.after or "")}),
        first=_query(asked),
        judged=reviewing.judged(cache, pipeline),
        may_change=reader.may_change(pipeline),
        thumbnails=thumbnails_of(pipeline),
        items=[_item(row) for row in found.rows],
        odd_labels={name: printable(name) for name in labels if not name.isprintable()},
    )


@router.post("/pipelines/{pipeline}/reviews", dependencies=[CHANGE_PIPELINE])
def save(pipeline: str, answer: Answer, reader: ReaderDep) -> dict[str, str]:
    """Keep what a person says; it replaces what was said of the same bytes before."""
    cache = caches.page_cache()
    scope = _scope(pipeline)
    model = scope.model(answer.model_id or "-")
    if model is None:
        told = f"The pipeline {pipeline} has not run with the model {answer.model_id[:80]!r}. Load the page again."
        raise HTTPException(422, told)
    if not can_be_stored(answer.label) or not reviewing.has_label(cache, model.model_no, answer.label):
        told = f"{printable(answer.label[:200])!r} is no label of {model.title}. Take one of the list."
        raise HTTPException(422, told)
    if not reviewing.is_of_pipeline(cache, scope, bytes.fromhex(answer.digest)):
        raise HTTPException(404, f"No image of the pipeline {pipeline} has these bytes now. Load the page again.")
    reviewing.save_review(cache, pipeline, bytes.fromhex(answer.digest), answer.label, model.model_no, reader.name)
    return {"digest": answer.digest, "label": answer.label, "reviewer": reader.name}


@router.post("/pipelines/{pipeline}/reviews/removed", dependencies=[CHANGE_PIPELINE])
def remove(pipeline: str, removed: Removed) -> dict[str, Any]:
    """Take a review back, whoever wrote it."""
    _scope(pipeline)
    was_there = reviewing.remove_review(caches.page_cache(), pipeline, bytes.fromhex(removed.digest))
    return {"digest": removed.digest, "removed": was_there}


def _scope(pipeline: str) -> PipelineScope:
    scope = pipeline_scope(caches.page_cache(), pipeline)
    if scope is None:
        raise HTTPException(404, f"The pipeline {pipeline} has no run that has succeeded.")
    return scope


def _query(values: dict[str, str]) -> str:
    return "?" + urlencode({name: value for name, value in values.items() if value})


def _item(row: Uncertain) -> dict[str, Any]:
    """For the script: labels as they are sent back, and all text as it is shown."""
    choices = [
        {"label": best["label"], "shown": printable(best["label"]), "score": f"{best['score']:.1%}"}
        for best in row.top_k[:MOST_CHOICES]
    ]
    return {
        "digest": row.digest,
        "key": row.key,
        "shown": printable(row.key),
        "label": row.label,
        "margin": f"{row.margin:.3f}",
        "choices": choices,
    }
