"""One run: how far it has come, what became of its images, and where its time went. Also the tab of a DAG run."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_DAG, ReaderDep
from afterimage_ui.thumbnails import thumbnails_of
from tasks import stage_times
from tasks.cache import contract
from tasks.cache.pages.doubtful import JOINED, least_certain
from tasks.cache.pages.progress import RunProgress, run_failures, run_progress
from tasks.cache.runs import OUTCOMES

router = APIRouter(dependencies=[READ_DAG])

PICTURES = 12

# Runs of the command line have no page in Airflow.
COMMAND_LINE = "cli"

IN_WORDS = {
    "cached": "known under this key and ETag; not read",
    "known_bad": "in quarantine, and not due yet; not read",
    "deferred": "new, and beyond the limit of this run",
    "reused": "read; these bytes had a prediction already",
    "predicted": "a forward pass of this run",
    "failed": "in quarantine now",
    "vanished": "gone when it was read",
    "open": "without an outcome yet",
    "settled": "settled without reading: cached, known_bad or deferred",
    "done": "read and committed",
}


@router.get("/runs/{dag_id}/{run_id}", response_class=HTMLResponse)
def page(request: Request, dag_id: str, run_id: str, reader: ReaderDep) -> Response:
    """A polite answer for the runs of other DAGs: the tab is on every DAG run."""
    engine = caches.page_cache()
    run, found = contract.run_of(engine, dag_id, run_id), run_progress(engine, dag_id, run_id)
    if run is None or found is None:
        # No error: a DAG run that has not listed yet, or that is none of ours.
        told = "This run has no images: it is none of a pipeline, or it has not begun to list them."
        raise shell.PageProblem(told, 200)
    pipeline = run["pipeline"]
    if pipeline is not None and not reader.readable([pipeline]):
        # A DAG such as maintain_cache works for several pipelines.
        raise HTTPException(403, "Forbidden")
    return shell.render(
        request,
        "run.html",
        run=run,
        found=found,
        pipeline=pipeline,
        parts=found.parts() if found.is_running else [(name, run[name]) for name in (*OUTCOMES, "open")],
        words=IN_WORDS,
        failures=run_failures(engine, found, PICTURES),
        least=least_certain(engine, found, PICTURES),
        joined=JOINED,
        thumbnails=thumbnails_of(pipeline),
        in_airflow=dag_id != COMMAND_LINE,
        **_stages(run, found),
    )


def _stages(run: dict[str, Any], found: RunProgress) -> dict[str, Any]:
    """Where the time went: as it was closed, or while it runs added up from its shards."""
    if not found.is_running:
        return {"stages": run["stages"], "stage_seconds": run["stage_seconds"], "held_back_by": run["held_back_by"]}
    return {
        "stages": stage_times.summary(found.times),
        "stage_seconds": {stage: found.times[stage].busy for stage in stage_times.ordered(found.times)},
        "held_back_by": stage_times.held_back_by(found.times),
    }
