"""A store in memory, which lists in byte order, as slowly as wanted, and does what a test wants at any page."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from tasks.storage.base import Blob, ImageObject

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


class MemoryStore:
    """Keys in the byte order of their UTF-8. It counts its LISTs, and the objects that it gave away."""

    is_ordered = True

    def __init__(self, keys: Sequence[str], page: int = 50, seconds: float = 0.0) -> None:
        self.keys = sorted(set(keys))
        self.page, self.seconds = page, seconds
        self.lists = self.given = 0
        self.names: set[str] = set()
        """Threads that listed pages."""
        self.at_page: Callable[[str | None], None] = lambda _after: None
        self._lock = threading.Lock()

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        """See ObjectStore.pages."""
        while True:
            self.at_page(after)
            found = self._list(prefix, after, self.page)
            with self._lock:
                self.given += len(found)
                self.names.add(threading.current_thread().name)
            yield [self.object(key) for key in found]
            if len(found) < self.page:
                return
            after = found[-1]

    def object(self, key: str) -> ImageObject:
        """What is listed under a key."""
        return ImageObject(key, f"etag {key}", len(key), MOMENT)

    def begins_after(self, prefix: str) -> bool:
        """See ObjectStore.begins_after."""
        return self.is_ordered

    def first_key(self, prefix: str, after: str | None) -> str | None:
        """See ObjectStore.first_key."""
        return next(iter(self._list(prefix, after, 1)), None)

    def _list(self, prefix: str, after: str | None, count: int) -> list[str]:
        with self._lock:
            self.lists += 1
        time.sleep(self.seconds)
        start = max(bisect_left(self.keys, prefix), 0 if after is None else bisect_right(self.keys, after))
        return [key for key in self.keys[start : start + count] if key.startswith(prefix)]

    def read(self, key: str, etag: str | None) -> Blob:
        """Nothing is read while listing."""
        raise NotImplementedError

    def sign(self, key: str, seconds: int) -> str:
        """Nothing is signed while listing."""
        raise NotImplementedError
