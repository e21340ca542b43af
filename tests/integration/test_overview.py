"""What the Overview and the page Drift ask the cache: on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tasks import road
from tasks.cache.database import connect, is_sqlite, writing
from tasks.cache.pages.drift import counts_by_day, first_days, newest_days, together
from tasks.cache.pages.overview import last_runs, work_by_day
from tasks.cache.sums import counts_of_days
from tests.integration.test_sums import IMAGES, write_image
from tests.pictures import write_small_bundle
from tests.runner import Runner

Make = Callable[..., Runner]

FIRST, SECOND, THIRD = (date(2026, 10, day) for day in (1, 2, 3))


@pytest.fixture
def make(tmp_path: Path, home: Path, database_url: str) -> Make:
    for number in range(IMAGES):
        write_image(tmp_path / "images", number, number % 3)
    model = write_small_bundle(tmp_path / "model", 7)

    def runner(**table: Any) -> Runner:
        return Runner(home, database_url, **{"images": str(tmp_path / "images"), "model": str(model), **table})

    return runner


def cache_of(runner: Runner) -> Engine:
    return connect(runner.settings.database_url)


def test_the_last_run_and_what_it_left(make: Make) -> None:
    one = make()
    assert last_runs(cache_of(one), ["test", "other"]) == {}
    assert last_runs(cache_of(one), []) == {}
    one.run(limit=20)
    found = last_runs(cache_of(one), ["test", "other"])["test"]
    assert (found.state, found.backlog, found.counts["predicted"]) == ("success", IMAGES - 20, 20)
    oldest = one.rows("SELECT waiting_since FROM run")[0]["waiting_since"]
    assert str(found.waiting_since)[:16] == str(oldest)[:16]
    assert found.images_per_second == pytest.approx(
        one.rows("SELECT images_per_second FROM v_run")[0]["images_per_second"]
    )
    assert found.worker_seconds > 0


def test_while_a_run_is_under_way_its_shards_say_what_is_to_do(make: Make) -> None:
    one = make(workers=2)
    one.run(limit=10)
    request, shards = one.plan()
    assert last_runs(cache_of(one), ["test"])["test"].backlog == IMAGES - 10
    road.predict_shard(shards[0], one.settings)
    found = last_runs(cache_of(one), ["test"])["test"]
    assert (found.state, found.backlog) == ("running", shards[1].count)
    road.predict_shard(shards[1], one.settings)
    road.publish_run(request, one.settings)
    assert last_runs(cache_of(one), ["test"])["test"].backlog == 0


def test_a_retry_is_no_last_run_and_its_images_count(make: Make, tmp_path: Path) -> None:
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    one = make()
    one.run()
    first = last_runs(cache_of(one), ["test"])["test"].run_id
    with writing(cache_of(one)) as connection:
        name = "failure" if is_sqlite(cache_of(one)) else "afterimage.failure"
        connection.execute(text(f"UPDATE {name} SET next_retry_at = first_failed_at"))
    road.run(one.request(retry=True, run_type="retry"), one.settings)
    assert last_runs(cache_of(one), ["test"])["test"].run_id == first
    (today,) = work_by_day(cache_of(one), ["test"])["test"]
    assert (today.predicted, today.failed) == (IMAGES, 2)


def test_runs_are_added_up_by_the_day_on_which_they_began(make: Make) -> None:
    one = make()
    one.run(limit=10)
    older = datetime(2026, 11, 3, 23, 59, 59, tzinfo=UTC)
    engine = cache_of(one)
    with writing(engine) as connection:
        name = "run" if is_sqlite(engine) else "afterimage.run"
        moment = older.replace(tzinfo=None) if is_sqlite(engine) else older
        connection.execute(text(f"UPDATE {name} SET started_at = :moment"), {"moment": moment})
    for _ in range(2):
        one.run()
    before, today = work_by_day(engine, ["none", "test"])["test"]
    assert (before.day, before.listed, before.predicted) == (older.date(), IMAGES, 10)
    assert (today.listed, today.cached, today.predicted) == (2 * IMAGES, 10 + IMAGES, IMAGES - 10)
    assert today.worker_seconds > 0
    assert work_by_day(engine, []) == {}


def test_more_pipelines_than_a_union_may_have_parts(make: Make) -> None:
    one = make()
    one.run()
    names = [f"p{number}" for number in range(600)]
    found = work_by_day(cache_of(one), [*names, "test"])
    assert len(found) == 601
    assert len(found["test"]) == 1


def test_days_with_images_and_what_came_on_them(make: Make) -> None:
    one = make()
    one.run()
    engine, model_no = cache_of(one), 1
    assert newest_days(engine, "test", model_no, 30) == first_days(engine, "test", model_no, 7) == (FIRST, THIRD)
    assert newest_days(engine, "test", model_no, 2) == (SECOND, THIRD)
    assert first_days(engine, "test", model_no, 2) == (FIRST, SECOND)
    assert newest_days(engine, "other", model_no, 2) is None
    found = counts_by_day(engine, "test", model_no, SECOND, THIRD + timedelta(days=9))
    assert list(found) == [SECOND, THIRD]
    assert [day.images for day in found.values()] == [10, 10]
    assert together(list(found.values())) == counts_of_days(engine, "test", model_no, SECOND, THIRD)
    assert sum(counts_of_days(engine, "test", model_no, FIRST, THIRD).labels.values()) == IMAGES
