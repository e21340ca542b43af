"""SIGTERM as an event: whoever works in the main thread ends in order instead of dying."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """Set an event at SIGTERM; only the main thread of a process may ask for signals.

    `stop` is an event that others may set as well; without one there is a new one.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
