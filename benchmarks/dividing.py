"""What a million new images cost before the first shard: staging them, and dividing them into mapped tasks.

    python -m benchmarks.dividing [--images 1000000]

PostgreSQL, pages of a thousand rows as a listing brings them, an empty cache, and the defaults of a pipeline.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, text

from tasks.cache.database import connect, reading
from tasks.cache.listed import stage_page
from tasks.cache.migrating import migrate
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.deduplication import DedupeOptions, Division, deduplicate
from tasks.listing import Page
from tasks.models.cascade import Model, resolve_models
from tasks.pipelines import Pipeline
from tasks.settings import load_settings
from tasks.storage.base import PAGE_OBJECTS, ImageObject
from tasks.window import EVERYTHING
from tests.conftest import fresh_postgres, serving_postgres
from tests.pictures import write_small_bundle

MODIFIED = datetime(2026, 3, 1, tzinfo=UTC)


def stage(engine: Engine, count: int) -> Staging:
    """A run that has listed so many images."""
    start = RunStart(RunKey("benchmark", "dividing"), "manual", None, "s3://bucket", "", EVERYTHING, False, {})
    staging = open_run(engine, start)
    for first in range(0, count, PAGE_OBJECTS):
        page = range(first, min(count, first + PAGE_OBJECTS))
        images = [ImageObject(f"{n:08d}.jpg", f"{n:032x}", 100_000, MODIFIED) for n in page]
        stage_page(engine, staging, Page(images, 0))
    return staging


def divide(engine: Engine, staging: Staging, model: Model) -> Division:
    """Deduplicate as a pipeline with default settings does."""
    pipeline = Pipeline(name="dividing", images="s3://bucket", model="model")
    options = DedupeOptions(False, None, pipeline.shard_seconds, pipeline.max_shards, pipeline.workers)
    return deduplicate(engine, staging, model, "decoder", options, None, None)


def main(count: int, folder: Path) -> None:
    """Measure both and print them."""
    model = resolve_models((str(write_small_bundle(folder / "model")),), (), load_settings(home=folder))
    with serving_postgres() as server, fresh_postgres(server) as url:
        engine = connect(url)
        migrate(engine)
        begun = time.monotonic()
        staging = stage(engine, count)
        staged = time.monotonic()
        division = divide(engine, staging, model)
        divided = time.monotonic()
        with reading(engine) as connection:
            size = connection.execute(text("SELECT pg_total_relation_size('afterimage.work_item')")).scalar_one()
        engine.dispose()
    print(f"{count:,} images staged in {staged - begun:.1f} s, divided in {divided - staged:.1f} s")
    print(f"{size / count:.0f} bytes of the database for each staged image, indexes included")
    print(f"{len(division.sizes)} mapped tasks of {min(division.sizes):,} to {max(division.sizes):,} images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dividing", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory(prefix="afterimage-dividing-") as made:
        main(parser.parse_args().images, Path(made))
