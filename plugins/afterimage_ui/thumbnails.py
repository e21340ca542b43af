"""Where the thumbnails of a pipeline lie, for the pages that show them: never the images themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from afterimage_ui import caches
from tasks.errors import ConfigurationError
from tasks.location import parse_location
from tasks.pipelines import read_pipelines
from tasks.storage.thumbnails import ThumbnailStore, open_thumbnails

LOOK_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Known:
    """{pipeline: where its thumbnails lie}, as pipelines.toml said at a moment; its state then, and when it was looked at."""

    places: Mapping[str, str]
    state: tuple[int, int] | None = None
    looked: float = float("-inf")


_known = _Known({})
_lock = threading.Lock()


def thumbnails_of(pipeline: str | None) -> bool:
    """Whether pages should ask for thumbnails of this pipeline: it names a place for them. Quick enough for each."""
    return pipeline in _places()


def store_of(pipeline: str) -> ThumbnailStore | None:
    """The thumbnails of a pipeline; None where it keeps none."""
    uri = _places().get(pipeline)
    return None if uri is None else _opened(uri)


def _places() -> Mapping[str, str]:
    global _known
    with _lock:
        if time.monotonic() - _known.looked >= LOOK_AGAIN_SECONDS:
            _known = replace(_look(_known), looked=time.monotonic())
        return _known.places


def _look(before: _Known) -> _Known:
    """Read pipelines.toml where it has changed; a table that is wrong has no thumbnails until it is mended."""
    path = caches.settings().pipelines
    try:
        found = path.stat()
        state = found.st_mtime_ns, found.st_size
        if state == before.state:
            return before
        pipelines, _ = read_pipelines(path)
    except (OSError, ConfigurationError):
        return _Known({})
    places = {name: table.thumbnails for name, table in pipelines.items() if table.thumbnails is not None}
    return _Known(places, state)


@lru_cache(maxsize=64)
def _opened(uri: str) -> ThumbnailStore:
    return open_thumbnails(parse_location(uri), caches.settings())
