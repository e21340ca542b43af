"""Under `airflow standalone`: a bucket announces objects in a queue, the triggerer hears of them, and they are predicted.

The cache is PostgreSQL, S3 and SQS are a server that sends the bucket's notifications itself. The tests build on each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from sqlalchemy import make_url

from tests.conftest import fresh_cache, fresh_postgres
from tests.dags.standalone import Standalone
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.alone

ACCOUNT = "123456789012"
PIPELINES = """
[photos]
images = "s3://{bucket}/raw/"
model = "{home}/model"
events = "{queue}"
"""


class Bucket:
    """A bucket that announces its objects in a queue."""

    def __init__(self, endpoint: str) -> None:
        names = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.s3, self.sqs = (boto3.client(name, endpoint_url=endpoint, **names) for name in ("s3", "sqs"))
        self.name = f"announcing-{uuid.uuid4().hex[:8]}"
        self.queue = f"{endpoint}/{ACCOUNT}/{self.name}"
        self.s3.create_bucket(Bucket=self.name)
        self.sqs.create_queue(QueueName=self.name)
        arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{self.name}"
        self.s3.put_bucket_notification_configuration(
            Bucket=self.name,
            NotificationConfiguration={"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]},
        )

    def put(self, key: str, seed: int) -> None:
        self.s3.put_object(Bucket=self.name, Key=key, Body=picture(seed))

    def messages(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        told = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(count) for count in told.values())


@pytest.fixture(scope="module")
def url(postgres_server: str) -> Iterator[str]:
    """A migrated cache in PostgreSQL."""
    with fresh_cache(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Bucket:
    return Bucket(s3_endpoint)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Path:
    home = tmp_path_factory.mktemp("events")
    write_small_bundle(home / "model")
    (home / "pipelines.toml").write_text(PIPELINES.format(home=home, bucket=bucket.name, queue=bucket.queue))
    return home


@pytest.fixture(scope="module")
def airflow(home: Path, url: str, postgres_server: str, s3_endpoint: str) -> Iterator[Standalone]:
    """A running Airflow; its Connection, and not the environment, has the keys of store and queue."""
    environment = {
        "AFTERIMAGE_PIPELINES": str(home / "pipelines.toml"),
        "AFTERIMAGE_HOME": str(home / "afterimage"),
        "AFTERIMAGE_DATABASE": url,
        "AFTERIMAGE_DEVICE": "cpu",
        # A trigger begins when its DAG is parsed again after it was unpaused.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "8",
        "AIRFLOW_CONN_AFTERIMAGE_STORAGE": (
            '{"conn_type": "aws", "login": "test", "password": "test", '
            f'"extra": {{"endpoint_url": "{s3_endpoint}", "region_name": "us-east-1"}}}}'
        ),
    }
    with fresh_postgres(postgres_server) as metadata:
        metadata_url = make_url(metadata).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
        running = Standalone(home, metadata_url, environment)
        running.airflow("db", "migrate")
        running.airflow("pools", "set", "gpu", "1", "one slot")
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def cache(home: Path, url: str, bucket: Bucket) -> Runner:
    return Runner(home / "afterimage", url, images=f"s3://{bucket.name}/raw/", model=str(home / "model"))


def predicted(cache: Runner) -> set[str]:
    return {row["key"] for row in cache.rows("SELECT key FROM v_prediction")}


DAG = "predict_photos_events"


def test_an_object_that_is_written_is_predicted(airflow: Standalone, bucket: Bucket, cache: Runner) -> None:
    bucket.put("raw/before.png", 1)
    airflow.unpause(DAG)
    airflow.wait(lambda: "raw/before.png" in predicted(cache), 240, "a prediction of what was in the queue")
    bucket.put("raw/a b+c%20ä.png", 2)
    bucket.put("other/x.png", 3)
    airflow.wait(lambda: "raw/a b+c%20ä.png" in predicted(cache), 240, "a prediction of what was announced")
    airflow.wait(lambda: bucket.messages() == 0, 30, "an empty queue")
    assert predicted(cache) == {"raw/before.png", "raw/a b+c%20ä.png"}
    for run in airflow.finished(DAG, "asset_triggered", 2):
        row = cache.rows("SELECT * FROM v_run WHERE run_id = :run", run=run["dag_run_id"])[0]
        assert (row["run_type"], row["pipeline"], outcomes(row)) == ("events", "photos", {"predicted": 1})


def test_a_cleared_run_sees_the_same_keys(airflow: Standalone, cache: Runner) -> None:
    run = airflow.runs(DAG, "asset_triggered")[0]
    body = {"dry_run": False, "dag_run_id": run["dag_run_id"], "only_failed": False, "reset_dag_runs": True}
    airflow.post(f"/dags/{DAG}/clearTaskInstances", body)
    airflow.wait(
        lambda: (
            cache.rows("SELECT generation FROM run WHERE run_id = :run", run=run["dag_run_id"])[0]["generation"] > 1
        ),
        60,
        "the second listing",
    )
    airflow.ended(DAG, run["dag_run_id"])
    row = cache.rows("SELECT * FROM v_run WHERE run_id = :run", run=run["dag_run_id"])[0]
    assert (row["listed"], outcomes(row)) == (1, {"cached": 1})


def test_what_comes_while_a_run_is_under_way_is_not_left_lying(
    airflow: Standalone, bucket: Bucket, cache: Runner
) -> None:
    """Airflow takes to the next run only what was there when the first of them came."""
    keys = {f"raw/burst-{number:02}.png" for number in range(6)}
    before = predicted(cache)
    for number, key in enumerate(sorted(keys)):
        airflow.wait(lambda: bucket.messages() == 0, 60, "an empty queue")
        bucket.put(key, 100 + number)
    airflow.wait(lambda: predicted(cache) == before | keys, 240, "predictions of all that was announced")
    assert cache.rows("SELECT count(*) AS n FROM v_prediction")[0]["n"] == len(before | keys)
