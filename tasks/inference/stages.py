"""Stages side by side in threads, joined by queues that are bounded in items and in bytes.

    reads = Buffered(Parallel(read, rows, 16, Room(32, 64 * MIB, listed_size)), Room(32, 64 * MIB, size))
    pixels = Buffered(Parallel(decode, look_up(reads), 2, Room(8, 64 * MIB, size)), Room(64, 64 * MIB, size))
    for group in pixels.groups(32): ...

A stage is a generator; `Buffered` runs the generators before it in a thread of its own. An error in any stage comes
out at the end of the chain, and closing the end closes every thread before it. Threads, because decoding, hashing,
reading and the forward pass all release the interpreter's lock, and pixels never have to be copied to a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tasks.inference.queues import Empty, Queue

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Room:
    """What a queue may hold: so many items, and so many bytes by what `weigh` says of an item.

    One item always finds room, however heavy it is.
    """

    items: int
    bytes: int = 2**62
    weigh: Callable[[Any], int] = lambda _item: 0


class Parallel(Generic[T, R]):
    """Applies a function in `workers` threads to as much as `ahead` has room for; results keep the order of the source.

    Once `stop` is set it ends without waiting for the calls that are under way: a read may hang for a minute. Its threads
    are called NAME_0, NAME_1, ... and NAME-in, so that py-spy and top show what they are for.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        source: Iterator[T],
        workers: int,
        ahead: Room,
        stop: threading.Event | None = None,
        name: str = "stage",
    ) -> None:
        self._stop = stop or threading.Event()
        self._pool = started(workers, name)
        # A thread of its own draws from the source, so that what is done goes on while the source keeps us waiting.
        # Besides what the queue holds, one call is in that thread's hand and one in ours.
        room = Room(max(1, ahead.items - 2), ahead.bytes, lambda call: ahead.weigh(call[0]))
        self._calls = Buffered(_submitted(self._pool, function, source), room, self._stop, f"{name}-in")

    @property
    def waits(self) -> tuple[float, float]:
        """Seconds in which nothing was there to work on, and in which the source waited because nobody took results."""
        return self._calls.waits

    @property
    def fill(self) -> float:
        """How much of what may be under way is under way, 0 to 1."""
        return self._calls.fill

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        try:
            _, call = next(self._calls)
            if _is_done(call, self._stop):
                return call.result()
            raise StopIteration
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Start no more calls; wait for those that are under way, unless `stop` is set."""
        self._calls.close()
        self._pool.shutdown(wait=not self._stop.is_set(), cancel_futures=True)


def started(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads are there already: one that finds no memory to begin with leaves whoever starts it waiting for
    ever, so none is started once memory may be short."""
    pool, all_there = ThreadPoolExecutor(workers, name), threading.Barrier(workers)
    for _ in range(workers):
        pool.submit(all_there.wait)
    return pool


def _submitted(
    pool: ThreadPoolExecutor, function: Callable[[T], R], source: Iterator[T]
) -> Iterator[tuple[T, Future[R]]]:
    try:
        for item in source:
            yield item, pool.submit(function, item)
    finally:
        _close(source)


def _is_done(future: Future[R], stop: threading.Event) -> bool:
    """Wait for a result; False where `stop` was set first."""
    while not future.done():
        if stop.is_set():
            return False
        with suppress(TimeoutError, CancelledError):
            future.exception(_POLL_SECONDS)
    return True


class Buffered(Generic[T]):
    """Runs a source in a thread and hands its items on through a queue with so much room.

    A chain of them may share a `stop`: once it is set, each of them is at its end.
    """

    def __init__(
        self, source: Iterator[T], room: Room, stop: threading.Event | None = None, name: str = "buffer"
    ) -> None:
        self._source = source
        self._room = room
        self._stop = stop or threading.Event()
        self._queue: Queue[T | _End] = Queue(room.items, room.bytes)
        self._closed = threading.Event()
        self._ended: _End | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waits(self) -> tuple[float, float]:
        """Seconds for which this queue kept who takes waiting for an item, and who puts waiting for room."""
        return self._queue.empty_seconds, self._queue.full_seconds

    @property
    def fill(self) -> float:
        """How full the queue is, 0 to 1."""
        return min(1.0, self._queue.fill)

    def get(self, timeout: float | None = None) -> T | None:
        """The next item; None where none came in `timeout` seconds. Raises StopIteration at the end, or the error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._ended is None and not self._stop.is_set():
            left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            try:
                item = self._queue.get(left)
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                if self._thread.is_alive() or self._closed.is_set():
                    continue
                item = self._last()
            if not isinstance(item, _End):
                return item
            self._ended = item
        raise (self._ended.error if self._ended is not None else None) or StopIteration

    def _last(self) -> T | _End:
        """What a thread that is gone has left. Where that is nothing, it found no memory to tell of its end."""
        try:
            return self._queue.get(0)
        except Empty:
            return _End(MemoryError("A stage has ended and could not say why: memory is short. Use less queue_mib."))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self.get()
        assert item is not None
        return item

    def groups(self, size: int) -> Iterator[list[T]]:
        """Whatever is ready, at most `size` items and about as many bytes as the queue may hold, at least one item."""
        try:
            for first in self:
                group, weight = [first], self._room.weigh(first)
                with suppress(StopIteration):
                    while len(group) < size and weight < self._room.bytes:
                        item = self.get(timeout=0.001)
                        if item is None:
                            break
                        group.append(item)
                        weight += self._room.weigh(item)
                yield group
        finally:
            self.close()

    def close(self) -> None:
        """Stop the thread and everything before it; items that were on their way are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            self._queue.clear()
            self._thread.join(timeout=0.01)
        self._ended = self._ended or _End(None)  # Whoever asks for more gets the end, and does not wait for ever.

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item, self._room.weigh(item)):
                    break
        except BaseException as raised:  # It is raised again in the thread that takes the items.
            error = raised
        try:
            _close(self._source)
        except BaseException as raised:
            error = error or raised
        self._put(_End(error), 0)

    def _put(self, item: T | _End, weight: int) -> bool:
        while not self._closed.is_set() and not self._stop.is_set():
            if self._queue.put(item, weight, _POLL_SECONDS):
                return True
        return False


class _End:
    """The last thing in a queue: the end of the source, or the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _close(source: Iterator[object]) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()
