"""The rows of the table, by name. Each takes the workplace and the report, and adds findings."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measurements import alone, cached, ceiling, end_to_end, memory, on_ray, processor, starting
from benchmarks.report import Report
from benchmarks.workplace import Workplace

MEASUREMENTS: dict[str, Callable[[Workplace, Report], None]] = {
    "decode": alone.decode,
    "forward": alone.forward,
    "mobilenet": end_to_end.mobilenet,
    "squeezenet": end_to_end.squeezenet,
    "ceiling": ceiling.measure,
    "processor": processor.measure,
    "memory": memory.many,
    "large": memory.large,
    "cached": cached.measure,
    "start": starting.measure,
    "ray": on_ray.measure,
}
