"""The same bytes twice in flight: the first one leads and goes through the forward pass, its twins wait for it."""

from __future__ import annotations

import threading

from tasks.inference.reading import Work


class Twins:
    """Who leads for each digest that is between look-up and commit.

    Look-up registers a digest before it asks the cache; the commit releases it after the row is there. So whoever
    comes later either finds the leader here or the row in the cache, and no digest goes through twice.
    """

    def __init__(self) -> None:
        self._followers: dict[bytes, list[Work]] = {}
        self._lock = threading.Lock()

    def lead(self, work: Work) -> bool:
        """True if this work leads; otherwise it waits for its leader, and will be in what `release` returns."""
        assert work.digest is not None
        with self._lock:
            if work.digest not in self._followers:
                self._followers[work.digest] = []
                return True
            work.data = None
            self._followers[work.digest].append(work)
            return False

    def release(self, leader: Work) -> list[Work]:
        """The leader is in the cache: its twins share its outcome, reused where it has a prediction."""
        if leader.digest is None:
            return []
        with self._lock:
            twins = self._followers.pop(leader.digest, [])
        assert leader.finished is not None
        failed = leader.finished.failed
        for twin in twins:
            if failed is None:
                twin.reuse()
            else:
                twin.fail(failed.reason, failed.message, permanent=failed.permanent)
        return twins
