"""A bucket on a real socket that many threads list: the rows of one thread, the LISTs that it may cost, and when it begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tasks import range_listing, road
from tasks.cache.database import connect, is_sqlite, writing
from tasks.storage import s3
from tasks.storage.s3 import S3Store
from tests.faults.fake_s3.control import FakeS3, serving_fake_s3
from tests.runner import Runner

KEYS = 3_000
PAGE = 100


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeS3]:
    with serving_fake_s3() as found:
        yield found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, fake: FakeS3) -> None:
    monkeypatch.setattr(s3, "PAGE_OBJECTS", PAGE)
    monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", 1_000)
    fake.reset()


def runner_of(fake: FakeS3, url: str, bucket: str = f"keys-{KEYS}", **table: Any) -> Runner:
    given = {"include": ("*.png",), "exclude": ("*7.png",), **table}
    return Runner(Path("unused"), url, dict(fake.settings), images=f"s3://{bucket}/", model="unused", **given)


def staged(runner: Runner) -> list[dict[str, Any]]:
    newest = "(SELECT max(run_no) FROM work_item)"
    return runner.rows(f"SELECT key, etag, size, last_modified FROM work_item WHERE run_no = {newest} ORDER BY key")


def close(runner: Runner) -> None:
    """As if the run had gone on to its end."""
    engine = connect(runner.settings.database_url)
    schema = "" if is_sqlite(engine) else "afterimage."
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE {schema}run SET state = 'success'"))
    engine.dispose()


def test_threads_stage_the_rows_that_one_stages(database_url: str, fake: FakeS3) -> None:
    alone = runner_of(fake, database_url, list_workers=1)
    counts = road.list_images(alone.request(), alone.settings)
    expected, lists = staged(alone), fake.requests("list")
    assert (counts["listed"], counts["ignored"]) == (len(expected), KEYS - len(expected))
    assert lists == KEYS // PAGE

    fake.reset()
    many = runner_of(fake, database_url, list_workers=8)
    shared = road.list_images(many.request(), many.settings)
    assert shared == counts
    assert staged(many) == expected
    assert lists < fake.requests("list") < 20 * lists

    close(many)
    assert road.list_images(many.request(), many.settings) == counts, "and the next one from its first key"
    assert staged(many) == expected


def test_a_small_bucket_costs_the_lists_that_it_did(tmp_path: Path, fake: FakeS3) -> None:
    runner = runner_of(fake, f"sqlite:///{tmp_path / 'cache.db'}", bucket="keys-950")
    for _ in range(2):
        fake.reset()
        road.list_images(runner.request(), runner.settings)
        assert fake.requests("list") == 10
        close(runner)


def test_a_run_before_that_was_large_is_one_over_this_prefix_that_ended_well(
    tmp_path: Path, fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        range_listing, "list_all", lambda _source, _workers, *, is_large: seen.append(is_large) or (0, 0)
    )
    url = f"sqlite:///{tmp_path / 'cache.db'}"
    runner = runner_of(fake, url)
    engine = connect(url)

    def began(state: str, listed: int, run_type: str = "manual", **other: Any) -> bool:
        road.list_images(runner.request(**other), runner.settings)
        with writing(engine) as connection:
            newest = "(SELECT max(run_no) FROM run)"
            connection.execute(
                text(
                    f"UPDATE run SET state = '{state}', listed = {listed}, run_type = '{run_type}' WHERE run_no = {newest}"
                )
            )
        return seen[-1]

    assert began("success", 999) is False
    assert began("success", 1_000) is False
    assert began("failed", 5) is True
    assert began("success", 3, "retry") is True
    assert began("success", 10) is True
    assert began("success", 10) is False
    elsewhere = runner_of(fake, url, bucket="keys-100")
    road.list_images(elsewhere.request(), elsewhere.settings)
    assert seen[-1] is False


def test_a_store_that_ignores_where_to_begin_is_found_out(
    tmp_path: Path, fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = S3Store._page
    asked: list[dict[str, Any]] = []

    def deaf(self: S3Store, prefix: str, start: dict[str, Any]) -> Any:
        asked.append(start)
        return page(self, prefix, {name: value for name, value in start.items() if name != "StartAfter"})

    monkeypatch.setattr(S3Store, "_page", deaf)
    runner = runner_of(fake, f"sqlite:///{tmp_path / 'cache.db'}")
    counts = road.list_images(runner.request(), runner.settings)
    assert counts["listed"] + counts["ignored"] == KEYS == len(staged(runner)) + counts["ignored"]
    assert sum("StartAfter" in start for start in asked) == 1, "one question, and no further one"
