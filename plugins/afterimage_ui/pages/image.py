"""One image: what each model said of it, what people said, and where else its bytes are."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_PIPELINE, Reader, ReaderDep, dag_of
from afterimage_ui.subjects import scope_of
from afterimage_ui.thumbnails import thumbnails_of
from tasks.cache.naming import stage_of
from tasks.cache.pages import single
from tasks.cache.pages.scope import PipelineScope, known_pipelines
from tasks.cache.pages.single import Visible

router = APIRouter(dependencies=[READ_PIPELINE])


@router.get("/pipelines/{pipeline}/image", response_class=HTMLResponse)
def page(request: Request, reader: ReaderDep, pipeline: str, key: str = "") -> Response:
    """A page also for keys that only failed."""
    scope = scope_of(pipeline)
    found = facts_of(reader, scope, key)
    if found is None:
        raise shell.PageProblem(f"The pipeline {pipeline!r} has no image under the key {key!r}. Look for it in Browse.")
    return shell.render(
        request,
        "image.html",
        pipeline=pipeline,
        image=found,
        most=single.MOST,
        thumbnails=thumbnails_of(pipeline),
    )


def facts_of(reader: Reader, scope: PipelineScope, key: str) -> dict[str, Any] | None:
    """All that this reader may know of a key; None where the pipeline has neither an image nor a failure under it."""
    cache = caches.page_cache()
    seen = single.visible(cache, reader.readable(known_pipelines(cache)))
    found = single.image_of(cache, scope, key)
    inside = key.startswith(scope.prefix) and "\0" not in key
    failures = single.failures_of(cache, scope, key, seen) if inside else []
    if found is None and not failures:
        return None
    about: dict[str, Any] = {
        "source": scope.source,
        "key": key,
        "failures": [_failure(row) for row in failures],
        "image": None,
        "predictions": [],
        "review": None,
        "twins": [],
    }
    if found is None:
        return about
    names = ("etag", "size", "last_modified", "recorded_at", "deleted_at")
    about["image"] = {**{name: found._mapping[name] for name in names}, "digest": found.digest.hex()}
    about["predictions"] = [_prediction(*said, seen) for said in single.predictions_of(cache, found.digest, seen)]
    said = single.review_of(cache, scope.name, found.digest)
    about["review"] = None if said is None else dict(said._mapping)
    about["twins"] = [_twin(row, scope) for row in single.twins_of(cache, found, seen)]
    return about


def _prediction(row: Any, best: list[dict[str, Any]], seen: Visible) -> dict[str, Any]:
    names = ("model_id", "model_name", "model_version", "score", "margin", "entropy")
    told = row.pipeline in seen.pipelines
    return {
        **{name: row._mapping[name] for name in names},
        "label": best[0]["label"],
        "top_k": best,
        "cascade_stage": stage_of(row.top_k),
        "predicted_at": row.predicted_at,
        # Another pipeline may have used the model first: its runs are not for everybody.
        "dag_id": row.dag_id if told else None,
        "run_id": row.run_id if told else None,
        "in_airflow": told and row.dag_id == dag_of(row.pipeline),
    }


def _failure(row: Any) -> dict[str, Any]:
    names = ("etag", "reason", "message", "attempts", "next_retry_at", "first_failed_at", "last_failed_at")
    return {name: row._mapping[name] for name in (*names, "model_id", "model_name", "model_version")}


def _twin(row: Any, scope: PipelineScope) -> dict[str, Any]:
    inside = row.source_no == scope.source_no and row.key.startswith(scope.prefix)
    return {"source": row.source, "key": row.key, "deleted_at": row.deleted_at, "in_pipeline": inside}
