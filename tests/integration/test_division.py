"""How many mapped tasks a run becomes, by the SQL that divides it and the defaults of a pipeline.

A million rows take half a minute, so everything is a hundredth here: the rows, and the rate of the network.
benchmarks/dividing.py has the million itself.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tasks import deduplication
from tasks.cache.commits import Scope, record_progress
from tasks.cache.database import connect, reading, writing
from tasks.cache.listed import stage_page
from tasks.cache.models import register_model
from tasks.cache.outcome import Progress
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.deduplication import DedupeOptions, deduplicate
from tasks.listing import Page
from tasks.models.cascade import Model, resolve_models
from tasks.pipelines import Pipeline
from tasks.settings import load_settings
from tasks.storage.base import PAGE_OBJECTS, ImageObject
from tasks.window import EVERYTHING
from tests.pictures import write_small_bundle

SCALE = 100
IMAGES = 1_000_000 // SCALE
MODIFIED = datetime(2026, 3, 1, tzinfo=UTC)

# Each statement takes a tenth of a second. One that goes through all rows for each row takes half a minute and more.
PATIENCE = timedelta(seconds=15)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return resolve_models((str(write_small_bundle(tmp_path / "model")),), (), load_settings(home=tmp_path))


def staged(url: str, count: int, run_id: str = "new") -> Staging:
    engine = connect(url)
    start = RunStart(RunKey("test", run_id), "manual", None, "s3://bucket", "", EVERYTHING, False, {})
    staging = open_run(engine, start)
    for first in range(0, count, PAGE_OBJECTS):
        page = range(first, min(count, first + PAGE_OBJECTS))
        stage_page(engine, staging, Page([ImageObject(f"{n:07d}.jpg", str(n), 1, MODIFIED) for n in page], 0))
    return staging


def divided(url: str, staging: Staging, model: Model, workers: int = 1) -> list[int]:
    """Rows of each shard, with the defaults of a pipeline."""
    table = Pipeline(name="test", images="s3://bucket", model="model", workers=workers)
    options = DedupeOptions(False, None, table.shard_seconds, table.max_shards, table.workers)
    return deduplicate(connect(url, PATIENCE), staging, model, "decoder", options, lambda _key: True, None).sizes


def measured(url: str, model: Model, images_per_second: float) -> None:
    """A shard of another run has measured this rate."""
    staging = staged(url, 200, "measured")
    engine = connect(url)
    with writing(engine) as connection:
        model_no = register_model(connection, model.model_id, model.name, model.version, model.identity())
    divided(url, staging, model)
    scope = Scope(staging, 0, model_no, "decoder", False)
    record_progress(engine, scope, Progress(200, 200, 200 / images_per_second, {}, "gpu"))


def test_a_million_images_of_an_unknown_rate_are_fifty_tasks(
    database_url: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deduplication, "DEFAULT_SHARD_IMAGES", deduplication.DEFAULT_SHARD_IMAGES // SCALE)
    assert divided(database_url, staged(database_url, IMAGES), model) == [IMAGES // 50] * 50


def test_a_million_images_on_a_gpu_are_tasks_of_five_minutes(database_url: str, model: Model) -> None:
    measured(database_url, model, 200 / SCALE)
    assert divided(database_url, staged(database_url, IMAGES), model) == pytest.approx(
        [200 * 300 / SCALE] * 17, rel=0.03
    )


def test_a_million_images_on_a_slow_device_are_no_more_than_64_tasks(database_url: str, model: Model) -> None:
    """Shards of five minutes would be 334."""
    measured(database_url, model, 10 / SCALE)
    sizes = divided(database_url, staged(database_url, IMAGES), model)
    assert (len(sizes), sum(sizes)) == (64, IMAGES)
    assert max(sizes) - min(sizes) <= 1


def test_there_are_as_many_tasks_as_workers_however_fast_they_are(database_url: str, model: Model) -> None:
    measured(database_url, model, 5_000 / SCALE)
    assert len(divided(database_url, staged(database_url, IMAGES), model, workers=8)) == 8


def test_the_planner_knows_of_a_run_before_it_is_divided(postgres_url: str, model: Model) -> None:
    """Else it takes the run for one row, and compares every known image with all rows: the square of their number."""
    engine = connect(postgres_url)
    divided(postgres_url, staged(postgres_url, IMAGES), model)
    with reading(engine) as connection:
        known = text("SELECT reltuples FROM pg_class WHERE oid = 'afterimage.work_item'::regclass")
        assert connection.execute(known).scalar_one() == IMAGES
