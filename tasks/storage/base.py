"""What every store gives: pages of ImageObject, and the bytes of one object as a Blob."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

PAGE_OBJECTS = 1_000


@dataclass(frozen=True, slots=True)
class ImageObject:
    """An object as it was listed. `etag` changes whenever the bytes do; `last_modified` is in UTC, `size` in bytes."""

    key: str
    etag: str
    size: int
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """Keys under a prefix, in byte order: those behind `after` and up to `until`, and that one too. None: no bound."""

    prefix: str
    after: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one object and the state in which they were read."""

    data: bytes
    etag: str
    last_modified: datetime


class ObjectStore(Protocol):
    """A bucket or a folder. Its calls may come from several threads at once."""

    @property
    def is_ordered(self) -> bool:
        """Whether it lists in the byte order of the keys, and can begin after any key."""
        ...

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        """List what lies under a prefix, page by page in O(page) memory; with `after`, only keys behind that one.

        Who gives `after` has asked `begins_after`. Raises AccessDenied, TransientStorageError or ConfigurationError (no such
        bucket or folder).
        """
        ...

    def head(self, key: str) -> ImageObject | None:
        """One object as a listing would show it now; None where it is not there, or would not be shown.

        Raises AccessDenied or TransientStorageError.
        """
        ...

    def begins_after(self, prefix: str) -> bool:
        """Whether a listing under this prefix begins where it is asked to, in byte order: only then can it be divided.

        The store is asked once, in three small listings, and the answer is kept; False as long as nothing lies there. Raises as
        `pages` does.
        """
        ...

    def first_key(self, prefix: str, after: str | None = None) -> str | None:
        """The first key under a prefix, or the first one behind `after`; None where there is none. Raises as `pages` does."""
        ...

    def read(self, key: str, etag: str | None) -> Blob:
        """Read one object; with an etag only in the state that it names.

        Raises ObjectVanished, ObjectChanged, AccessDenied or TransientStorageError.
        """
        ...

    def sign(self, key: str, seconds: int) -> str:
        """A URL under which the object can be fetched for `seconds`, without credentials."""
        ...
