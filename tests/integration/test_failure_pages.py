"""The quarantine of one pipeline, and retries that reach no further; on both databases, over a bucket of two prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tasks.cache.database import connect
from tasks.cache.pages.failures import Failed, FailureScope, Place, failed_images, failure_scope, reasons
from tasks.cache.quarantine import mark_due
from tasks.settings import load_settings
from tasks.storage.s3 import client
from tasks.window import SCHEDULED, Window
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner, outcomes

ODD = "raw/%41 <script>\u202e'\"?#.png"


@dataclass
class Quarantine:
    """Two pipelines over the two prefixes of a bucket, and a third one over the first prefix with another model."""

    engine: Engine
    raw: Runner
    rawer: Runner
    other: Runner

    def scope(self, name: str) -> FailureScope:
        found = failure_scope(self.engine, name)
        assert found is not None
        return found

    def attempts(self) -> dict[tuple[str, str], int]:
        rows = self.raw.rows("SELECT key, model_id, attempts FROM v_failure")
        names = {row["model_id"]: row["name"] for row in self.raw.rows("SELECT model_id, name FROM model")}
        return {(row["key"], names[row["model_id"]]): row["attempts"] for row in rows}


@pytest.fixture
def quarantine(home: Path, tmp_path: Path, database_url: str, bucket: str, s3_settings: dict[str, str]) -> Quarantine:
    s3 = client(load_settings(**s3_settings))
    bodies = {"raw/a.png": picture(1)[:60], "raw/b.png": picture(2)[:60], "raw/empty.png": b"", ODD: b""}
    bodies |= {"rawer/c.png": picture(3)[:60], "raw/good.png": picture(4)}
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    models = [write_small_bundle(tmp_path / name, seed, name=name) for seed, name in enumerate(("small", "large"))]
    runners = [
        Runner(home, database_url, s3_settings, name=name, images=f"s3://{bucket}/{images}", model=str(model))
        for name, images, model in (
            ("raw", "raw/", models[0]),
            ("rawer", "rawer/", models[0]),
            ("other", "raw/", models[1]),
        )
    ]
    for runner in runners:
        runner.run()
    return Quarantine(connect(database_url), *runners)


def test_a_pipeline_shows_its_own_failures_by_reason(quarantine: Quarantine) -> None:
    found = reasons(quarantine.engine, quarantine.scope("raw"))
    assert [(one.reason, one.images, one.passing, one.next_retry_at) for one in found] == [
        ("empty", 2, 0, None),
        ("truncated", 2, 0, None),
    ]
    assert all(one.oldest <= one.newest for one in found)
    assert [one.images for one in reasons(quarantine.engine, quarantine.scope("rawer"))] == [1]
    assert failure_scope(quarantine.engine, "unknown") is None


def test_pages_of_the_list_leave_nothing_out_and_show_nothing_twice(quarantine: Quarantine) -> None:
    scope, seen = quarantine.scope("raw"), list[Failed]()
    place: Place | None = None
    while page := failed_images(quarantine.engine, scope, 1, None, "", place):
        seen += page
        place = Place(page[-1].last_failed_at, page[-1].key)
    assert sorted(one.key for one in seen) == sorted(["raw/a.png", "raw/b.png", "raw/empty.png", ODD])
    assert [one.last_failed_at for one in seen] == sorted((one.last_failed_at for one in seen), reverse=True)
    assert {one.key for one in seen if one.digest} >= {"raw/a.png", "raw/b.png"}


def test_a_reason_and_the_beginning_of_a_key_narrow_the_list(quarantine: Quarantine) -> None:
    scope, engine = quarantine.scope("raw"), quarantine.engine

    def keys(reason: str | None, prefix: str) -> list[str]:
        return sorted(one.key for one in failed_images(engine, scope, 50, reason, prefix, None))

    assert keys("truncated", "") == ["raw/a.png", "raw/b.png"]
    assert keys(None, ODD[:12]) == [ODD]
    assert keys("empty", "raw/e") == ["raw/empty.png"]
    assert keys(None, "rawer/") == []
    assert keys(None, "raw/\U0010ffff") == []


def test_a_retry_marks_what_belongs_to_the_pipeline_and_its_next_run_tries_that(quarantine: Quarantine) -> None:
    scope = quarantine.scope("raw")

    def mark(reason: str | None, key: str | None) -> int:
        return mark_due(quarantine.engine, reason, key, scope.source, scope.prefix, scope.model_no)

    assert mark(None, None) == 0, "all of them are permanent"
    assert mark(None, "rawer/c.png") == 0
    assert mark("truncated", None) == 2
    assert mark(None, ODD) == 1
    for runner in (quarantine.rawer, quarantine.other):
        assert "failed" not in outcomes(runner.run()), "another pipeline's are not due"
    counts = outcomes(quarantine.raw.run())
    assert counts == {"cached": 1, "known_bad": 1, "failed": 3}
    before = quarantine.attempts()
    assert {key for key, times in before.items() if times == 2} == {
        ("raw/a.png", "small"),
        ("raw/b.png", "small"),
        (ODD, "small"),
    }
    assert outcomes(quarantine.raw.run()) == {"cached": 1, "known_bad": 4}, "they are known to be bad again"


def test_a_retry_over_days_is_tried_by_hand_and_by_schedule(home: Path, tmp_path: Path, database_url: str) -> None:
    """A scheduled run lists the days of its window only; it takes what is due of other days as well."""
    for day in ("2026-03-01", "2026-03-02"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "broken.png").write_bytes(picture(1)[:60])
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, images=f"{tmp_path}/{{{{ ds }}}}/", model=str(model))
    assert outcomes(runner.run()) == {"failed": 2}
    engine = connect(database_url)
    scope = failure_scope(engine, "test")
    assert scope is not None

    def mark() -> int:
        return mark_due(engine, None, "2026-03-01/broken.png", scope.source, scope.prefix, scope.model_no)

    assert mark() == 1
    assert outcomes(runner.run()) == {"known_bad": 1, "failed": 1}
    assert mark() == 1
    later = Window(datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 3, 6, tzinfo=UTC))
    assert outcomes(runner.run(later, run_type=SCHEDULED)) == {"failed": 1}
    engine.dispose()
