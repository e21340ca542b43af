"""From single images to full batches: finished ones go on at once, and never make a batch of the others go early."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tasks.inference.reading import Work
from tasks.inference.stages import Buffered

IDLE_SECONDS = 0.5

# An image waits no longer than a commit does for others that fill its batch up: what a kill can cost stays bounded where
# few images go on to a cascade's next model.
PATIENCE_SECONDS = 10.0

GROUP = 64  # finished images that are handed on together


def batches(source: Buffered[Work], size: int, most_bytes: int) -> Iterator[list[Work]]:
    """Groups of finished images and of at most `size` others.

    There are fewer others once nothing more came for a moment, once one has waited for PATIENCE_SECONDS, or where their
    files weigh `most_bytes` together; and none in a group of finished images that goes on without them.
    """
    waiting, finished = _Waiting(size, most_bytes), list[Work]()
    try:
        while True:
            try:
                work = source.get(timeout=IDLE_SECONDS)
            except StopIteration:
                break
            if work is not None and work.finished is None:
                waiting.add(work)
            elif work is not None:
                finished.append(work)
            is_due = work is None or waiting.is_due()
            if is_due or len(finished) >= GROUP:
                group, finished = [*finished, *(waiting.take() if is_due else ())], []
                if group:
                    yield group
        if finished or waiting.works:
            yield [*finished, *waiting.take()]
    finally:
        source.close()


class _Waiting:
    """Images that wait for others to fill their batch up."""

    def __init__(self, size: int, most_bytes: int) -> None:
        self.works: list[Work] = []
        self._size, self._most_bytes = size, most_bytes
        self._bytes, self._since = 0, 0.0

    def add(self, work: Work) -> None:
        if not self.works:
            self._since = time.monotonic()
        self.works.append(work)
        self._bytes += len(work.data or b"")

    def is_due(self) -> bool:
        """Whether they are as many as fit, or heavy, or old. Pixels are no reason: a batch holds as many as it holds."""
        if not self.works:
            return False
        is_full = len(self.works) >= self._size or self._bytes >= self._most_bytes
        return is_full or time.monotonic() - self._since >= PATIENCE_SECONDS

    def take(self) -> list[Work]:
        taken, self.works, self._bytes = self.works, [], 0
        return taken


def weight(work: Work) -> int:
    """Bytes of an object's file and pixels."""
    return (0 if work.data is None else len(work.data)) + (0 if work.pixels is None else work.pixels.nbytes)


def weight_of_all(group: list[Work]) -> int:
    """Bytes of a group."""
    return sum(weight(work) for work in group)
