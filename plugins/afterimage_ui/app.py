"""The app behind the tab.

Airflow does not authenticate the apps of plugins, so every route asks for the right to read the runs of its DAG.
There is no OpenAPI page, which Airflow would serve to anybody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.templating import Jinja2Templates
from sqlalchemy.exc import SQLAlchemyError

from tasks.cache import contract
from tasks.cache.database import connect
from tasks.cache.runs import OUTCOMES
from tasks.errors import AfterimageError
from tasks.settings import load_settings
from tasks.tables import printable

if TYPE_CHECKING:
    from sqlalchemy import Engine

QUERY_TIMEOUT = timedelta(seconds=5)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

FOLDER = Path(__file__).parent

templates = Jinja2Templates(FOLDER / "templates")
templates.env.filters["printable"] = printable


def create_app() -> FastAPI:
    """The app; its routes are plain functions, so that a slow query holds a thread and not the API server."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    may_read = Depends(requires_access_dag("GET", DagAccessEntity.RUN))
    app.get("/runs/{dag_id}/{run_id}", response_class=HTMLResponse, dependencies=[may_read])(run_page)
    app.get("/style.css", dependencies=[Depends(get_user)])(style)
    app.middleware("http")(_guard)
    return app


def run_page(request: Request, dag_id: str, run_id: str) -> Response:
    """What became of the images of one run; a polite answer for the runs of other DAGs."""
    try:
        run = contract.run_of(_engine(), dag_id, run_id)
        problem = None if run else "This run has no images: it is none of a pipeline, or it has not begun to list them."
    except AfterimageError as error:
        run, problem = None, str(error)
    except SQLAlchemyError:
        run, problem = None, "The cache could not be read. Run ./afterimage doctor where the API server runs."
    shown = {"run": run, "problem": problem, "outcomes": (*OUTCOMES, "open")}
    return templates.TemplateResponse(request, "run.html", shown)


def style() -> Response:
    """The style sheet: a route, because Airflow would serve a static folder to anybody."""
    return FileResponse(FOLDER / "style.css", media_type="text/css")


async def _guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Nothing but our own text and style is let into the page; refusals carry the headers as well."""
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


@cache
def _engine() -> Engine:
    return connect(load_settings().database_url, QUERY_TIMEOUT)
