"""The rules of the road, each on SQLite and on PostgreSQL: what every image ends as, and what a second run costs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import deduplication, road
from tasks.cache import commits
from tasks.cache.database import connect, writing
from tasks.errors import InvariantViolation, ModelChanged, StagingLost, StaleGeneration, TooManyFailures
from tasks.inference import shard
from tasks.plan import ShardDescriptor
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tasks.window import Window
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

TABLES = ("source", "model", "pipeline", "image", "prediction", "failure")

MakeRunner = Callable[..., Runner]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_pictures(folder, 12)
    return folder


@pytest.fixture
def runner(tmp_path: Path, home: Path, images: Path, database_url: str) -> MakeRunner:
    """Makes runners over one folder, one model and one cache."""
    model = write_small_bundle(tmp_path / "model")

    def make(**changes: Any) -> Runner:
        table = {"images": str(images), "model": str(model), **changes}
        return Runner(home, database_url, **table)

    return make


def rows_of_everything(runner: Runner) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(tuple(row.values()) for row in runner.rows(f"SELECT * FROM {table}")) for table in TABLES}


def test_a_second_run_reads_nothing_predicts_nothing_and_changes_no_row(runner: MakeRunner) -> None:
    first = runner().run()
    assert outcomes(first) == {"predicted": 12}
    assert (first["reads"], first["forward_passes"]) == (12, 12)
    before = rows_of_everything(runner())
    second = runner().run()
    assert outcomes(second) == {"cached": 12}
    assert (second["reads"], second["forward_passes"]) == (0, 0)
    assert rows_of_everything(runner()) == before


def test_the_same_bytes_under_a_new_key_are_reused(runner: MakeRunner, images: Path) -> None:
    runner().run()
    for number in range(5):
        (images / f"copy-{number}.png").write_bytes(picture(number))
    counts = runner().run()
    assert outcomes(counts) == {"cached": 12, "reused": 5}
    assert counts["forward_passes"] == 0
    assert len(runner().predictions()) == 17


def test_twins_in_one_run_share_one_forward_pass(runner: MakeRunner, images: Path) -> None:
    for number in range(40):
        (images / f"twin-{number:02d}.png").write_bytes(picture(number % 4))
    counts = runner(commit_images=7).run()
    assert outcomes(counts) == {"predicted": 12, "reused": 40}
    assert counts["forward_passes"] == 12


def test_twins_of_a_damaged_file_fail_with_it(runner: MakeRunner, images: Path) -> None:
    for number in range(3):
        (images / f"damaged-{number}.png").write_bytes(picture(1)[:200])
    counts = runner().run()
    assert outcomes(counts) == {"predicted": 12, "failed": 3}
    assert {row["reason"] for row in runner().rows("SELECT reason FROM v_failure")} == {"truncated"}
    assert outcomes(runner().run()) == {"cached": 12, "known_bad": 3}


def test_an_overwritten_object_is_predicted_again(runner: MakeRunner, images: Path) -> None:
    runner().run()
    before = runner().predictions()
    (images / "00003.png").write_bytes(picture(99))
    assert outcomes(runner().run()) == {"cached": 11, "predicted": 1}
    after = runner().predictions()
    assert [key for key in before if before[key] != after[key]] == ["00003.png"]


def test_an_object_overwritten_after_the_listing_is_stored_as_it_was_read(
    runner: MakeRunner, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At once, as S3 does it: another thread may be reading this very file.
    (images / "new").write_bytes(picture(99))
    at_first_read(monkeypatch, lambda: (images / "new").replace(images / "00003.png"))
    assert outcomes(runner().run()) == {"predicted": 12}
    monkeypatch.undo()
    assert outcomes(runner().run()) == {"cached": 12}


def test_an_object_deleted_after_the_listing_vanished(
    runner: MakeRunner, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_first_read(monkeypatch, (images / "00005.png").unlink)
    assert outcomes(runner().run()) == {"predicted": 11, "vanished": 1}


def at_first_read(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Something happens to the folder after it was listed and before its first object is read."""
    read, done, first = LocalStore.read, [], threading.Lock()

    def reading(self: LocalStore, key: str, etag: str | None) -> Blob:
        with first:  # The other readers wait until it has happened.
            if not done:
                done.append(happen())
        return read(self, key, etag)

    monkeypatch.setattr(LocalStore, "read", reading)


