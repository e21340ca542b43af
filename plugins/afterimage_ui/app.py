"""The app behind the pages.

There is no OpenAPI page, which Airflow would serve to anybody, and no static folder, which it would serve as well: styles and
scripts are a route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from afterimage_ui import shell
from afterimage_ui.pages import (
    api,
    assets,
    browse,
    compare,
    drift,
    export,
    failures,
    image,
    overview,
    review,
    run,
    thumbnails,
)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


PAGES_AT_ONCE = 8
_threads = asyncio.Semaphore(PAGES_AT_ONCE)


def create_app() -> FastAPI:
    """The app; its routes are plain functions, so that a slow query holds a thread and not the API server."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for page in (api, assets, browse, compare, drift, export, failures, image, overview, review, run, thumbnails):
        app.include_router(page.router)
    app.middleware("http")(_guard)
    shell.tell_problems(app)
    return app


async def _guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Nothing but our own text, style, scripts and thumbnails is let into a page; refusals carry the headers as well.

    A page that waits for the cache holds one of the threads that all of Airflow's API server shares, so pages have their own
    number of them, and the next one waits without a thread.
    """
    async with _threads:
        response = await answer(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response
