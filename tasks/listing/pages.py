"""What of a listing a run wants: globs, a window, a date template. Page by page, in O(page) memory."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.location import Location
from tasks.storage.base import ImageObject, ObjectStore, Span
from tasks.window import Window

log = logging.getLogger(__name__)


class KeyFilter:
    """The include and exclude globs of a pipeline. `*` stands for any characters, `/` too; case does not matter."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = _any_of(include)
        self._exclude = _any_of(exclude)

    def wants(self, key: str) -> bool:
        """Whether an object under this key is an image of the pipeline. Directory markers (`raw/`) never are."""
        return not key.endswith("/") and bool(self._include.match(key)) and not self._exclude.match(key)


def _any_of(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Page:
    """One page after the window and the filter; `ignored` counts what the filter dropped from it.

    `covers` are the keys that it speaks for, where the store lists in byte order: what lies in there and not in the page is not
    in the bucket, or not wanted. The page that ends a listing is open at its upper end, and may be empty.
    """

    images: list[ImageObject]
    ignored: int
    covers: Span | None = None


def can_be_stored(key: str) -> bool:
    """Whether a database can hold a key: it is UTF-8, and has no NUL, which PostgreSQL's text cannot hold."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in key


@dataclass(frozen=True, slots=True)
class Selection:
    """What a run wants of a store: the prefixes to list, and which of the objects under them."""

    location: Location
    window: Window
    keys: KeyFilter

    def prefixes(self) -> list[str]:
        """What to list, one after the other: a prefix, or those of the days of a date template."""
        template = self.location.template
        return [self.location.prefix] if template is None else template.prefixes(self.window)

    def page(self, objects: Sequence[ImageObject], covers: Span | None = None) -> Page:
        """What the run wants of some objects.

        Over a date template the window picks prefixes and LastModified is not looked at; without one the window is
        half-open on LastModified. What lies outside the window is not counted at all; a key that no database can hold is ignored.
        """
        template, window = self.location.template, self.window
        if template is None:
            inside = [image for image in objects if window.holds(image.last_modified)]
        else:
            inside = [image for image in objects if template.matches(image.key, window)]
        wanted = [image for image in inside if self.keys.wants(image.key) and _is_usable(image.key)]
        return Page(wanted, len(inside) - len(wanted), covers)


def list_pages(store: ObjectStore, location: Location, window: Window, keys: KeyFilter) -> Iterator[Page]:
    """List what a run looks at, one prefix after the other."""
    selection = Selection(location, window, keys)
    for prefix in selection.prefixes():
        for objects in store.pages(prefix):
            yield selection.page(objects)


def _is_usable(key: str) -> bool:
    if can_be_stored(key):
        return True
    log.warning("Passed over %r: a key must be UTF-8 without NUL to be stored. Rename the object.", key)
    return False
