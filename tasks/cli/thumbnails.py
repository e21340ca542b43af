"""The thumbnails of images that are erased, in the places of all pipelines."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tasks.errors import AfterimageError, ConfigurationError
from tasks.location import parse_location
from tasks.pipelines import read_pipelines
from tasks.settings import Settings
from tasks.storage.thumbnails import ThumbnailStore, open_thumbnails


@dataclass(frozen=True, slots=True)
class RemovedThumbnails:
    """How many there were, and what kept others from being found or removed."""

    count: int
    problems: tuple[str, ...]


def remove_thumbnails(digests: Collection[bytes], settings: Settings, *, dry_run: bool) -> RemovedThumbnails:
    """Remove the thumbnails of these images wherever a pipeline of pipelines.toml keeps some; a dry run counts them."""
    if not digests:
        return RemovedThumbnails(0, ())
    places, problems = _places(settings)
    count = 0
    for uri in places:
        store = open_thumbnails(parse_location(uri), settings)
        for digest in sorted(digest.hex() for digest in digests):
            try:
                count += _remove(store, digest, dry_run=dry_run)
            except AfterimageError as error:
                problems.append(f"{error} Then give ./afterimage erase --digest {digest}: its rows are gone already.")
    return RemovedThumbnails(count, tuple(problems))


def _remove(store: ThumbnailStore, digest: str, *, dry_run: bool) -> bool:
    return store.has(digest) if dry_run else store.delete(digest)


def _places(settings: Settings) -> tuple[list[str], list[str]]:
    """Each place once, and what is wrong with tables that may name others."""
    if not settings.pipelines.exists():
        return [], []
    try:
        pipelines, wrong = read_pipelines(settings.pipelines)
    except ConfigurationError as error:
        return [], [_unread(str(error))]
    named: Iterator[str] = (table.thumbnails for table in pipelines.values() if table.thumbnails is not None)
    return list(dict.fromkeys(named)), [_unread(problem) for problem in wrong.values()]


def _unread(problem: str) -> str:
    return (
        f"{problem} Thumbnails of that pipeline were not looked for: mend it and give the command again with --digest."
    )
