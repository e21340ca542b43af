"""What holds for the tasks of all DAGs: how often they are tried again, and when they are given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from tasks.errors import LASTING

# A first load of a large bucket takes days.
RUN_TIMEOUT = timedelta(days=14)

DEFAULT_ARGS: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(
        rules=[RetryRule(exception=error, action=RetryAction.FAIL) for error in LASTING]
    ),
    "execution_timeout": timedelta(hours=6),
}
