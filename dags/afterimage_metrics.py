"""What shards observe, sent as Airflow's own settings say: StatsD, Datadog or OpenTelemetry ([metrics] in airflow.cfg).

Outcome and stage stand in the name, because plain StatsD drops tags; pipeline and device are tags where there are any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from airflow.sdk.observability import stats

from tasks.observation import Observation


def send(pipeline: str, observation: Observation) -> None:
    """Send one observation; metrics that cannot be sent stop no work, Airflow's clients see to that."""
    # StatsD's tags are a part of the name, and Airflow drops a metric whose name holds a space.
    tags = {"pipeline": pipeline, "device": re.sub(r"[^\w.-]+", "_", observation.device, flags=re.ASCII)}
    for name, count in counters(observation):
        stats.incr(f"afterimage.{name}", count, tags=tags)
    for name, value in gauges(observation):
        stats.gauge(f"afterimage.{name}", value, tags=tags)


def counters(observation: Observation) -> Iterator[tuple[str, int]]:
    """Images by outcome, and milliseconds by stage."""
    for outcome, images in observation.outcomes.items():
        yield f"images.{outcome}", images
    for stage, seconds in observation.stage_seconds.items():
        yield f"stage_milliseconds.{stage}", round(seconds * 1000)


def gauges(observation: Observation) -> Iterator[tuple[str, Any]]:
    """Shares of 0 to 1: how much of each stage and of the processor was used, and how full the queues are."""
    for stage, share in observation.use.items():
        yield f"use.{stage}", round(share, 4)
    for stage, share in observation.queue_fill.items():
        yield f"queue_fill.{stage}", round(share, 4)
