"""What share of a run's time is orchestration: real Airflow, real Celery workers, and a network that waits as for a GPU.

    python -m benchmarks.orchestration [--shard-seconds 300] [--shards 4] [--workers 2] [--rate 50]

A farm of processes on this machine (tests/celery_farm.py: PostgreSQL, Redis, API server, scheduler, DAG processor, one
Celery worker for each GPU that is imagined) runs one pipeline over a folder of small pictures, from an empty cache. Each
shard holds `rate` times `shard-seconds` pictures, so that its network takes as many seconds.

    worker seconds    workers x seconds from the trigger to the end of the run
    work              seconds in which shards read, decoded, predicted and committed, as the cache has them
    orchestration     all other worker seconds: listing, deduplicate and publish, for which the workers wait; the start of
                      each task with its imports and its network; the time between a worker's shards, and behind its last

Listing and deduplicating grow with the images, not with the seconds of a GPU: benchmarks/dividing.py has a million.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from tasks.cache.database import connect
from tasks.cache.migrating import migrate
from tests.celery_farm import CeleryFarm
from tests.conftest import fresh_postgres, serving_postgres
from tests.farm_runtimes import RATE, WAITING
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner

DAG = "predict_waiting"

PIPELINES = """
[waiting]
images = "{home}/images"
model = "{home}/waiting"
workers = {shards}
max_shards = {shards}
shard_seconds = {shard_seconds}
"""


@dataclass(frozen=True)
class Times:
    """A run's seconds: until its first shard starts, until its last shard ends, and to its end; and what shards worked."""

    workers: int
    before: float
    shards: float
    after: float
    work: float

    @property
    def run(self) -> float:
        """From the trigger to the end."""
        return self.before + self.shards + self.after

    @property
    def orchestration(self) -> float:
        """The share of all worker seconds that was no work, 0 to 1."""
        return 1 - self.work / (self.workers * self.run)


def measure(arguments: argparse.Namespace, home: Path) -> Times:
    """Run the pipeline once on a farm of its own."""
    make_pictures(home / "images", round(arguments.rate * arguments.shard_seconds) * arguments.shards)
    write_small_bundle(home / "waiting", name=WAITING)
    table = PIPELINES.format(home=home, shards=arguments.shards, shard_seconds=arguments.shard_seconds)
    (home / "pipelines.toml").write_text(table)
    with databases() as (metadata, url):
        farm = CeleryFarm(home, metadata, {"AFTERIMAGE_DATABASE": url, RATE: str(arguments.rate)})
        try:
            farm.start(*(f"gpu{number + 1}" for number in range(arguments.workers)))
            farm.unpause(DAG)
            run_id = farm.begin(DAG)
            patience = 120 + 3 * arguments.shard_seconds * arguments.shards / arguments.workers
            run = farm.ended(DAG, run_id, patience)
            cache = Runner(home / "afterimage", url, images=str(home / "images"), model=str(home / "waiting"))
            work = cache.rows("SELECT sum(seconds) AS seconds FROM shard")[0]["seconds"]
            return times(run, farm.shards(DAG, run_id), work, arguments.workers)
        finally:
            farm.stop()


def make_pictures(folder: Path, count: int) -> None:
    """So many different pictures, as small as they may be."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:07d}.png").write_bytes(picture(number, (8, 8)))


@contextmanager
def databases() -> Iterator[tuple[str, str]]:
    """Airflow's, and the cache with its tables."""
    with serving_postgres() as server, fresh_postgres(server) as metadata, fresh_postgres(server) as url:
        engine = connect(url)
        migrate(engine)
        engine.dispose()
        yield make_url(metadata).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False), url


def times(run: dict[str, Any], shards: Sequence[dict[str, Any]], work: float, workers: int) -> Times:
    """From what Airflow says of a run and its shards, and the cache of their work."""
    triggered, ended = moment(run["queued_at"]), moment(run["end_date"])
    first = min(moment(shard["start_date"]) for shard in shards)
    last = max(moment(shard["end_date"]) for shard in shards)
    return Times(
        workers,
        (first - triggered).total_seconds(),
        (last - first).total_seconds(),
        (ended - last).total_seconds(),
        work,
    )


def moment(text: str) -> datetime:
    """A moment as Airflow's REST API writes it."""
    return datetime.fromisoformat(text)


def report(found: Times) -> str:
    """The table that is printed."""
    total = found.workers * found.run
    return "\n".join(
        [
            f"run            {found.run:8.1f} s on {found.workers} workers: {found.before:.1f} s until the first shard, "
            f"{found.shards:.1f} s of shards, {found.after:.1f} s behind the last",
            f"work           {found.work:8.1f} s of {total:.1f} worker seconds",
            f"orchestration  {100 * found.orchestration:8.1f} %",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.split("\n")[0])
    parser.add_argument("--shard-seconds", type=float, default=300.0, help="what the network of a shard takes")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=50.0, help="images a second of a worker's network")
    return parser.parse_args()


if __name__ == "__main__":
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="afterimage-orchestration-") as folder:
        sys.stdout.write(report(measure(_arguments(), Path(folder))) + "\n")
