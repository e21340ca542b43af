"""Shards one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tasks.plan import ShardDescriptor


def run_shards(shards: Iterable[ShardDescriptor], predict: Callable[[ShardDescriptor], object]) -> None:
    """Run every shard, in order; the first error ends it."""
    for shard in shards:
        predict(shard)
