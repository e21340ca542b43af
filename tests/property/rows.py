"""A run over a cache without images: what the steps write, with predictions that nobody computed."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine

from tasks.cache import commits
from tasks.cache.database import writing
from tasks.cache.listed import stage_page
from tasks.cache.models import register_model
from tasks.cache.outcome import Finished, Progress, Scored
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.listing import Page
from tasks.storage.base import ImageObject
from tasks.window import EVERYTHING

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


def listed(key: str) -> ImageObject:
    """An object under this key."""
    return ImageObject(key, f"etag of {len(key)}", 10, MOMENT)


def staged(engine: Engine, pages: Iterable[Sequence[ImageObject]]) -> Staging:
    """A run that has listed these pages of a source of its own."""
    key = RunKey("property", uuid.uuid4().hex)
    staging = open_run(engine, RunStart(key, "cli", None, f"s3://{key.run_id}", "", EVERYTHING, False, {}))
    for page in pages:
        stage_page(engine, staging, Page(page, ignored=0))
    return staging


def model(engine: Engine) -> int:
    """The number of a model."""
    with writing(engine) as connection:
        return register_model(connection, "m" * 64, "none", "1", {})


def predicted(engine: Engine, staging: Staging, model_no: int, images: Iterable[ImageObject]) -> dict[str, str]:
    """Commit a prediction for each image; {key: outcome}."""
    scored = Scored(0, "=none", 1.0, 1.0, 0.0, ())
    finished = [Finished(one.key, one, hashlib.sha256(one.key.encode()).digest(), scored) for one in images]
    scope = commits.Scope(staging, 0, model_no, "none", force=False)
    return commits.commit(engine, scope, finished, Progress(0, 0, 0.0, {}, "cpu"))
