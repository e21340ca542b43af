"""Stages side by side in threads, joined by bounded queues.

    reads = Buffered(parallel(read, rows, workers=16), size=32)
    pixels = Buffered(parallel(decode, look_up(reads), workers=2), size=64)
    for group in pixels.groups(32): ...

A stage is a generator; `Buffered` runs the generators before it in a thread of its own. An error in any stage comes
out at the end of the chain, and closing the end closes every thread before it. Threads, because decoding, hashing,
reading and the forward pass all release the interpreter's lock, and pixels never have to be copied to a process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.1


class StageClock:
    """Seconds that each stage was busy, added up over its threads, and counts of what it did."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def busy(self, stage: str) -> Iterator[None]:
        """Time a block of work of that stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent

    def count(self, name: str, by: int) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + by

    def take_counts(self) -> dict[str, int]:
        """The counts since they were last taken."""
        with self._lock:
            taken, self._counts = self._counts, {}
            return taken

    def seconds(self) -> dict[str, float]:
        """{stage: seconds} so far."""
        with self._lock:
            return dict(self._seconds)


def parallel(
    function: Callable[[T], R], source: Iterator[T], workers: int, ahead: int, stop: threading.Event | None = None
) -> Iterator[R]:
    """Apply a function in `workers` threads, at most `ahead` items at a time; results keep the order of the source.

    Once `stop` is set it ends without waiting for the calls that are under way: a read may hang for a minute.
    """
    stop = stop or threading.Event()
    pool = ThreadPoolExecutor(workers)
    # A thread of its own draws from the source, so that what is done goes on while the source keeps us waiting. Besides
    # what the queue holds, one call is in that thread's hand and one in ours.
    calls = Buffered(_submitted(pool, function, source), max(1, ahead - 2), stop)
    try:
        for call in calls:
            if not _is_done(call, stop):
                return
            yield call.result()
    finally:
        calls.close()
        pool.shutdown(wait=not stop.is_set(), cancel_futures=True)


def _submitted(pool: ThreadPoolExecutor, function: Callable[[T], R], source: Iterator[T]) -> Iterator[Future[R]]:
    try:
        for item in source:
            yield pool.submit(function, item)
    finally:
        _close(source)


def _is_done(future: Future[R], stop: threading.Event) -> bool:
    """Wait for a result; False where `stop` was set first."""
    while not future.done():
        if stop.is_set():
            return False
        wait([future], timeout=_POLL_SECONDS)
    return True


class Buffered(Generic[T]):
    """Runs a source in a thread and hands its items on through a queue of at most `size` items.

    A chain of them may share a `stop`: once it is set, each of them is at its end.
    """

    def __init__(self, source: Iterator[T], size: int, stop: threading.Event | None = None) -> None:
        self._source = source
        self._stop = stop or threading.Event()
        self._queue: queue.Queue[T | _End] = queue.Queue(size)
        self._closed = threading.Event()
        self._ended: _End | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> T | None:
        """The next item; None where none came in `timeout` seconds. Raises StopIteration at the end, or the error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._ended is None and not self._stop.is_set():
            left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            try:
                item = self._queue.get(timeout=max(left, 0.0))
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                continue
            if not isinstance(item, _End):
                return item
            self._ended = item
        raise (self._ended.error if self._ended is not None else None) or StopIteration

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self.get()
        assert item is not None
        return item

    def groups(self, size: int) -> Iterator[list[T]]:
        """Whatever is ready, at most `size` items, at least one."""
        try:
            for first in self:
                group = [first]
                with suppress(StopIteration):
                    while len(group) < size and (item := self.get(timeout=0.001)) is not None:
                        group.append(item)
                yield group
        finally:
            self.close()

    def close(self) -> None:
        """Stop the thread and everything before it; items that were on their way are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(timeout=0.01)
        self._ended = self._ended or _End(None)  # Whoever asks for more gets the end, and does not wait for ever.

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as raised:  # It is raised again in the thread that takes the items.
            error = raised
        try:
            _close(self._source)
        except BaseException as raised:
            error = error or raised
        self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        while not self._closed.is_set() and not self._stop.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_SECONDS)
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
