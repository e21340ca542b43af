"""One run: what became of its images. Also the tab of a DAG run."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_DAG
from tasks.cache import contract
from tasks.cache.runs import OUTCOMES

router = APIRouter(dependencies=[READ_DAG])


@router.get("/runs/{dag_id}/{run_id}", response_class=HTMLResponse)
def page(request: Request, dag_id: str, run_id: str) -> Response:
    """A polite answer for the runs of other DAGs: the tab is on every DAG run."""
    run = contract.run_of(caches.page_cache(), dag_id, run_id)
    if run is None:
        # No error: a DAG run that has not listed yet, or that is none of ours.
        told = "This run has no images: it is none of a pipeline, or it has not begun to list them."
        raise shell.PageProblem(told, 200)
    return shell.render(request, "run.html", run=run, outcomes=(*OUTCOMES, "open"))
