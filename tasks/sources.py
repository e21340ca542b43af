"""Where a run finds its objects: the bucket's own listing, an inventory of it, or keys that were announced.

list_images decides once, and keeps with the run what it decided, so that deduplicate draws the conclusions that this source
allows: only a listing of the bucket itself says that something is gone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tasks.announcements import Wanted
from tasks.cache.runs import Staging, now
from tasks.cache.staging import not_yet_staged
from tasks.cache.whole_listings import INVENTORY, unreconciled_since
from tasks.listing import KeyFilter, Page, Selection
from tasks.location import Location, parse_location
from tasks.plan import RunRequest
from tasks.settings import Settings
from tasks.storage import ObjectStore
from tasks.storage.base import PAGE_OBJECTS

if TYPE_CHECKING:
    from tasks.storage.inventory import Inventory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OtherSource:
    """What a run looks at in place of a listing. `facts` join the run's listing; `pages` gives what it holds, for a staging.

    `may_be_large` is whether it can hold as many objects as the bucket.
    """

    pages: Callable[[Staging], Iterable[Page]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    may_be_large: bool = False


def other_source(
    request: RunRequest, settings: Settings, engine: Engine, listing: Mapping[str, Any], store: ObjectStore
) -> OtherSource | None:
    """Decide where a run finds its objects; None where it lists `store`, its pipeline's, itself.

    Raises ConfigurationError where an inventory cannot be used.
    """
    location = parse_location(request.pipeline.images)
    if request.retry:
        return OtherSource(lambda _staging: [])  # It takes what is due from the quarantine, in deduplicate.
    if request.keys is not None:
        return OtherSource(lambda _staging: _announced_pages(request, location, store, settings.readers))
    if _takes_inventory(request, location, engine, listing):
        return _inventory(request, location, settings, engine)
    return None


def filter_of(request: RunRequest) -> KeyFilter:
    """The include and exclude globs of a run's pipeline."""
    return KeyFilter(request.pipeline.include, request.pipeline.exclude)


def announced(request: RunRequest) -> dict[str, Any] | None:
    """What tells the keys that were announced to a run from others; None for a run that looks for its objects itself."""
    if request.keys is None:
        return None
    return {"keys": len(request.keys), "sha256": hashlib.sha256(json.dumps(request.keys).encode()).hexdigest()}


def prefix_of(location: Location) -> str:
    """What every key of a pipeline begins with."""
    return location.prefix if location.template is None else location.template.stem


def inventory_moment(listing: Mapping[str, Any]) -> datetime | None:
    """When the inventory was made that a run took, by the listing that it kept; None where it looked at the present."""
    taken = listing.get(INVENTORY)
    return None if taken is None else datetime.fromisoformat(taken["created"])


def _takes_inventory(request: RunRequest, location: Location, engine: Engine, listing: Mapping[str, Any]) -> bool:
    table, window = request.pipeline, request.window
    if table.inventory is None:
        return False
    if location.template is not None and window.start is not None and window.end is not None:
        log.info("Lists %s itself: the prefixes of a few days are quickly listed.", table.images)
        return False
    since = unreconciled_since(engine, prefix_of(location), listing) if window.is_open else None
    if since is not None and now() - since >= timedelta(days=table.reconcile_days):
        log.info(
            "Lists %s itself, because nothing was held against it since %s (reconcile_days = %g): what is gone is marked.",
            table.images,
            f"{since:%Y-%m-%d %H:%M} UTC",
            table.reconcile_days,
        )
        return False
    return True


def _inventory(request: RunRequest, location: Location, settings: Settings, engine: Engine) -> OtherSource:
    from tasks.storage.inventory import open_inventory

    assert request.pipeline.inventory is not None
    inventory = open_inventory(request.pipeline.inventory, location.root, settings)
    manifest = inventory.manifest
    log.info(
        "Takes the inventory s3://%s/%s, which tells of %s (%.1f hours ago), in place of a listing. It says nothing about "
        "what is newer or gone.",
        inventory.store.bucket,
        manifest.key,
        f"{manifest.created:%Y-%m-%d %H:%M} UTC",
        (now() - manifest.created).total_seconds() / 3600,
    )
    facts = {INVENTORY: {"manifest": manifest.key, "created": manifest.created.isoformat()}}
    return OtherSource(
        lambda staging: _inventory_pages(request, location, inventory, engine, staging), facts, may_be_large=True
    )


def _inventory_pages(
    request: RunRequest, location: Location, inventory: Inventory, engine: Engine, staging: Staging
) -> Iterator[Page]:
    selection = Selection(location, request.window, filter_of(request))
    for found in inventory.pages(prefix_of(location)):
        page = selection.page(found)
        yield Page(not_yet_staged(engine, staging, page.images), page.ignored)


def _announced_pages(request: RunRequest, location: Location, store: ObjectStore, readers: int) -> Iterator[Page]:
    """Announced keys in the state that they have now, many asked for at the same time. What is gone again is left out."""
    selection, once = Selection(location, request.window, filter_of(request)), sorted(set(request.keys or ()))
    wanted = Wanted(request.pipeline.images, selection.keys)
    mine = [key for key in once if wanted.holds_key(key)]
    yield Page([], ignored=len(once) - len(mine))
    gone = 0
    with ThreadPoolExecutor(max(1, min(readers, len(mine)))) as pool:
        for start in range(0, len(mine), PAGE_OBJECTS):
            part = mine[start : start + PAGE_OBJECTS]
            found = [image for image in pool.map(store.head, part) if image is not None]
            gone += len(part) - len(found)
            yield selection.page(found)
    log.info(
        "%d keys were announced; %d are none of this pipeline, %d are gone", len(once), len(once) - len(mine), gone
    )
