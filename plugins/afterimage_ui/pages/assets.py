"""Styles and scripts, by name."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

from afterimage_ui.access import SIGNED_IN
from afterimage_ui.shell import ASSETS

router = APIRouter(dependencies=[SIGNED_IN])

TYPES = {".css": "text/css", ".js": "text/javascript"}


@router.get("/assets/{name}")
def asset(name: str) -> Response:
    """One of the files that lie in assets/, and nothing else."""
    known = {path.name: path for path in ASSETS.iterdir() if path.suffix in TYPES}
    if name not in known:
        raise HTTPException(404)
    # The pages ask for it with its version, so that a browser may keep it.
    headers = {"Cache-Control": "private, max-age=86400"}
    return FileResponse(known[name], media_type=TYPES[known[name].suffix], headers=headers)
