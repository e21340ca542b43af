"""`make demo`: make a bucket and a model, run the DAG `predict_digits` through Airflow twice, and say what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from demo.local_airflow import airflow, migrate_airflow
from demo.report import accuracy, last_run, next_steps
from tasks.pipelines import find_pipeline
from tasks.reporting import format_summary
from tasks.settings import PROJECT, load_settings

DAG_ID = "predict_digits"


def main() -> None:
    """Prepare, run twice, report."""
    prepare()
    migrate_airflow()
    settings = load_settings()
    say(f"\nRunning the DAG {DAG_ID} through Airflow ...")
    first = run_dag()
    say(format_summary(first))
    say(f"accuracy on the scans that the network was not trained on: {accuracy(settings.database_url):.1%}")
    say("\nRunning it again ...")
    second = run_dag()
    say(format_summary(second))
    if second["reads"] or second["forward_passes"]:
        raise SystemExit(
            "The second run read or predicted something: the cache did not answer. Run ./afterimage doctor."
        )
    say(compare(first["seconds"], second["seconds"], first["predicted"]))
    say(next_steps())


def prepare() -> None:
    """Write the bucket and train the model, unless they are there."""
    pipeline = find_pipeline(load_settings().pipelines, "digits")
    from demo.bucket import write_folder

    say(f"{write_folder(Path(pipeline.images)):,} objects in the demo bucket {shorten(pipeline.images)}")
    from demo.network import write_model

    started = time.perf_counter()
    write_model(Path(pipeline.models[0]))
    say(f"the demo model in {shorten(pipeline.models[0])} ({time.perf_counter() - started:.1f} s)")


def run_dag() -> dict[str, Any]:
    """One run of the DAG in this machine's Airflow; its counts, as the cache has them."""
    airflow("dags", "test", DAG_ID)
    return last_run(load_settings().database_url, DAG_ID)


def compare(first: float, second: float, predicted: int) -> str:
    """How much faster the second run was."""
    if predicted == 0:
        return "The cache knew everything in both runs: it is kept under var/ from an earlier demo."
    return f"0 reads, 0 forward passes, {first / second:.0f} times faster ({first:.2f} s, then {second:.2f} s)."


def shorten(path: str) -> str:
    """A path as it is seen from the project."""
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else path


def say(text: str) -> None:
    """Print a line at once, between the lines of other programs."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
