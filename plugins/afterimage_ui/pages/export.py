"""Export: whole tables of a pipeline as CSV or Parquet, streamed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_PIPELINE
from afterimage_ui.asked import asked_of
from afterimage_ui.caches import EXPORT_CONNECTIONS
from afterimage_ui.listed import NAMES, NotAsked, listing_of
from afterimage_ui.subjects import model_of, scope_of
from tasks.cache.pages import gallery, listings
from tasks.cache.pages.listings import Listing
from tasks.exporting import TYPES, WRITERS

router = APIRouter(dependencies=[READ_PIPELINE])

# Each holds a connection for as long as somebody's download takes; the others must not wait for it in the server's threads.
_free = threading.BoundedSemaphore(EXPORT_CONNECTIONS)

BUSY = "Two exports are being written already. Wait until one has ended, and try again."


@router.get("/pipelines/{pipeline}/export", response_class=HTMLResponse)
def page(request: Request, pipeline: str) -> Response:
    """What can be taken out, and how many rows it has."""
    scope = scope_of(pipeline)
    asked = asked_of(request.query_params)
    model, problems = model_of(scope, asked.values.get("model"))
    problems = [*asked.problems, *problems]
    counts = _counts(pipeline, request) if not problems else {}
    return shell.render(
        request,
        "export.html",
        pipeline=pipeline,
        current="export",
        scope=scope,
        model=model,
        asked=asked,
        problems=problems,
        labels=gallery.labels_of(caches.page_cache(), model.model_no),
        names=NAMES,
        counts=counts,
        formats=tuple(WRITERS),
    )


@router.get("/pipelines/{pipeline}/export/{name}")
def download(request: Request, pipeline: str, name: str, format: str = "csv") -> Response:
    """The file. Its rows and their number are of one moment."""
    try:
        if format not in WRITERS:
            raise NotAsked(f"format is {format!r}. Expected one of: {', '.join(WRITERS)}.")
        listing = listing_of(pipeline, name, asked_of(request.query_params))
    except NotAsked as problem:
        raise shell.PageProblem(str(problem), 404 if name not in NAMES else 400) from None
    pieces = _pieces(listing, format)
    count = int(next(pieces))
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", f"afterimage-{pipeline}-{name}-{count}")
    headers = {"X-Row-Count": str(count), "Content-Disposition": f'attachment; filename="{stem}.{format}"'}
    return StreamingResponse(pieces, media_type=TYPES[format], headers=headers)


def _counts(pipeline: str, request: Request) -> dict[str, int]:
    """{name: rows}; empty while others export."""
    if not _free.acquire(blocking=False):
        return {}
    try:
        asked = asked_of(request.query_params)
        return {name: listings.count(caches.export_cache(), listing_of(pipeline, name, asked)) for name in NAMES}
    finally:
        _free.release()


def _pieces(listing: Listing, form: str) -> Iterator[bytes]:
    """The number of rows, then the file in pieces. The first is taken before the answer begins: a generator that has begun is
    ended, and gives its connection back, also where nobody waits for the answer any more."""
    with ExitStack() as held:
        held.enter_context(_place())
        found = held.enter_context(listings.snapshot(caches.export_cache(), listing))
        yield str(found.count).encode()
        yield from WRITERS[form](found.kinds, found.rows)


@contextmanager
def _place() -> Iterator[None]:
    """One of the few exports at a time. Raises PageProblem at once where all are taken."""
    if not _free.acquire(blocking=False):
        raise shell.PageProblem(BUSY, 429)
    try:
        yield
    finally:
        _free.release()
