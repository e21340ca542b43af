"""Shards on Celery workers: one of them is killed in the middle of a run, one is told to stop, and two are twice as fast.

Airflow's metadata and the cache lie in PostgreSQL, the pictures in S3. The tests build on each other, because a farm takes
most of a minute to start.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tasks.settings import load_settings
from tasks.storage.s3 import client
from tests.celery_farm import WORKER_CORES, CeleryFarm
from tests.conftest import fresh_cache, fresh_postgres
from tests.farm_runtimes import RATE, RECORDS, WAITING, pictures_through
from tests.pictures import tinted_picture, write_small_bundle
from tests.runner import Runner, outcomes

pytestmark = [pytest.mark.redis, pytest.mark.alone]

IMAGES, SHARDS = 1200, 8
IN_SHARD = IMAGES // SHARDS
COMMIT_IMAGES, BATCH = 10, 4

# What may have been predicted behind a shard's last commit: a full commit that did not arrive, the queue before it, and
# the calls of the forward stage with the one that is being handed over.
IN_FLIGHT = COMMIT_IMAGES + (4 * WORKER_CORES + 2 * WORKER_CORES + 1) * BATCH

SHARD_SECONDS = 8.0  # of the network that waits

PIPELINES = """
[real]
images = "s3://{bucket}"
model = "{home}/model"
workers = {shards}
commit_images = {commit}

[waiting]
images = "s3://{bucket}"
model = "{home}/waiting"
workers = {shards}

[half]
images = "s3://{bucket}"
model = "{home}/waiting"
workers = {half}
"""


@pytest.fixture(scope="module")
def s3(s3_endpoint: str) -> dict[str, str]:
    """Settings that reach the S3 server."""
    return {"s3_endpoint": s3_endpoint, "s3_access_key": "test", "s3_secret_key": "test", "s3_region": "us-east-1"}


@pytest.fixture(scope="module")
def pictures(s3: dict[str, str]) -> str:
    """A bucket with different pictures in it."""
    name = f"farm-{uuid.uuid4().hex[:12]}"
    storage = client(load_settings(**s3))
    storage.create_bucket(Bucket=name)

    def put(number: int) -> None:
        storage.put_object(Bucket=name, Key=f"{number:05d}.png", Body=tinted_picture(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(IMAGES)))
    return name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> Path:
    """Two models and pipelines.toml."""
    home = tmp_path_factory.mktemp("farm")
    (home / "records").mkdir()
    write_small_bundle(home / "model", crop=64, width=96)
    write_small_bundle(home / "waiting", name=WAITING)
    table = PIPELINES.format(home=home, bucket=pictures, shards=SHARDS, half=SHARDS // 2, commit=COMMIT_IMAGES)
    (home / "pipelines.toml").write_text(table)
    return home


@pytest.fixture(scope="module")
def databases(postgres_server: str) -> Iterator[tuple[str, str]]:
    """Airflow's, and the cache with its tables."""
    with fresh_postgres(postgres_server) as metadata, fresh_cache(postgres_server) as url:
        yield make_url(metadata).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False), url


@pytest.fixture(scope="module")
def farm(home: Path, databases: tuple[str, str], s3: dict[str, str]) -> Iterator[CeleryFarm]:
    """A farm with two workers."""
    metadata, url = databases
    environment = {
        **{f"AFTERIMAGE_{name.upper()}": value for name, value in s3.items()},
        "AFTERIMAGE_DATABASE": url,
        "AFTERIMAGE_BATCH_SIZE": str(BATCH),
        RATE: str(IN_SHARD / SHARD_SECONDS),
        RECORDS: str(home / "records"),
    }
    running = CeleryFarm(home, metadata, environment)
    try:
        running.start("gpu1", "gpu2")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def cache(home: Path, databases: tuple[str, str], s3: dict[str, str], pictures: str) -> Runner:
    """The cache of the farm, for looking at rows."""
    return Runner(home / "afterimage", databases[1], s3, images=f"s3://{pictures}", model=str(home / "model"))


