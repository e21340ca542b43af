"""How many objects are read at the same time: as many as the store answers without making them wait.

A store at a distance takes 100 ms for an object however small, so hundreds a second need dozens in flight; a disk, a
small server or a throttled prefix only gets slower with each one more. The number is found as TCP Vegas finds its window:
where reads take no longer than they did at their quickest, one more costs nothing; where they take longer, they wait for
each other, and more of them add nothing but waiting. The formula is that of Gradient2Limit in Netflix's
concurrency-limits,

    limit <- limit * min(1, tolerance * quickest / now) + sqrt(limit)

whose square root is the queue that is allowed for. A store that refuses (503 SlowDown) halves the limit, once for all
reads that were on their way.

Reads take longer for larger objects too. So not reads are compared but windows of them, by the time that a quarter of
each stays below: the small objects and the good moments, which every window has, while a queue delays all. Where a shard
comes to larger objects, or the store to a slower hour, the old quickest time is out of reach, and the limit would sink for
nothing. Hence it is taken anew from time to time, and at once where the limit has lost half: for one window a quarter of
the limit is in flight, which is too little for a queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import sqrt
from types import TracebackType

from tasks.errors import TransientStorageError

LEAST = 4

WINDOW_READS = 32
TOLERANCE = 1.3
ANEW_AFTER_WINDOWS = 100
ANEW_SHARE = 0.25

# No process reads more than this in a second, so where reads are quick few in flight are enough (Little's law).
READS_A_SECOND = 10_000


class Limit:
    """The number itself, for one thread; its time is the caller's."""

    def __init__(self, most: int, least: int = LEAST) -> None:
        self.most = most
        self.least = min(least, most)
        self.value = float(self.least)
        self._seconds: list[float] = []
        self._quickest: float | None = None
        self._busiest = 0
        self._since = float("-inf")
        self._windows = 0
        self._highest = self.value
        self._interrupted: float | None = None

    def succeeded(self, started: float, ended: float, inside: int) -> None:
        """A read ended well; `inside` were in flight, it among them."""
        self._busiest = max(self._busiest, inside)
        if started < self._since:  # It was on its way when the limit was lowered, and tells of the time before.
            return
        self._seconds.append(ended - started)
        if len(self._seconds) >= max(WINDOW_READS, self.value):
            self._close_window(ended)

    def refused(self, started: float, now: float) -> None:
        """The store could not take a read."""
        if started < self._since:
            return
        self._interrupted = None
        self._lower(self.value / 2, now)

    def _lower(self, value: float, now: float) -> None:
        self.value = max(self.least, value)
        self._since = now
        self._seconds.clear()

    def _close_window(self, now: float) -> None:
        quick = sorted(self._seconds)[len(self._seconds) // 4]
        busiest, self._busiest = self._busiest, 0
        self._seconds.clear()
        if self._interrupted is not None:
            self._quickest = quick
            self.value = self._highest = self._interrupted
            self._interrupted, self._windows = None, 0
            return
        self._adapt(quick, busiest)
        self._windows += 1
        self._highest = max(self._highest, self.value)
        if self._windows >= ANEW_AFTER_WINDOWS or self.value < self._highest / 2:
            self._interrupted = self.value
            self._lower(self.value * ANEW_SHARE, now)

    def _adapt(self, quick: float, busiest: int) -> None:
        if self._quickest is None or int(self.value) <= self.least:  # With fewer in flight it cannot be measured.
            self._quickest = quick
        # Half the way down each time: one lucky window is no measure for all others.
        self._quickest = min(self._quickest, (self._quickest + quick) / 2)
        gradient = max(0.5, min(1.0, TOLERANCE * self._quickest / max(quick, 1e-9)))
        wanted = self.value * gradient + sqrt(self.value)
        if wanted < self.value:  # Half the way, because the reads of a window began under several limits.
            wanted = (self.value + wanted) / 2
        if wanted > self.value and busiest < self.value / 2:  # What comes after the reads is slower than they are.
            return
        useful = max(self.least, self._quickest * READS_A_SECOND)
        self.value = max(self.least, min(self.most, useful, wanted))


class InFlight:
    """Lets threads read, each with `with in_flight.one(): ...`, as many at a time as the limit says.

    TransientStorageError out of the block counts as a refusal. Other errors say nothing about how busy the store is.
    """

    def __init__(self, most: int, least: int = LEAST, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = Limit(most, least)
        self._clock = clock
        self._room = threading.Condition(threading.Lock())
        self._inside = 0
        self._is_closed = False

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return int(self._limit.value)

    def one(self) -> _One:
        """Room for one read. The block runs in any case; its value is whether it still should, False after `close`."""
        return _One(self)

    def close(self) -> None:
        """Nobody waits from now on."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()

    def _enter(self) -> bool:
        with self._room:
            while self._inside >= self.limit and not self._is_closed:
                self._room.wait()
            self._inside += 1
            return not self._is_closed

    def _leave(self, started: float, error: BaseException | None) -> None:
        now = self._clock()
        with self._room:
            if error is None:
                self._limit.succeeded(started, now, self._inside)
            elif isinstance(error, TransientStorageError):
                self._limit.refused(started, now)
            self._inside -= 1
            free = self.limit - self._inside
            if free > 0:
                self._room.notify(free)


class _One:
    """One read; the time that it waits for room does not count."""

    __slots__ = ("_of", "_started")

    def __init__(self, of: InFlight) -> None:
        self._of = of
        self._started = 0.0

    def __enter__(self) -> bool:
        may_read = self._of._enter()
        self._started = self._of._clock()
        return may_read

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._of._leave(self._started, error)
