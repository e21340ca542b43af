"""Many at once: shards that commit the same digests, and a listing that must not grow with the bucket."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from tasks import road
from tasks.cache import bulk
from tasks.cache.commits import PREDICTION, Scope, commit, first_insert_wins, prediction_row
from tasks.cache.database import connect, reading, repeated, writing
from tasks.cache.listed import stage_page
from tasks.cache.models import register_model
from tasks.cache.outcome import Finished, Progress, Scored
from tasks.cache.runs import RunKey, RunStart, Staging, open_run
from tasks.cache.schema import prediction
from tasks.cache.staging import assign_shards
from tasks.deduplication import deduplicate
from tasks.listing import KeyFilter, Page, list_pages
from tasks.location import Location
from tasks.storage.base import PAGE_OBJECTS, ImageObject
from tasks.storage.local import LocalStore
from tasks.window import EVERYTHING
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
PROGRESS = Progress(0, 0, 0.0, {}, "cpu")


def image(number: int) -> ImageObject:
    return ImageObject(f"{number:06d}.png", f"etag-{number}", 1, MOMENT)


def staged(url: str, run_id: str, count: int) -> tuple[Staging, int]:
    engine = connect(url)
    staging = open_run(engine, RunStart(RunKey("test", run_id), "manual", None, "s3://b", "", EVERYTHING, False, {}))
    stage_page(engine, staging, Page([image(number) for number in range(count)], 0))
    with writing(engine) as connection:
        model_no = register_model(connection, "m" * 64, "m", "1", {})
        assign_shards(connection, staging, count, 1, 1)
    return staging, model_no


def finished(number: int) -> Finished:
    scored = Scored(0, "cat", 0.9, 0.8, 0.1, ())
    return Finished(image(number).key, image(number), number.to_bytes(32, "big"), scored=scored)


def test_runs_that_commit_the_same_digests_in_opposite_order_never_deadlock(database_url: str) -> None:
    count, rounds = 400, 10
    won: dict[str, list[str]] = {}
    errors: list[BaseException] = []

    def work(run_id: str, backwards: bool) -> None:
        try:
            staging, model_no = staged(database_url, run_id, count)
            barrier.wait()
            engine, scope = connect(database_url), Scope(staging, 0, model_no, "decoder", False)
            numbers = list(range(count))[:: -1 if backwards else 1]
            size = count // rounds
            for start in range(0, count, size):
                done = commit(engine, scope, [finished(number) for number in numbers[start : start + size]], PROGRESS)
                won.setdefault(run_id, []).extend(key for key, outcome in done.items() if outcome == "predicted")
        except BaseException as error:
            errors.append(error)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name, name == "b")) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(won.get("a", []) + won.get("b", [])) == [image(number).key for number in range(count)]


def test_two_who_write_the_same_rows_in_opposite_orders_wait_and_do_not_deadlock(postgres_url: str) -> None:
    """commit() would be repeated after a deadlock, and nobody would notice. So the rows are given to the database without it."""
    count, rounds = 2_000, 5
    staging, model_no = staged(postgres_url, "a", 1)
    scope, barrier = Scope(staging, 0, model_no, "decoder", False), threading.Barrier(2)
    scored = Scored(0, "cat", 0.9, 0.8, 0.1, ())
    digests = [sha256(str(number).encode()).digest() for number in range(rounds * count)]
    rows = [prediction_row(scope, digest, scored, MOMENT) for digest in digests]

    def work(backwards: bool) -> None:
        engine = connect(postgres_url)
        for number in range(rounds):
            same = rows[number * count : (number + 1) * count]
            barrier.wait(60)
            with writing(engine) as connection:
                bulk.write(connection, prediction, PREDICTION, same[:: -1 if backwards else 1], first_insert_wins)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, backwards) for backwards in (False, True)]:
            done.result(120)
    with reading(connect(postgres_url)) as connection:
        assert connection.execute(select(func.count()).select_from(prediction)).scalar_one() == rounds * count


def test_a_ghost_and_its_retry_commit_each_row_once(database_url: str) -> None:
    staging, model_no = staged(database_url, "ghost", 10)
    engine, scope = connect(database_url), Scope(staging, 0, model_no, "decoder", False)
    items = [finished(number) for number in range(10)]
    assert set(commit(engine, scope, items, PROGRESS).values()) == {"predicted"}
    assert commit(engine, scope, items, PROGRESS) == {}


def test_shards_side_by_side_give_the_rows_of_shards_one_after_the_other(
    home: Path, tmp_path: Path, database_url: str
) -> None:
    write_pictures(tmp_path / "images", 80)
    model = str(write_small_bundle(tmp_path / "model"))
    runner = Runner(home, database_url, images=str(tmp_path / "images"), model=model, commit_images=5)
    calm = Runner(home, f"sqlite:///{tmp_path / 'calm.db'}", images=str(tmp_path / "images"), model=model)
    calm.run()

    first, second = runner.request(), runner.request()
    plans = []
    for request in (first, second):
        road.list_images(request, runner.settings)
        plans += road.deduplicate(request, runner.settings)
    threads = [threading.Thread(target=road.predict_shard, args=(plan, runner.settings)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    counts = [road.publish_run(request, runner.settings) for request in (first, second)]
    assert sum(count["predicted"] for count in counts) == 80
    assert sum(count["reused"] for count in counts) == 80
    assert runner.predictions() == calm.predictions()


class Endless:
    """A store that makes up as many objects as are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def pages(self, prefix: str) -> Iterator[list[ImageObject]]:
        for start in range(0, self.count, PAGE_OBJECTS):
            yield [image(number) for number in range(start, min(start + PAGE_OBJECTS, self.count))]

    def read(self, key: str, etag: str | None) -> object:
        raise AssertionError("nothing is read while listing")

    def sign(self, key: str, seconds: int) -> str:
        raise AssertionError("nothing is signed while listing")


