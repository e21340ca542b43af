"""What Airflow does to a run after the fact: backfills that run again, cleared tasks, teardowns, late retries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import road
from tasks.cache.database import connect, writing
from tasks.cache.runs import RunKey
from tasks.errors import AccessDenied, DatabaseUnavailable, GlobalFault, TooManyFailures
from tasks.inference import reading
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tasks.window import Window
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

MakeRunner = Callable[..., Runner]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 60)
    return tmp_path / "images"


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path, database_url: str) -> MakeRunner:
    model = write_small_bundle(tmp_path / "model")

    def runner(**changes: Any) -> Runner:
        return Runner(home, database_url, **{"images": str(images), "model": str(model), **changes})

    return runner


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """Makes the store refuse some keys from now on."""
    read = LocalStore.read
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.001)

    def those(keys: Callable[[str], bool]) -> None:
        def refusing(self: LocalStore, key: str, etag: str | None) -> Blob:
            if keys(key):
                raise AccessDenied("403")
            return read(self, key, etag)

        monkeypatch.setattr(LocalStore, "read", refusing)

    return those


def test_force_predicts_again_in_a_run_that_airflow_has_cleared(make: MakeRunner) -> None:
    """A backfill of All Runs clears the run that is there: same dag_id, same run_id, a new generation."""
    key = RunKey("predict_test", "scheduled__2026-03-01")
    assert outcomes(make().run(key=key, run_type="scheduled")) == {"predicted": 60}
    again = make().run(key=key, run_type="backfill", force=True)
    assert (outcomes(again), again["forward_passes"]) == ({"predicted": 60}, 60)
    once_more = make().run(key=key, run_type="backfill", force=True)
    assert outcomes(once_more) == {"predicted": 60}


def test_unreadable_objects_at_the_start_of_the_bucket_are_no_global_fault(
    make: MakeRunner, refuse: Callable[..., None]
) -> None:
    refuse(lambda key: key < "00030")
    assert outcomes(make().run()) == {"predicted": 30, "failed": 30}


def test_one_unreadable_object_on_a_quiet_day_is_no_global_fault(
    make: MakeRunner, images: Path, refuse: Callable[..., None]
) -> None:
    make().run()
    (images / "00000-new.png").write_bytes(picture(1000))
    refuse(lambda key: key == "00000-new.png")
    assert outcomes(make(max_failure_rate=0.05).run()) == {"cached": 60, "failed": 1}


def test_a_key_that_cannot_be_read_needs_no_right_to_list_elsewhere(
    make: MakeRunner, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    _, (shard,) = one.plan()

    def forbidden(*_: object) -> None:
        raise AccessDenied("listing")

    monkeypatch.setattr(LocalStore, "pages", forbidden)
    refuse(lambda key: key >= "00059")
    assert road.predict_shard(shard, one.settings) == {"predicted": 59, "failed": 1}


def test_finished_work_is_committed_before_a_global_fault_ends_the_shard(
    home: Path, make: MakeRunner, refuse: Callable[..., None]
) -> None:
    small_batches = {"batch_size": 4, "readers": 4}
    table = {"images": make().pipeline.images, "model": make().pipeline.model}
    one = Runner(home, make().settings.database_url, small_batches, **table)
    taken: list[str] = []

    def dies_after_ten(key: str) -> bool:
        taken.append(key)
        return len(taken) > 10

    refuse(dies_after_ten)
    with pytest.raises(GlobalFault):
        one.run()
    row = one.rows("SELECT predicted, failed, open FROM v_run")[0]
    assert (row["predicted"] + row["open"], row["failed"]) == (60, 0)
    assert row["predicted"] > 0


def test_two_bad_images_on_a_quiet_day_do_not_fail_the_run_and_three_do(make: MakeRunner, images: Path) -> None:
    make().run()
    for number in range(2):
        (images / f"bad-{number}.png").write_bytes(b"no image %d" % number)
    assert make(max_failure_rate=0.05).run()["state"] == "success"
    for number in range(2, 5):
        (images / f"bad-{number}.png").write_bytes(b"no image %d" % number)
    with pytest.raises(TooManyFailures, match="3 of 3"):
        make(max_failure_rate=0.05).run()


def test_clearing_publish_run_after_its_staging_was_pruned_changes_nothing(make: MakeRunner) -> None:
    one = make()
    request, shards = one.plan()
    for shard in shards:
        road.predict_shard(shard, one.settings)
    road.publish_run(request, one.settings)
    before = one.rows("SELECT * FROM v_run")
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        for table in ("work_item", "shard"):
            name = table if engine.dialect.name == "sqlite" else f"afterimage.{table}"
            connection.exec_driver_sql(f"DELETE FROM {name}")
    assert road.publish_run(request, one.settings)["predicted"] == 60
    assert road.close_run(request, one.settings) is None
    assert one.rows("SELECT * FROM v_run") == before


def test_a_run_that_fails_a_second_time_says_what_is_open_now(make: MakeRunner) -> None:
    one = make(shard_seconds=0.01)
    request, (shard,) = one.plan(limit=40)
    first = road.close_run(request, one.settings)
    assert first is not None
    assert first["open"] == 40
    road.predict_shard(shard, one.settings)
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        name = "work_item" if engine.dialect.name == "sqlite" else "afterimage.work_item"
        connection.exec_driver_sql(f"UPDATE {name} SET outcome = NULL WHERE key < '00010'")
    second = road.close_run(request, one.settings)
    assert second is not None
    assert (second["open"], second["predicted"]) == (10, 30)
    assert one.rows("SELECT open, predicted FROM v_run") == [{"open": 10, "predicted": 30}]


def test_a_run_that_was_resumed_ends_when_it_ended(make: MakeRunner) -> None:
    one = make()
    request, shards = one.plan()
    road.close_run(request, one.settings)
    for shard in shards:
        road.predict_shard(shard, one.settings)
    road.publish_run(request, one.settings)
    row = one.rows("SELECT finished_at FROM v_run")[0]
    last = one.rows("SELECT max(predicted_at) AS last FROM v_prediction")[0]
    assert str(row["finished_at"]) >= str(last["last"])


def test_the_current_model_changes_only_after_a_run_over_everything(make: MakeRunner, tmp_path: Path) -> None:
    def current() -> set[str]:
        return {row["model_id"] for row in make().rows("SELECT DISTINCT model_id FROM v_current_prediction")}

    first = make()
    model_a = first.run()["model_id"]
    other = str(write_small_bundle(tmp_path / "other", seed=3))
    make(model=other).run(limit=3)
    assert current() == {model_a}
    from datetime import UTC, datetime

    make(model=other).run(Window(start=datetime(2000, 1, 1, tzinfo=UTC)))
    assert current() == {model_a}
    model_b = make(model=other).run()["model_id"]
    assert current() == {model_b}


def test_publishing_an_older_run_again_does_not_bring_its_model_back(make: MakeRunner, tmp_path: Path) -> None:
    one = make()
    request, shards = one.plan()
    for shard in shards:
        road.predict_shard(shard, one.settings)
    road.publish_run(request, one.settings)
    newer = make(model=str(write_small_bundle(tmp_path / "other", seed=3))).run()
    road.publish_run(request, one.settings)
    current = one.rows("SELECT DISTINCT model_id FROM v_current_prediction")
    assert [row["model_id"] for row in current] == [newer["model_id"]]


def test_publish_run_needs_no_bundle_and_names_the_frozen_model(make: MakeRunner, tmp_path: Path) -> None:
    one = make()
    request, shards = one.plan()
    for shard in shards:
        road.predict_shard(shard, one.settings)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert road.publish_run(request, one.settings)["model_id"] == shards[0].model_id


def test_the_teardown_of_a_dry_run_or_of_a_run_that_never_listed_finds_nothing_to_close(make: MakeRunner) -> None:
    assert road.close_run(make().request(), make().settings) is None


def test_a_listing_that_fails_closes_the_run(make: MakeRunner, tmp_path: Path) -> None:
    from tasks.errors import ConfigurationError

    with pytest.raises(ConfigurationError):
        make(images=str(tmp_path / "nowhere")).run()
    assert [row["state"] for row in make().rows("SELECT state FROM v_run")] == ["failed"]


def test_the_quarantine_forgets_what_is_gone_and_what_was_mended(make: MakeRunner, images: Path) -> None:
    (images / "gone.png").write_bytes(b"no image")
    good = (images / "00003.png").stat()
    make().run()
    whole = (images / "00003.png").read_bytes()
    (images / "00003.png").write_bytes(whole[:100])
    make().run()
    assert len(make().rows("SELECT * FROM v_failure")) == 2
    (images / "gone.png").unlink()
    (images / "00003.png").write_bytes(whole)
    import os

    os.utime(images / "00003.png", ns=(good.st_atime_ns, good.st_mtime_ns))  # the etag of the good bytes is back
    assert outcomes(make().run()) == {"cached": 60}
    assert make().rows("SELECT * FROM v_failure") == []


def test_clearing_deduplicate_does_not_double_the_limit(make: MakeRunner) -> None:
    one = make()
    request, shards = one.plan(limit=4)
    for shard in shards:
        road.predict_shard(shard, one.settings)
    assert road.deduplicate(request, one.settings) == []
    assert outcomes(road.publish_run(request, one.settings)) == {"predicted": 4, "deferred": 56}


def test_a_shard_that_gives_up_its_slot_goes_on_where_it_stopped(make: MakeRunner, images: Path) -> None:
    write_pictures(images, 40)
    request, (shard,) = make(commit_images=8).plan()
    before, attempts = 0, 0
    while True:
        found = road.predict_shard(shard, make().settings, stop_after=timedelta(0))
        attempts += 1
        closed = sum(found.values()) - found.get("open", 0)
        assert closed >= before + min(8, found.get("open", 0))
        before = closed
        if not found.get("open"):
            break
    assert attempts > 1
    counts = road.publish_run(request, make().settings)
    assert counts["predicted"] == counts["listed"] == closed
    assert counts["forward_passes"] >= counts["predicted"]


def test_a_shard_in_another_cache_is_tried_again_and_not_called_lost(make: MakeRunner, tmp_path: Path) -> None:
    one = make()
    _, (shard,) = one.plan()
    elsewhere = one.settings.model_copy(update={"database": None, "home": tmp_path / "elsewhere"})
    with pytest.raises(DatabaseUnavailable, match="same Connection"):
        road.predict_shard(shard, elsewhere)
