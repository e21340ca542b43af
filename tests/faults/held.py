"""A shard that rests after its first commit until a test lets it go on: so a fault strikes at a known moment."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import pytest

from tasks import road
from tasks.errors import DatabaseUnavailable
from tests.runner import Runner

PATIENCE_SECONDS = 60.0
SOON_SECONDS = 30.0
"""Within which a task must have failed; with nothing else on the machine it takes some three seconds."""


class HeldShard:
    """The one shard of a new run, as Airflow's mapped task does it, in a thread."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.request, (self.shard,) = runner.plan()
        self._rests, self._may_go = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._end = self._pool.submit(road.predict_shard, self.shard, runner.settings, on_progress=self._rest)
        assert self._rests.wait(PATIENCE_SECONDS), "no first commit"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go()
        self._pool.shutdown(wait=error is None)

    def _rest(self, _images: int) -> None:
        self._rests.set()
        assert self._may_go.wait(PATIENCE_SECONDS)

    def go(self) -> None:
        """On to the second commit."""
        self._may_go.set()

    def closed(self) -> int:
        """How many rows have their outcome."""
        query = "SELECT count(outcome) AS done FROM work_item WHERE run_no = :run"
        return int(self.runner.rows(query, run=self.shard.run_no)[0]["done"])

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self._end.done()

    def end(self) -> dict[str, int]:
        """Wait for its end, which must be a good one."""
        return self._end.result(PATIENCE_SECONDS)

    def refused(self, words: str) -> None:
        """It must fail within seconds, with an error that says so and keeps the password to itself."""
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=words) as error:
            self._end.result(PATIENCE_SECONDS)
        assert time.monotonic() - started < SOON_SECONDS
        assert "secret-word" not in str(error.value)
