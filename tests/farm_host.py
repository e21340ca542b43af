"""The farm's processes as if each had a host of its own: Airflow asks this function for the host's name."""

from __future__ import annotations

import os


def name() -> str:
    """What stands as `hostname` in Airflow's task instances."""
    return os.environ.get("FARM_HOST", "farm")
