"""What could not be predicted, and why; and buttons that have it tried again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, StringConstraints

from afterimage_ui import caches, shell
from afterimage_ui.access import CHANGE_PIPELINE, READ_PIPELINE, ReaderDep, dag_of
from afterimage_ui.thumbnails import thumbnails_of
from tasks.cache.outcome import BLOCKED
from tasks.cache.pages.failures import Failed, Place, failed_images, failure_scope, reasons
from tasks.cache.quarantine import mark_due

router = APIRouter()

ROWS = 50

# No store has longer keys, and no reason is as long.
MOST_CHARACTERS = 4096

NoText = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]


class Retry(BaseModel):
    """What to try again: a key, a reason, or without either all that may pass; `start` asks where a run is started."""

    model_config = ConfigDict(extra="forbid")

    reason: NoText | None = None
    key: NoText | None = None
    start: bool = False


@router.get("/pipelines/{pipeline}/failures", response_class=HTMLResponse, dependencies=[READ_PIPELINE])
def page(
    request: Request,
    pipeline: str,
    reader: ReaderDep,
    reason: str = "",
    key: str = "",
    before: str = "",
    after_key: str = "",
) -> Response:
    """By reason, then image by image, the newest first. `key` is the beginning of keys, below the pipeline's own prefix too."""
    engine = caches.page_cache()
    scope = failure_scope(engine, pipeline)
    if scope is None:
        raise shell.PageProblem(f"{pipeline} has not looked at any image yet. Start a run of {dag_of(pipeline)}.")
    rows = failed_images(engine, scope, ROWS + 1, reason, key, _place(before, after_key))
    shown = rows[:ROWS]
    return shell.render(
        request,
        "failures.html",
        pipeline=pipeline,
        current="failures",
        scope=scope,
        reasons=reasons(engine, scope),
        failures=shown,
        reason=reason,
        key=key,
        is_first=not before,
        more=_next(shown[-1], reason, key) if len(rows) > ROWS else None,
        blocked=BLOCKED,
        thumbnails=thumbnails_of(pipeline),
        may_change=reader.may_change(pipeline),
    )


def _place(before: str, key: str) -> Place | None:
    """Where the page before ended, from its link. A PageProblem where somebody has changed it."""
    if not before:
        return None
    try:
        moment = datetime.fromisoformat(before)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise shell.PageProblem(f"before={before} is no moment in time. Begin at the first page.", 400)
    return Place(moment, key)


def _next(last: Failed, reason: str, key: str) -> str:
    values = {"reason": reason, "key": key, "before": last.last_failed_at.isoformat(), "after_key": last.key}
    return urlencode({name: value for name, value in values.items() if value}, quote_via=quote)


@router.post("/pipelines/{pipeline}/retries", dependencies=[CHANGE_PIPELINE])
def retry(request: Request, pipeline: str, wanted: Retry) -> dict[str, Any]:
    """Mark failures of this pipeline as due, for its next run. Where one is to be started, the answer says by which address.

    A run is started by the browser, as its user: Airflow then knows who it was.
    """
    engine = caches.page_cache()
    scope = failure_scope(engine, pipeline)
    if scope is None:
        raise HTTPException(404, f"{pipeline} has not looked at any image yet.")
    marked = mark_due(engine, wanted.reason, wanted.key, scope.source, scope.prefix, scope.model_no)
    answer: dict[str, Any] = {"marked": marked}
    if wanted.start and marked:
        airflow = f"{request.scope.get('root_path', '')}/.."
        dag_id = quote(dag_of(pipeline), safe="")
        answer |= {"start": f"{airflow}/api/v2/dags/{dag_id}/dagRuns", "runs": f"{airflow}/dags/{dag_id}/runs/"}
    return answer
