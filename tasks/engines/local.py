"""Shards one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.worker import Observe, Progress, Worker, no_observation, no_progress


def run_shards(
    shards: Sequence[ShardDescriptor],
    settings: Settings,
    on_progress: Progress = no_progress,
    observe: Observe = no_observation,
) -> None:
    """Run every shard, in order; the first error ends it."""
    with Worker(settings) as worker:
        for shard in shards:
            worker.predict(shard, on_progress, observe=observe)