@pytest.mark.parametrize("pages", [20])
def test_memory_while_listing_does_not_grow_with_the_bucket(database_url: str, pages: int) -> None:
    def peak(run_id: str, count: int) -> int:
        engine = connect(database_url)
        start = RunStart(RunKey("test", run_id), "manual", None, "s3://b", "", EVERYTHING, False, {})
        staging = open_run(engine, start)
        tracemalloc.start()
        location = Location("s3", "b", "")
        for page in list_pages(Endless(count), location, EVERYTHING, KeyFilter(("*.png",), ())):  # type: ignore[arg-type]
            stage_page(engine, staging, page)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak("warm-up", PAGE_OBJECTS)
    small, large = peak("small", 2 * PAGE_OBJECTS), peak("large", pages * PAGE_OBJECTS)
    assert large < 1.5 * small, f"{small:,} bytes for 2 pages, {large:,} for {pages}"


def test_memory_while_listing_does_not_grow_with_a_folder(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06d}.png").touch()
        tracemalloc.start()
        assert sum(len(page) for page in LocalStore(str(folder)).pages("")) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(2 * PAGE_OBJECTS), peak(20 * PAGE_OBJECTS)
    assert large < 1.5 * small, f"{small:,} bytes for 2 pages, {large:,} for 20"


def test_rows_of_a_run_are_those_that_were_listed(database_url: str) -> None:
    staged(database_url, "listed", 2500)
    runner = Runner(Path("unused"), database_url, images="s3://b/", model="unused")
    assert runner.rows("SELECT listed FROM v_run") == [{"listed": 2500}]
    assert runner.rows("SELECT count(*) AS rows FROM work_item") == [{"rows": 2500}]


def test_the_victim_of_a_deadlock_is_run_again(empty_postgres_url: str) -> None:
    """Two transactions take two rows in opposite order; at the first attempt both hold one of them."""
    engine = connect(empty_postgres_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counted (n integer PRIMARY KEY, times integer)"))
        connection.execute(text("INSERT INTO counted VALUES (1, 0), (2, 0)"))
    both_hold_one, attempts = threading.Barrier(2), []
    add = text("UPDATE counted SET times = times + 1 WHERE n = :n")

    @repeated
    def count(order: tuple[int, int]) -> None:
        first = order not in attempts
        attempts.append(order)
        with writing(engine) as connection:
            connection.execute(add, {"n": order[0]})
            if first:
                both_hold_one.wait(30)
            connection.execute(add, {"n": order[1]})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(count, [(1, 2), (2, 1)]))
    assert len(attempts) == 3
    with reading(engine) as connection:
        assert connection.execute(text("SELECT times FROM counted")).scalars().all() == [2, 2]


def test_the_victim_of_a_serialization_failure_is_run_again(empty_postgres_url: str) -> None:
    """Somebody else changes a row between its reading and its writing."""
    engine = connect(empty_postgres_url)
    add = text("UPDATE counted SET times = times + 1")
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counted (times integer)"))
        connection.execute(text("INSERT INTO counted VALUES (0)"))
    attempts: list[int] = []

    @repeated
    def count() -> None:
        with writing(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
            attempts.append(connection.execute(text("SELECT times FROM counted")).scalar_one())
            if len(attempts) == 1:
                with writing(engine) as other:
                    other.execute(add)
            connection.execute(add)

    count()
    assert attempts == [0, 1]
    with reading(engine) as connection:
        assert connection.execute(text("SELECT times FROM counted")).scalar_one() == 2


def test_deduplicate_and_commit_repeat_themselves() -> None:
    assert all(hasattr(function, "__wrapped__") for function in (commit, deduplicate))
