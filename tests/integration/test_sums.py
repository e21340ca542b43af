"""The sums that pages read are those of a count by hand, whatever became of the runs: on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tasks import road
from tasks.cache import sums
from tasks.cache.database import connect, is_sqlite, writing
from tasks.cache.erasing import Target, erase
from tasks.cache.runs import find_staging
from tasks.errors import ConfigurationError, StaleGeneration, TooManyFailures
from tests.conftest import ROOT, outer_environment
from tests.pictures import tinted_picture, write_small_bundle
from tests.runner import Runner

Make = Callable[..., Runner]

FIRST = datetime(2026, 10, 1, 12, tzinfo=UTC)
DAYS = 3
# Models that give these images more than one label.
SEEDS = (7, 1, 2)
IMAGES = 30


def write_image(folder: Path, number: int, day: int = 0, seed: int | None = None) -> None:
    """An image that was modified at noon of a day in October, or a second before midnight in UTC."""
    path = folder / f"{number:04}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tinted_picture(number if seed is None else seed))
    moment = FIRST + timedelta(days=day, hours=11, minutes=59) if number % 2 else FIRST + timedelta(days=day)
    os.utime(path, (moment.timestamp(),) * 2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        write_image(tmp_path / "images", number, number % DAYS)
    return tmp_path / "images"


def maker(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """Makes runners of the pipeline `test`; `seed` is that of the model."""

    def runner(seed: int = 0, settings: dict[str, Any] | None = None, **table: Any) -> Runner:
        model = tmp_path / f"model-{seed}"
        if not model.exists():
            write_small_bundle(model, SEEDS[seed])
        return Runner(home, database_url, settings, **{"images": str(images), "model": str(model), **table})

    return runner


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """On both databases, one after the other."""
    return maker(tmp_path, home, images, database_url)


@pytest.fixture
def make_here(tmp_path: Path, home: Path, images: Path) -> Make:
    """On SQLite: where both databases run the same statements, once is enough."""
    return maker(tmp_path, home, images, f"sqlite:///{tmp_path / 'cache.db'}")


def day(value: Any) -> date:
    return (
        datetime.fromisoformat(str(value)).astimezone(UTC).date()
        if "+" in str(value)
        else date.fromisoformat(str(value)[:10])
    )


def by_hand(runner: Runner) -> dict[str, Counter[Any]]:
    """What one finds by looking at every image of the cache with every model."""
    rows = runner.rows(
        "SELECT i.key, i.last_modified, p.model_no, p.label_index, p.score FROM image i "
        "JOIN prediction p ON p.digest = i.digest"
    )
    found: dict[str, Counter[Any]] = {"label": Counter(), "score": Counter(), "pair": Counter()}
    answers: dict[str, dict[int, int]] = {}
    for row in rows:
        found["label"][row["model_no"], day(row["last_modified"]), row["label_index"]] += 1
        found["score"][row["model_no"], day(row["last_modified"]), min(int(row["score"] * 20), 19)] += 1
        answers.setdefault(row["key"], {})[row["model_no"]] = row["label_index"]
    for labels in answers.values():
        for one in labels:
            for other in labels:
                if one != other:
                    found["pair"][one, other, labels[one], labels[other]] += 1
    return found


def summed(runner: Runner, pipeline: str = "test") -> dict[str, Counter[Any]]:
    """What the sums say; pairs are read both ways, as pages do."""
    found: dict[str, Counter[Any]] = {"label": Counter(), "score": Counter(), "pair": Counter()}
    for name, kind in (("label", "label_index"), ("score", "bin")):
        for row in runner.rows(f"SELECT * FROM {name}_count WHERE pipeline = :pipeline", pipeline=pipeline):
            assert row["images"] > 0
            found[name][row["model_no"], day(row["day"]), row[kind]] += row["images"]
    for row in runner.rows("SELECT * FROM pair_count WHERE pipeline = :pipeline", pipeline=pipeline):
        one, other, mine, its = (
            row[name] for name in ("model_no", "other_model_no", "label_index", "other_label_index")
        )
        found["pair"][one, other, mine, its] += row["images"]
        found["pair"][other, one, its, mine] += row["images"]
    return found


def total(runner: Runner, table: str = "label_count") -> int:
    return int(runner.rows(f"SELECT coalesce(sum(images), 0) AS images FROM {table}")[0]["images"])


def test_a_run_adds_up_what_came_with_it_by_day_label_and_score(make: Make) -> None:
    one = make()
    one.run()
    assert total(one) == IMAGES
    assert len({kind[1] for kind in summed(one)["label"]}) == DAYS
    assert len({kind[2] for kind in summed(one)["label"]}) > 1, "several labels, or this test shows nothing"
    assert summed(one) == by_hand(one)


def test_a_score_lies_in_one_of_twenty_parts_and_1_in_the_last(make: Make) -> None:
    one = make()
    request, shards = one.plan()
    for shard in shards:
        road.predict_shard(shard, one.settings)
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        table = "prediction" if is_sqlite(engine) else "afterimage.prediction"
        digests = [row["digest"] for row in one.rows("SELECT DISTINCT digest FROM prediction ORDER BY digest")]
        for digest, score in zip(digests, (0.0, 0.0499, 0.0501, 0.151, 0.949, 0.951, 0.999, 1.0), strict=False):
            connection.execute(
                text(f"UPDATE {table} SET score = :score WHERE digest = :digest"), {"score": score, "digest": digest}
            )
    road.publish_run(request, one.settings)
    counted = Counter[int]()
    for (_, _, part), images in summed(one)["score"].items():
        counted[part] += images
    assert counted == {0: 2, 1: 1, 3: 1, 18: 1, 19: 3, 5: IMAGES - 8}
    assert summed(one) == by_hand(one)


def test_a_run_that_finds_nothing_new_writes_nothing(make_here: Make) -> None:
    one = make_here()
    one.run()
    before = one.rows("SELECT * FROM label_count")
    one.run()
    assert one.rows("SELECT * FROM label_count") == before


def test_publishing_twice_counts_once(make: Make, images: Path) -> None:
    one = make()
    request, shards = one.plan()
    for shard in shards:
        road.predict_shard(shard, one.settings)
    for _ in range(2):
        road.publish_run(request, one.settings)
    assert summed(one) == by_hand(one)
    # An image that is overwritten later is not the earlier run's, also where that is published again.
    before = summed(one)
    write_image(images, 0, day=9, seed=900)
    one.run()
    after = summed(one)
    road.publish_run(request, one.settings)
    assert summed(one) == after
    assert sum((after["label"] - before["label"]).values()) == 1


def test_twins_count_once_for_each_image(make_here: Make, images: Path) -> None:
    for number in (90, 91):
        write_image(images, number, day=1, seed=0)
    one = make_here()
    counts = one.run()
    assert counts["reused"] == 2
    assert total(one) == IMAGES + 2
    write_image(images, 92, day=2, seed=0)
    assert make_here().run()["reused"] == 1
    assert total(one) == IMAGES + 3
    assert summed(one) == by_hand(one)


def test_an_overwritten_image_counts_again_on_its_new_day(make_here: Make, images: Path) -> None:
    one = make_here()
    one.run()
    write_image(images, 3, day=20, seed=300)
    one.run()
    assert total(one) == IMAGES + 1
    late = date(2026, 10, 21)
    assert {kind: images for kind, images in summed(one)["score"].items() if kind[1] == late} == {
        kind: images for kind, images in by_hand(one)["score"].items() if kind[1] == late
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_pair_of_models_counts_each_image_once_whichever_came_later(
    make: Make, images: Path, order: tuple[int, int]
) -> None:
    for seed in order:
        make(seed).run()
    for number in range(40, 45):
        write_image(images, number)
    for seed in reversed(order):  # New images meet the other model first.
        make(seed).run()
    one = make()
    assert total(one, "pair_count") == IMAGES + 5
    assert summed(one) == by_hand(one)


def test_three_models_have_three_pairs(make_here: Make) -> None:
    for seed in range(3):
        make_here(seed).run()
    assert total(make_here(), "pair_count") == 3 * IMAGES
    assert summed(make_here()) == by_hand(make_here())


def test_a_run_that_fails_by_its_failures_counts_what_it_predicted(make: Make, images: Path) -> None:
    for number in range(5):
        (images / f"bad-{number}.png").write_bytes(b"no image %d" % number)
    one = make(max_failure_rate=0.05)
    with pytest.raises(TooManyFailures):
        one.run()
    assert total(one) == IMAGES
    assert summed(one) == by_hand(one)


def killed_half_way(make: Make) -> tuple[Runner, Any]:
    """A run of which one of two shards is done, as after a kill: nothing closed it."""
    one = make(workers=2, commit_images=5)
    request, shards = one.plan()
    assert len(shards) == 2
    road.predict_shard(shards[0], one.settings)
    return one, request


def test_the_teardown_counts_what_was_predicted_and_the_cleared_run_the_rest(make: Make) -> None:
    one = make(workers=2)
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    road.close_run(request, one.settings)
    assert total(one) == shards[0].count
    assert summed(one) == by_hand(one)
    road.predict_shard(shards[1], one.settings)
    road.publish_run(request, one.settings)
    assert total(one) == IMAGES
    assert summed(one) == by_hand(one)


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed by its teardown", "killed"])
def test_a_run_that_begins_anew_keeps_what_came_with_its_first_attempt(make: Make, is_closed: bool) -> None:
    one, request = killed_half_way(make)
    if is_closed:
        road.close_run(request, one.settings)
    for _ in range(2):
        road.run(request, one.settings)
        assert total(one) == IMAGES
        assert summed(one) == by_hand(one)


def test_an_attempt_that_is_behind_counts_nothing(make_here: Make) -> None:
    one, request = killed_half_way(make_here)
    engine = connect(one.settings.database_url)
    older = find_staging(engine, request.key)
    road.list_images(request, one.settings)
    before = summed(one)
    with pytest.raises(StaleGeneration):
        sums.count_run(engine, older)
    assert summed(one) == before


def test_force_counts_what_is_new_and_nothing_twice(make: Make, images: Path) -> None:
    one = make()
    one.run(force=True)
    assert total(one) == IMAGES, "the model is new, so all images are"
    write_image(images, 70)
    one.run(force=True)
    assert total(one) == IMAGES + 1
    assert summed(one) == by_hand(one)


def test_force_with_another_model_counts_all(make_here: Make) -> None:
    make_here(0).run()
    request = make_here(1).request(force=True)
    road.run(request, make_here(1).settings)
    road.publish_run(request, make_here(1).settings)
    assert summed(make_here()) == by_hand(make_here())


def test_pruned_staging_leaves_the_sums(make_here: Make) -> None:
    one = make_here(workers=2)
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    road.close_run(request, one.settings)
    before = summed(one)
    engine = connect(one.settings.database_url)
    with writing(engine) as connection:
        name = "work_item" if is_sqlite(engine) else "afterimage.work_item"
        connection.exec_driver_sql(f"DELETE FROM {name}")
    road.close_run(request, one.settings)
    assert summed(one) == before


def test_dry_runs_and_runs_of_no_pipeline_leave_nothing(make_here: Make) -> None:
    make_here().run(dry_run=True)
    assert total(make_here()) == 0
    one = make_here()
    road.run(replace(one.request(), name=None), one.settings)
    assert total(one) == 0


def test_sums_are_added_up_anew_from_the_images(make: Make, images: Path) -> None:
    make(0).run()
    make(1).run()
    write_image(images, 80, day=1)
    make(1).run()
    one = make()
    wanted = summed(one)
    forget(one)
    engine = connect(one.settings.database_url)
    assert sums.rebuild_sums(engine, "test") == 2 * IMAGES + 1
    assert summed(one) == wanted == by_hand(one)
    assert sums.rebuild_sums(engine, "test") == 2 * IMAGES + 1, "again: in place of what was there"
    assert summed(one) == wanted
    write_image(images, 81, day=2)
    make(1).run()
    assert summed(one) == by_hand(one)


def test_adding_up_anew_leaves_a_run_that_goes_on_its_images(make: Make, images: Path) -> None:
    make().run()
    for number in range(50, 60):
        write_image(images, number)
    one = make(workers=2)
    request, shards = one.plan()
    road.predict_shard(shards[0], one.settings)
    road.close_run(request, one.settings)
    sums.rebuild_sums(connect(one.settings.database_url), "test")
    assert summed(one) == by_hand(one)
    road.predict_shard(shards[1], one.settings)
    road.publish_run(request, one.settings)
    assert total(one) == IMAGES + 10
    assert summed(one) == by_hand(one)


def test_there_is_nothing_to_add_up_before_a_pipeline_has_run(make_here: Make) -> None:
    with pytest.raises(ConfigurationError, match="no successful run"):
        sums.rebuild_sums(road.open_cache(make_here().settings), "test")


def test_erasing_leaves_the_sums(make_here: Make) -> None:
    one = make_here()
    one.run()
    erase(connect(one.settings.database_url), Target(key="0003.png"), block=True, dry_run=False)
    assert total(one) == IMAGES


def test_the_command_adds_up_anew(make_here: Make) -> None:
    one = make_here()
    one.run()
    forget(one)
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "sums", "test", "--database", one.settings.database_url, "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=outer_environment(),
    )
    assert done.stdout == f'{{"images": {IMAGES}}}\n'
    assert summed(one) == by_hand(one)


def forget(runner: Runner) -> None:
    """As a cache that is older than the sums."""
    engine = connect(runner.settings.database_url)
    with writing(engine) as connection:
        for table in ("label_count", "score_count", "pair_count"):
            connection.exec_driver_sql(f"DELETE FROM {table if is_sqlite(engine) else f'afterimage.{table}'}")