def test_deleted_objects_are_marked_and_come_back(runner: MakeRunner, images: Path) -> None:
    runner().run()
    (images / "00005.png").unlink()
    runner().run()
    marked = runner().rows("SELECT key FROM v_prediction WHERE deleted_at IS NOT NULL")
    assert marked == [{"key": "00005.png"}]
    (images / "00005.png").write_bytes(picture(5))
    assert outcomes(runner().run()) == {"cached": 11, "reused": 1}
    assert runner().rows("SELECT key FROM v_prediction WHERE deleted_at IS NOT NULL") == []


def test_a_narrower_filter_or_a_window_marks_nothing_as_deleted(runner: MakeRunner) -> None:
    runner().run()
    runner(exclude=("00005*",)).run()
    runner().run(Window(start=datetime.now(UTC) + timedelta(days=1)))
    assert runner().rows("SELECT key FROM v_prediction WHERE deleted_at IS NOT NULL") == []


def test_a_new_model_predicts_again_and_both_stand_side_by_side(runner: MakeRunner, tmp_path: Path) -> None:
    runner().run()
    second = runner(model=str(write_small_bundle(tmp_path / "second", seed=1)))
    assert outcomes(second.run()) == {"predicted": 12}
    per_model = second.rows("SELECT model_id, count(*) AS images FROM v_prediction GROUP BY model_id")
    assert [row["images"] for row in per_model] == [12, 12]
    current = second.rows("SELECT DISTINCT model_id FROM v_current_prediction WHERE pipeline = 'test'")
    assert len(current) == 1
    assert outcomes(runner().run()) == {"cached": 12}


def test_force_predicts_each_digest_once_and_stamps_the_run(runner: MakeRunner, images: Path) -> None:
    (images / "twin.png").write_bytes(picture(0))
    (images / "damaged.png").write_bytes(b"no image")
    runner().run()
    forced = runner().run(force=True)
    assert outcomes(forced) == {"predicted": 12, "reused": 1, "failed": 1}
    assert forced["forward_passes"] == 12
    stamped = runner().rows("SELECT DISTINCT run_id FROM v_prediction")
    assert [row["run_id"] for row in stamped] == [forced["run_id"]]


def test_limit_defers_the_rest_to_the_next_run(runner: MakeRunner) -> None:
    assert outcomes(runner().run(limit=5)) == {"predicted": 5, "deferred": 7}
    assert outcomes(runner().run(limit=5)) == {"cached": 5, "predicted": 5, "deferred": 2}
    assert outcomes(runner().run(limit=5)) == {"cached": 10, "predicted": 2}


def test_a_dry_run_leaves_nothing_behind(runner: MakeRunner) -> None:
    counts = runner().run(dry_run=True)
    assert counts["state"] == "dry_run"
    assert outcomes(counts) == {"open": 12}
    for table in ("run", "work_item", "shard", "prediction", "image"):
        assert runner().rows(f"SELECT * FROM {table}") == [], table


def test_a_dry_run_forgets_no_failure(runner: MakeRunner, images: Path) -> None:
    good, path = picture(1), images / "00001.png"
    state = path.stat()
    runner().run()
    path.write_bytes(good[:100])
    assert outcomes(runner().run())["failed"] == 1
    path.write_bytes(good)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert outcomes(runner().run(dry_run=True)) == {"cached": 12}
    assert len(runner().rows("SELECT * FROM failure")) == 1
    assert outcomes(runner().run()) == {"cached": 12}
    assert runner().rows("SELECT * FROM failure") == []


def test_a_window_is_half_open_on_last_modified(runner: MakeRunner, images: Path) -> None:
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    for number, key in enumerate(sorted(path.name for path in images.iterdir())):
        moment = (midnight + timedelta(hours=8 * number)).timestamp()
        os.utime(images / key, (moment, moment))
    counts = runner().run(Window(midnight, midnight + timedelta(days=1)))
    assert (counts["listed"], outcomes(counts)) == (3, {"predicted": 3})
    assert sorted(runner().predictions()) == ["00000.png", "00001.png", "00002.png"]


def test_a_date_template_lists_the_days_of_the_window(runner: MakeRunner, images: Path) -> None:
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        write_pictures(images / "raw" / day, 2, start=int(day[-2:]) * 10)
    templated = runner(images=f"{images}/raw/{{{{ ds }}}}/")
    counts = templated.run(Window(datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)))
    assert (counts["listed"], outcomes(counts)) == (2, {"predicted": 2})
    everything = templated.run()
    assert (everything["listed"], outcomes(everything)) == (6, {"cached": 2, "predicted": 4})


