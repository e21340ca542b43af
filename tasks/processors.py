"""How many processors this process may use, which in a container is less than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # control groups, version 2: "max 100000" or "QUOTA PERIOD" in microseconds


def cores(quota: Path = _QUOTA) -> int:
    """The smaller of the processors that the scheduler may give us and a container's quota, and at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # No such file, or "max": there is no quota.
        return allowed