def run_alone(home: Path, s3: dict[str, str], pictures: str) -> Runner:
    """A run in one process, into a cache of its own."""
    settings = {**s3, "batch_size": BATCH}
    runner = Runner(
        home / "afterimage",
        f"sqlite:///{home / 'alone.db'}",
        settings,
        images=f"s3://{pictures}",
        model=str(home / "model"),
    )
    assert outcomes(runner.run()) == {"predicted": IMAGES}
    return runner


def outcomes_of(cache: Runner, run_id: str, shard: int) -> dict[str, int]:
    """{outcome: rows} of a shard, as anybody sees them who asks the cache now."""
    query = (
        "SELECT coalesce(outcome, 'open') AS outcome, count(*) AS images FROM work_item JOIN run USING (run_no, generation) "
        "WHERE run_id = :run_id AND shard = :shard GROUP BY outcome"
    )
    return {row["outcome"]: row["images"] for row in cache.rows(query, run_id=run_id, shard=shard)}


def shard_in_work(farm: CeleryFarm, cache: Runner, worker: str, dag_id: str, run_id: str) -> int:
    """Wait for a shard of this worker that has committed something and not everything."""
    found: list[int] = []

    def is_in_work() -> bool:
        shard = farm.running_on(worker, dag_id, run_id)
        if shard is None:
            return False
        while (rows := outcomes_of(cache, run_id, shard)).get("open", 0) > 0:
            if len(rows) > 1:
                found.append(shard)
                return True
            time.sleep(0.02)
        return False

    farm.wait(is_in_work, 120, f"a commit of {worker}", 0.05)
    return found[0]


def hosts(shards: list[dict[str, Any]]) -> dict[int, str]:
    """{shard: worker that ended it}."""
    return {int(shard["map_index"]): shard["hostname"] for shard in shards}


def seconds(shards: list[dict[str, Any]]) -> float:
    """From the start of the first shard to the end of the last."""
    starts, ends = ([datetime.fromisoformat(shard[name]) for shard in shards] for name in ("start_date", "end_date"))
    return (max(ends) - min(starts)).total_seconds()


