"""What a shard tells about itself at each commit, for whoever sends it to a metrics system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.stage_times import StageTimes, Times


@dataclass(frozen=True, slots=True)
class Observation:
    """Since the last commit: images by outcome, busy seconds by stage, and shares of 0 to 1 that were used.

    `use` holds the stages and `processor`; `queue_fill` says of the queue before each stage how full it is now, by items
    or by bytes, whichever is fuller.
    """

    device: str
    outcomes: Mapping[str, int]
    stage_seconds: Mapping[str, float]
    use: Mapping[str, float]
    queue_fill: Mapping[str, float]


def since(before: Times, now: Times) -> tuple[dict[str, float], dict[str, float]]:
    """Busy seconds, and shares of the capacity, of each stage between two looks at a shard's times."""
    spent: Times = {}
    for stage, times in now.items():
        earlier = before.get(stage, StageTimes())
        spent[stage] = StageTimes(busy=times.busy - earlier.busy, capacity=times.capacity - earlier.capacity)
    return {stage: one.busy for stage, one in spent.items()}, {stage: one.share for stage, one in spent.items()}
