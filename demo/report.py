"""What the rows in the cache say about the demo."""

from __future__ import annotations

from typing import Any

from demo.bucket import NOT_SCANS, SPECIAL_KEY
from tasks.cache import contract
from tasks.cache.database import connect


def last_run(database_url: str, dag_id: str) -> dict[str, Any]:
    """The newest run of a DAG."""
    runs = [run for run in contract.runs(connect(database_url), "digits", limit=10) if run["dag_id"] == dag_id]
    if not runs:
        raise SystemExit(f"The cache has no run of {dag_id}. Run make demo again, and look at var/demo/airflow.log.")
    return runs[0]


def accuracy(database_url: str) -> float:
    """Share of the scans outside the training half whose predicted label is the digit in their key."""
    rows = contract.current_predictions(connect(database_url), "digits")
    judged = [row for row in rows if not row["key"].startswith(("train/", *NOT_SCANS))]
    right: int = sum(row["label"] == row["key"].split("/")[1] for row in judged)
    return right / len(judged)


def next_steps() -> str:
    """What to try next."""
    return f"""
What to try next:
  make ui                                       Airflow in the browser; press Trigger on predict_digits
  ./afterimage show '{SPECIAL_KEY}'
  ./afterimage failures                         the three damaged files, with reasons
  point it at your own bucket                   a table in pipelines.toml: images = "s3://...", model = "torchvision:..."
"""
