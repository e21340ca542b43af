"""How fast work is that several threads do at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress


def images_per_second(seconds: float, works: Sequence[Callable[[], int]]) -> float:
    """Each work in a thread of its own, over and over; a work returns how many images it did.

    The clock starts when each thread has done its work once.
    """
    done = [0] * len(works)
    failures: list[BaseException] = []
    ready = threading.Barrier(len(works) + 1)
    started = 0.0

    def repeat(number: int) -> None:
        try:
            works[number]()
            ready.wait()
            ready.wait()
            while time.perf_counter() - started < seconds:
                done[number] += works[number]()
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        ready.wait()
        started = time.perf_counter()
        ready.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return sum(done) / (time.perf_counter() - started)