def assert_same_rows(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Identical rows: key, etag, digest, model and label the same, scores within 1e-5."""
    assert found.keys() == expected.keys()
    for key, (*row, score) in expected.items():
        assert list(found[key][:-1]) == row, key
        assert found[key][-1] == pytest.approx(score, abs=1e-5), key


def test_a_killed_worker_costs_the_open_batch_of_its_shard_and_nothing_else(
    farm: CeleryFarm, cache: Runner, home: Path, s3: dict[str, str], pictures: str
) -> None:
    calm = run_alone(home, s3, pictures).predictions()
    assert len({row[3] for row in calm.values()}) > 1, "pictures of one label alone would prove little"
    farm.unpause("predict_real")
    run_id = farm.begin("predict_real")

    lost = shard_in_work(farm, cache, "gpu1", "predict_real", run_id)
    farm.kill_worker("gpu1")
    killed_at = time.monotonic()
    left = outcomes_of(cache, run_id, lost)
    kept = cache.rows("SELECT digest, predicted_at FROM prediction")
    assert left.get("predicted", 0) > 0, "the worker had committed nothing"
    assert left.get("open", 0) > 0, "the worker had nothing left to do"
    time.sleep(1)
    assert outcomes_of(cache, run_id, lost) == left, "the worker's task lives on"
    farm.start_worker("gpu1")

    def is_again() -> bool:
        shard = farm.shards("predict_real", run_id)[lost]
        return shard["try_number"] == 2 and shard["start_date"] is not None

    farm.wait(is_again, 120, "the lost shard's second try", 0.1)
    print(f"the lost shard ran again {time.monotonic() - killed_at:.1f} s after the kill")
    farm.ended("predict_real", run_id)

    shards = farm.shards("predict_real", run_id)
    assert [shard["state"] for shard in shards] == ["success"] * SHARDS
    assert {shard["executor"] for shard in shards} == {"CeleryExecutor"}
    assert [shard["try_number"] for shard in shards] == [2 if number == lost else 1 for number in range(SHARDS)]
    assert set(hosts(shards).values()) == {"gpu1", "gpu2"}
    assert_same_rows(cache.predictions(), calm)
    assert all(row in cache.rows("SELECT digest, predicted_at FROM prediction") for row in kept)
    (run,) = cache.rows("SELECT * FROM v_run WHERE run_id = :run_id", run_id=run_id)
    assert (run["state"], outcomes(run)) == ("success", {"predicted": IMAGES})
    assert IMAGES <= run["forward_passes"] <= IMAGES + IN_FLIGHT

    (number,) = cache.rows("SELECT run_no FROM run WHERE run_id = :run_id", run_id=run_id)
    assert_nothing_was_predicted_twice_but_in(lost, left, pictures_through(home / "records", number["run_no"]))


def assert_nothing_was_predicted_twice_but_in(
    lost: int, left: dict[str, int], predicted: dict[int, list[list[str]]]
) -> None:
    """The pictures that went through the network, by what each process wrote down before its forward passes."""
    assert sorted(predicted) == list(range(SHARDS))
    (before, after), others = predicted.pop(lost), predicted.values()
    assert [len(processes) for processes in others] == [1] * (SHARDS - 1)
    assert [len(set(once)) for (once,) in others] == [IN_SHARD] * (SHARDS - 1)
    assert [len(once) for (once,) in others] == [IN_SHARD] * (SHARDS - 1)
    assert len(set(before)) == len(before)
    assert sorted(set(before) | set(after)) == sorted(before + [one for one in after if one not in before])
    assert len(set(before) | set(after)) == IN_SHARD
    # The second try predicts what was open, each picture once; the first one had committed all else.
    assert len(after) == len(set(after)) == left["open"]
    twice = set(before) & set(after)
    print(f"{len(twice)} of at most {IN_FLIGHT} pictures in flight were predicted twice")
    assert len(twice) == len(before) - left["predicted"] <= IN_FLIGHT < IN_SHARD


def test_two_workers_are_nearly_twice_as_fast_as_one_and_a_warm_stop_loses_nothing(
    farm: CeleryFarm, cache: Runner
) -> None:
    """Networks that wait as for a GPU: the two processors are for the rest."""
    farm.wait_for_worker("gpu1")
    farm.unpause("predict_waiting")
    run_id = farm.begin("predict_waiting")

    def last_two_run() -> bool:
        shards = farm.shards("predict_waiting", run_id)
        return [shard["state"] for shard in shards].count("success") == SHARDS - 2 and bool(
            farm.running_on("gpu2", "predict_waiting", run_id) is not None
        )

    farm.wait(last_two_run, 120, "the last shard of gpu2", 0.1)
    last = farm.running_on("gpu2", "predict_waiting", run_id)
    stopped = farm.tell_worker_to_stop("gpu2")
    farm.ended("predict_waiting", run_id)
    assert stopped.process.wait(30) == 0
    assert stopped.members() == []
    both = farm.shards("predict_waiting", run_id)
    assert last is not None
    assert (both[last]["hostname"], both[last]["state"], both[last]["try_number"]) == ("gpu2", "success", 1)
    assert sorted(hosts(both).values()) == ["gpu1"] * (SHARDS // 2) + ["gpu2"] * (SHARDS // 2)

    farm.set_slots(1)
    farm.unpause("predict_half")
    half = farm.begin("predict_half", conf={"force": True, "limit": IMAGES // 2})
    farm.ended("predict_half", half)
    one = farm.shards("predict_half", half)
    assert set(hosts(one).values()) == {"gpu1"}
    (whole,) = cache.rows("SELECT * FROM v_run WHERE dag_id = 'predict_waiting'")
    assert outcomes(whole) == {"predicted": IMAGES}
    alone, together = IMAGES / 2 / seconds(one), IMAGES / seconds(both)
    print(f"{alone:.1f} images/s on one worker, {together:.1f} on two: {together / alone:.2f} times as fast")
    assert together / alone >= 1.8
