"""A page of a listing, and how it is staged: as it is, or without what the cache knows (known.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Connection, Engine

from tasks.cache.database import writing
from tasks.cache.runs import Staging, check_generation, count_listed
from tasks.cache.staging import write_rows
from tasks.storage.base import ImageObject, Span


class Wanted(Protocol):
    """What a run wants of some objects, and for which keys that speaks: listing's Page."""

    @property
    def images(self) -> list[ImageObject]:
        """What the run looks at."""
        ...

    @property
    def ignored(self) -> int:
        """How many objects the filters dropped."""
        ...

    @property
    def covers(self) -> Span | None:
        """All keys that were seen."""
        ...


Write = Callable[[Connection, Staging, Wanted], int]
"""Stages a page in the caller's transaction; how many of its images were not staged, because the cache knows them."""


def write_page(connection: Connection, staging: Staging, page: Wanted) -> int:
    """Stage all that a page holds."""
    write_rows(connection, staging, page.images)
    return 0


def stage_page(engine: Engine, staging: Staging, page: Wanted, write: Write = write_page) -> None:
    """Stage a page and count what it holds. Raises StaleGeneration."""
    with writing(engine) as connection:
        check_generation(connection, staging)
        dropped = write(connection, staging, page)
        count_listed(connection, staging, len(page.images), page.ignored, dropped)