def test_two_pipelines_over_one_bucket_share_its_images(
    tmp_path: Path, home: Path, database_url: str, bucket: str, s3_settings: dict[str, str]
) -> None:
    from tasks.settings import load_settings
    from tasks.storage.s3 import client

    s3 = client(load_settings(**s3_settings))
    for number in range(4):
        s3.put_object(Bucket=bucket, Key=f"raw/{number}.png", Body=picture(number))
    model = str(write_small_bundle(tmp_path / "model"))
    everything, part = f"s3://{bucket}/", f"s3://{bucket}/raw/"
    first = Runner(home, database_url, s3_settings, name="all", images=everything, model=model)
    second = Runner(home, database_url, s3_settings, name="part", images=part, model=model)
    assert outcomes(first.run()) == {"predicted": 4}
    assert outcomes(second.run()) == {"cached": 4}
    assert len(first.rows("SELECT * FROM source")) == 1


def test_ignored_objects_are_counted_apart(runner: MakeRunner, images: Path) -> None:
    (images / "labels.csv").write_text("key,label\n")
    counts = runner().run()
    assert (counts["listed"], counts["ignored"]) == (12, 1)


def test_one_bad_image_never_fails_the_run_and_too_many_fail_it_after_the_commit(
    runner: MakeRunner, images: Path
) -> None:
    (images / "damaged.png").write_bytes(picture(1)[:100])
    assert runner(max_failure_rate=0.1).run()["state"] == "success"
    for number in range(5):
        (images / f"damaged-{number}.png").write_bytes(b"no image %d" % number)
    with pytest.raises(TooManyFailures, match="5 of 5"):
        runner(max_failure_rate=0.1).run()
    last = runner().rows("SELECT state, failed, message FROM v_run ORDER BY started_at DESC")[0]
    assert (last["state"], last["failed"]) == ("failed", 5)
    assert outcomes(runner(max_failure_rate=0.1).run()) == {"cached": 12, "known_bad": 6}


def test_a_new_upload_clears_the_quarantine(runner: MakeRunner, images: Path) -> None:
    (images / "00003.png").write_bytes(picture(3)[:100])
    assert outcomes(runner().run()) == {"predicted": 11, "failed": 1}
    (images / "00003.png").write_bytes(picture(3))
    assert outcomes(runner().run()) == {"cached": 11, "predicted": 1}
    assert runner().rows("SELECT * FROM v_failure") == []


def test_another_decoder_version_tries_the_quarantine_again(
    runner: MakeRunner, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "damaged.png").write_bytes(b"no image")
    runner().run()
    monkeypatch.setattr("tasks.inference.decoding.policies.decoder_version", lambda _policy: "exact-1 pillow-99")
    assert outcomes(runner().run()) == {"cached": 12, "failed": 1}
    assert outcomes(runner().run()) == {"cached": 12, "known_bad": 1}
    assert [row["attempts"] for row in runner().rows("SELECT attempts FROM v_failure")] == [2]


def test_work_is_divided_into_shards_by_the_measured_rate(runner: MakeRunner) -> None:
    one = runner()
    one.run()
    _measured(one, cpu=2.0)
    divided = runner(shard_seconds=2.0, max_shards=64)
    request = divided.request(force=True)
    road.list_images(request, divided.settings)
    shards = road.deduplicate(request, divided.settings)
    assert [shard.count for shard in shards] == [4, 4, 4]
    assert [shard.label for shard in shards][:1] == ["shard 1/3 · 4 images"]


