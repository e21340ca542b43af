"""A queue that is bounded in items and in bytes, and knows for how long it kept its two sides waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Empty(Exception):
    """Nothing came in time."""


class Queue(Generic[T]):
    """First in, first out. Heavy items may not pile up, and an item that is too heavy alone still goes through."""

    def __init__(self, items: int, most_bytes: int) -> None:
        self._room, self._bytes_room = items, most_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._has_items, self._has_room = threading.Condition(self._lock), threading.Condition(self._lock)
        self.empty_seconds = self.full_seconds = 0.0

    def put(self, item: T, weight: int, timeout: float) -> bool:
        """Add an item of so many bytes; False where there was no room within `timeout` seconds."""
        with self._lock:
            if not self._fits(weight):
                started = time.monotonic()
                fits = self._has_room.wait_for(lambda: self._fits(weight), timeout)
                self.full_seconds += time.monotonic() - started
                if not fits:
                    return False
            self._items.append((item, weight))
            self._bytes += weight
            self._has_items.notify()
            return True

    def get(self, timeout: float) -> T:
        """Take the oldest item. Raises Empty where there was none within `timeout` seconds."""
        with self._lock:
            if not self._items:
                started = time.monotonic()
                self._has_items.wait_for(lambda: bool(self._items), timeout)
                self.empty_seconds += time.monotonic() - started
                if not self._items:
                    raise Empty
            item, weight = self._items.popleft()
            self._bytes -= weight
            self._has_room.notify()
            return item

    def clear(self) -> None:
        """Drop everything, and let whoever waits for room go on."""
        with self._lock:
            self._items.clear()
            self._bytes = 0
            self._has_room.notify_all()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def bytes(self) -> int:
        """What the items weigh together."""
        return self._bytes

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1 and above where one item is too heavy: by items or by bytes, whichever is fuller."""
        return max(len(self._items) / self._room, self._bytes / self._bytes_room)

    def _fits(self, weight: int) -> bool:
        return not self._items or (len(self._items) < self._room and self._bytes + weight <= self._bytes_room)
