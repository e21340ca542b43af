"""When a pipeline's place was last listed as a whole, and not taken from an inventory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select

from tasks.cache.database import reading
from tasks.cache.runs import SUCCESS
from tasks.cache.schema import run, source
from tasks.window import EVENTS, RETRY

# The key of a run's listing under which it keeps that it took an inventory.
INVENTORY = "inventory"

# What makes two listings show the same objects.
_SAME = ("images", "include", "exclude")


def unreconciled_since(engine: Engine, prefix: str, listing: Mapping[str, Any]) -> datetime | None:
    """Since when nothing was held against the bucket itself: the start of the newest successful run over everything that listed
    it, or of the first one that took an inventory where none did; None where there was neither.

    `listing` is that of the run that asks: only runs over the same objects count.
    """
    everything = (
        run.c.window_start.is_(None),
        run.c.window_end.is_(None),
        run.c.run_type.not_in((RETRY, EVENTS)),
    )
    query = (
        select(run.c.started_at, run.c.listing)
        .join_from(run, source)
        .where(source.c.uri == listing["source"], run.c.prefix == prefix, run.c.state == SUCCESS, *everything)
        .order_by(run.c.run_no.desc())
    )
    oldest: datetime | None = None
    with reading(engine) as connection:
        for row in connection.execute(query):
            then = json.loads(row.listing)
            if any(then.get(name) != listing[name] for name in _SAME):
                continue
            oldest = row.started_at
            if INVENTORY not in then:
                break
    return oldest