def test_without_a_measured_rate_shards_are_of_a_fixed_size(
    runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deduplication.DEFAULT_SHARD_IMAGES == 20_000
    monkeypatch.setattr(deduplication, "DEFAULT_SHARD_IMAGES", 5)
    _, shards = runner().plan()
    assert [part.count for part in shards] == [4, 4, 4]


def _measured(runner: Runner, **rates: float) -> None:
    """As if so many images a second had been measured on each device."""
    engine = connect(runner.settings.database_url)
    with writing(engine) as connection:
        for device, value in rates.items():
            connection.exec_driver_sql(
                f"INSERT INTO {_table(engine, 'rate')} (model_no, device, images_per_second, measured_at) "
                f"SELECT model_no, '{device}', {value}, max(started_at) FROM {_table(engine, 'run')} GROUP BY model_no"
            )


def test_a_run_measures_its_rate_for_model_and_device(runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner().run()
    assert runner().rows("SELECT * FROM rate") == []  # too few images to tell
    monkeypatch.setattr(commits, "MEASURED_READS", 10)
    runner().run(force=True)
    (row,) = runner().rows("SELECT device, images_per_second, m.model_id FROM rate JOIN model m USING (model_no)")
    (newest,) = runner().rows("SELECT model_id FROM v_run ORDER BY started_at DESC LIMIT 1")
    assert (row["device"], row["model_id"]) == ("cpu", newest["model_id"])
    assert row["images_per_second"] > 0


def test_shards_suit_the_slowest_device_of_the_newest_run(runner: MakeRunner) -> None:
    runner().run()
    _measured(runner(), tortoise=0.1, cpu=3.0)
    request, shards = runner(shard_seconds=2.0).plan(force=True)
    assert [shard.count for shard in shards] == [6, 6]  # nothing of that run was done by the tortoise
    assert road.expectation(request, runner().settings)["expected_seconds"] == 4.0


def _table(engine: Any, name: str) -> str:
    return name if engine.dialect.name == "sqlite" else f"afterimage.{name}"


def test_max_shards_bounds_their_number(runner: MakeRunner) -> None:
    runner().run()
    _measured(runner(), cpu=1.0)
    divided = runner(shard_seconds=1.0, max_shards=5)
    request = divided.request(force=True)
    road.list_images(request, divided.settings)
    assert sorted(shard.count for shard in road.deduplicate(request, divided.settings)) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize(("workers", "max_shards", "counts"), [(3, 64, [4, 4, 4]), (99, 64, [1] * 12), (3, 2, [6, 6])])
def test_every_worker_gets_a_shard(runner: MakeRunner, workers: int, max_shards: int, counts: list[int]) -> None:
    _, shards = runner(workers=workers, max_shards=max_shards).plan()
    assert [shard.count for shard in shards] == counts


def test_a_worker_loads_the_model_once_for_all_its_shards(runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.models import runtimes

    opened = []
    load = runtimes.open_runtime
    monkeypatch.setattr(runtimes, "open_runtime", lambda *given: opened.append(load(*given)) or opened[-1])
    assert outcomes(runner(workers=3).run()) == {"predicted": 12}
    assert len(opened) == 1


def test_descriptors_are_small_and_hold_no_keys(runner: MakeRunner) -> None:
    _, shards = runner().plan()
    text = json.dumps([shard.to_dict() for shard in shards])
    assert ShardDescriptor.from_dict(json.loads(text)[0]) == shards[0]
    assert "00003.png" not in text
    assert len(text) < 1_000


def test_clearing_list_images_raises_the_generation_and_old_commits_change_nothing(runner: MakeRunner) -> None:
    one = runner()
    request, old = one.plan()
    road.list_images(request, one.settings)
    with pytest.raises((StaleGeneration, StagingLost)):
        road.predict_shard(old[0], one.settings)
    assert one.rows("SELECT * FROM prediction") == []
    fresh = road.deduplicate(request, one.settings)
    assert fresh[0].generation == 2
    road.predict_shard(fresh[0], one.settings)
    assert outcomes(road.publish_run(request, one.settings)) == {"predicted": 12}


def test_a_commit_of_an_older_generation_is_refused_in_the_middle_of_a_shard(
    runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = runner()
    request, shards = one.plan()
    at_first_read(monkeypatch, lambda: road.list_images(request, one.settings))
    with pytest.raises(StaleGeneration):
        road.predict_shard(shards[0], one.settings)
    assert one.rows("SELECT * FROM prediction") == []


def test_clearing_a_finished_shard_or_publish_run_gives_the_stored_counts(runner: MakeRunner) -> None:
    one = runner()
    request, shards = one.plan()
    first = [road.predict_shard(shard, one.settings) for shard in shards]
    counts = road.publish_run(request, one.settings)
    assert [road.predict_shard(shard, one.settings) for shard in shards] == first
    assert road.publish_run(request, one.settings) == counts


def test_clearing_deduplicate_keeps_what_the_shards_have_done(runner: MakeRunner) -> None:
    one = runner()
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    assert road.deduplicate(request, one.settings) == []
    assert outcomes(road.publish_run(request, one.settings)) == {"predicted": 12}


def test_a_shard_whose_rows_are_gone_says_what_to_clear(runner: MakeRunner) -> None:
    one = runner()
    _, shards = one.plan()
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        connection.exec_driver_sql(f"DELETE FROM {_table(engine, 'work_item')} WHERE key = '00003.png'")
    with pytest.raises(StagingLost, match="Clear list_images"):
        road.predict_shard(shards[0], one.settings)


def test_old_staging_is_pruned_and_the_run_rows_stay(runner: MakeRunner) -> None:
    runner().run()
    runner(keep_runs_days=1e-9).run()
    assert runner().rows("SELECT count(*) AS runs FROM v_run") == [{"runs": 2}]
    assert runner().rows("SELECT count(*) AS items FROM work_item") == [{"items": 0}]


def test_a_run_that_nobody_closed_ends_as_failed_and_its_staging_is_dropped(runner: MakeRunner) -> None:
    one = runner()
    one.plan()
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE {_table(engine, 'run')} SET started_at = '2020-01-01 00:00:00'")
    one.run()
    old, new = one.rows("SELECT state, message, finished_at FROM v_run ORDER BY started_at")
    assert (old["state"], new["state"]) == ("failed", "success")
    assert "never closed" in old["message"]
    assert old["finished_at"] is not None
    assert one.rows("SELECT count(DISTINCT run_no) AS runs FROM work_item") == [{"runs": 1}]


def test_a_commit_comes_after_some_seconds_however_few_images_are_ready(
    runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, sizes = commits.commit, list[int]()

    def counted(engine: Any, scope: Any, finished: Any, progress: Any) -> dict[str, str]:
        sizes.append(len(finished))
        return commit(engine, scope, finished, progress)

    monkeypatch.setattr(commits, "commit", counted)
    runner().run(force=True)
    assert sizes == [12]
    monkeypatch.setattr(shard, "COMMIT_SECONDS", 0.0)
    runner().run(force=True)
    assert len(sizes) > 2


def test_a_shard_whose_bundle_has_changed_fails(runner: MakeRunner, tmp_path: Path) -> None:
    one = runner()
    _, shards = one.plan()
    write_small_bundle(tmp_path / "model", seed=5)
    with pytest.raises(ModelChanged, match="clear deduplicate"):
        road.predict_shard(shards[0], one.settings)


def test_a_run_with_open_rows_is_not_published_as_a_success(runner: MakeRunner) -> None:
    one = runner()
    request, _ = one.plan()
    with pytest.raises(InvariantViolation, match="12 open"):
        road.publish_run(request, one.settings)
    row = one.rows("SELECT state, open FROM v_run")[0]
    assert (row["state"], row["open"]) == ("failed", 12)


def test_the_invariant_compares_what_was_listed_with_what_the_rows_say(runner: MakeRunner) -> None:
    one = runner()
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        connection.exec_driver_sql(f"DELETE FROM {_table(engine, 'work_item')} WHERE key = '00003.png'")
    with pytest.raises(InvariantViolation, match="listed 12 != 11"):
        road.publish_run(request, one.settings)


def test_the_teardown_closes_a_run_that_failed_on_its_way(runner: MakeRunner) -> None:
    one = runner()
    request, _ = one.plan()
    closed = road.close_run(request, one.settings)
    assert closed is not None
    assert closed["open"] == 12
    assert one.rows("SELECT state, open FROM v_run") == [{"state": "failed", "open": 12}]


def test_the_teardown_leaves_a_published_run_alone(runner: MakeRunner) -> None:
    one = runner()
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    road.publish_run(request, one.settings)
    assert road.close_run(request, one.settings) is None
    assert one.rows("SELECT state FROM v_run") == [{"state": "success"}]


def test_two_runs_over_the_same_objects_leave_each_prediction_once(runner: MakeRunner) -> None:
    one = runner(commit_images=3)
    first, second = one.plan(), one.plan()
    road.predict_shard(first[1][0], one.settings)
    road.predict_shard(second[1][0], one.settings)
    assert outcomes(road.publish_run(first[0], one.settings)) == {"predicted": 12}
    overlapping = road.publish_run(second[0], one.settings)
    assert outcomes(overlapping) == {"reused": 12}
    assert overlapping["forward_passes"] == 0
    assert one.rows("SELECT count(*) AS rows FROM prediction") == [{"rows": 12}]


def test_views_give_what_docs_sql_promises(runner: MakeRunner, images: Path) -> None:
    (images / "damaged.png").write_bytes(b"no image")
    one = runner()
    counts = one.run()
    row = one.rows("SELECT * FROM v_prediction WHERE key = '00003.png'")[0]
    top_k = row["top_k"] if isinstance(row["top_k"], list) else json.loads(row["top_k"])
    assert top_k[0]["label"] == row["label"]
    assert top_k[0]["score"] == pytest.approx(row["score"])
    assert row["run_id"] == counts["run_id"]
    assert row["source"] == f"file://{images}"
    assert (row["model_name"], row["model_version"]) == ("small", "1")
    failure = one.rows("SELECT * FROM v_failure")[0]
    assert (failure["key"], failure["reason"], bool(failure["permanent"])) == ("damaged.png", "not_an_image", True)
    run = one.rows("SELECT * FROM v_run")[0]
    assert (run["listed"], run["predicted"], run["failed"], run["state"]) == (13, 12, 1, "success")
