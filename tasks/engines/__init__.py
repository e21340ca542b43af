"""Where shards run when Airflow does not decide it.

local.py         one after the other, in this process
processes.py     in several processes of this machine, by torchrun; rank.py is one of them, board.py is what they share
ray_cluster.py   on the nodes of a Ray cluster; ray_actor.py is what runs there

An engine takes the shards of a run and has the worker function (worker.py) do each of them; shards travel, never pixels.
It ends when all are done, or raises the first error that another try cannot mend; what was committed stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from tasks.pipelines import Pipeline
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


def engine_of(pipeline: Pipeline) -> ShardEngine:
    """The engine that a pipeline names; outside Airflow its shards run in this process unless it names another."""
    from tasks.engines import local, ray_cluster

    if pipeline.engine == "ray":
        return partial(ray_cluster.run_shards, workers=pipeline.workers)
    return local.run_shards
