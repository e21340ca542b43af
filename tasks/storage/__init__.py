"""Object storage behind one small protocol: list pages, read, sign.

base.py      ImageObject, Blob and the ObjectStore protocol
local.py     a folder
s3.py        S3 and its compatibles, through boto3
gets.py      the GETs among it, through obstore where that can
lists.py     its LISTs: asked for by boto3, and read by
listing_answers.py  an own reader of ListObjectsV2's answers
walk.py      a listing's order: none runs for ever, none ends early
etags.py     whether bytes are those of their ETag, over plain HTTP
thumbnails.py  small JPEGs by digest: the only thing that is written to a store
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.location import Location
from tasks.storage.base import Blob, ImageObject, ObjectStore

if TYPE_CHECKING:
    from tasks.settings import Settings

__all__ = ["Blob", "ImageObject", "ObjectStore", "open_store"]


def open_store(location: Location, settings: Settings) -> ObjectStore:
    """Open the store that a location names; nothing is sent before the first call."""
    if location.scheme == "file":
        from tasks.storage.local import LocalStore

        return LocalStore(location.root)
    from tasks.storage.s3 import S3Store

    return S3Store(location.root, settings)
