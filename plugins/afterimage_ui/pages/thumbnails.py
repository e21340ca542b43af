"""The small picture of an image, as the shard that decoded it wrote it down: nothing is decoded here."""

from __future__ import annotations

import re
from hashlib import sha256

from fastapi import APIRouter, HTTPException, Request, Response

from afterimage_ui import caches
from afterimage_ui.access import READ_PIPELINE
from afterimage_ui.thumbnails import store_of
from tasks.cache.pages.thumbnails import is_of_pipeline

router = APIRouter(dependencies=[READ_PIPELINE])

_DIGEST = re.compile(r"[0-9a-f]{64}")


@router.get("/pipelines/{pipeline}/thumbnails/{digest}")
def thumbnail(request: Request, pipeline: str, digest: str, key: str | None = None) -> Response:
    """The JPEG of a digest that an image of this pipeline has; of one in quarantine, with its `key`. 404 for everything else."""
    store = store_of(pipeline) if _DIGEST.fullmatch(digest) else None
    if store is None or not is_of_pipeline(caches.page_cache(), pipeline, bytes.fromhex(digest), key):
        raise HTTPException(404)
    data = store.get(digest)
    if data is None:
        raise HTTPException(404)
    # By its content: a model with another crop may have it written anew.
    headers = {"ETag": f'"{sha256(data).hexdigest()[:32]}"', "Cache-Control": "private, max-age=86400"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)
