"""Where shards run when Airflow does not decide it.

local.py        one after the other, in this process
processes.py    in several processes of this machine, by torchrun; rank.py is one of them, board.py is what they share

An engine takes the shards of a run and has the worker function (worker.py) do each of them; shards travel, never pixels.
It ends when all are done, or raises the first error that another try cannot mend; what was committed stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.worker import Observe, Progress


class ShardEngine(Protocol):
    """What the road asks of an engine."""

    def __call__(
        self, shards: Sequence[ShardDescriptor], settings: Settings, on_progress: Progress, observe: Observe
    ) -> None:
        """Do all shards; `on_progress` and `observe` are told of every commit, in this process."""
        ...
