"""No secret anywhere: canaries stand where secrets do, and are looked for wherever the program writes something."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sqlalchemy import create_engine, make_url, text

from tasks import road
from tasks.cache import roles
from tasks.cache.database import connect, is_sqlite
from tasks.cache.schema import metadata
from tasks.doctor import examine
from tasks.errors import ConfigurationError
from tasks.location import parse_location
from tasks.pipelines import make_pipeline
from tasks.settings import load_settings
from tasks.storage import open_store
from tasks.storage.s3 import client
from tests.command_line import exit_code
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner
from tests.tab import opened_pages

# Letters only, so that no escape and no encoding of a URL hides one.
CANARY = "canaryjkqxvz"
PASSWORD, SECRET, TOKEN = f"{CANARY}password", f"{CANARY}secret", f"{CANARY}token"


def told(error: BaseException) -> str:
    """All that a log can show of an exception: its text, its notes, its causes, and the same of those."""
    return "".join(traceback.format_exception(error)) + repr(error) + "".join(getattr(error, "__notes__", []))


@pytest.fixture
def secret_database(postgres_server: str, postgres_url: str) -> Iterator[str]:
    """The cache, opened by a role whose password is a canary."""
    admin = create_engine(make_url(postgres_server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    role = f"secretive_{os.getpid()}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' IN ROLE {roles.WRITER}"))
    yield make_url(postgres_url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    admin.dispose()


@pytest.fixture
def secret_keys(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Keys with a session token in boto3's own variables; the server takes any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    return {"s3_endpoint": s3_endpoint, "s3_region": "us-east-1"}


@pytest.fixture
def make(tmp_path: Path, bucket: str, secret_database: str, secret_keys: dict[str, str]) -> Callable[..., Runner]:
    """A pipeline over three images, one of them damaged; keyword arguments are settings."""
    store = client(load_settings(**secret_keys))
    for number in range(2):
        store.put_object(Bucket=bucket, Key=f"in/{number}.png", Body=picture(number))
    store.put_object(Bucket=bucket, Key="in/bad.png", Body=b"no image")
    model = write_small_bundle(tmp_path / "model")

    def make(**settings: str) -> Runner:
        given = {**secret_keys, "database": secret_database, **settings}
        database = given.pop("database")
        return Runner(tmp_path / "home", database, given, images=f"s3://{bucket}/in/", model=str(model))

    return make


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that our own loggers say."""
    caplog.set_level(logging.DEBUG, logger="tasks")
    return caplog


def tables(url: str) -> str:
    """Every row of every table."""
    engine = connect(url)
    with engine.connect() as connection:
        found = [str(connection.execute(table.select()).all()) for table in metadata.tables.values()]
        views = ("v_run", "v_failure", "v_prediction", "v_current_prediction")
        schema = "" if is_sqlite(engine) else "afterimage."
        found += [str(connection.execute(text(f"SELECT * FROM {schema}{view}")).all()) for view in views]
    engine.dispose()
    return "\n".join(found)


def test_a_run_leaves_none_in_logs_rows_xcom_or_files(
    make: Callable[..., Runner], tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    runner = make()
    request, shards = runner.plan()
    xcom: list[Any] = [shard.to_dict() for shard in shards]
    xcom += [road.predict_shard(shard, runner.settings) for shard in shards]
    xcom.append(road.publish_run(request, runner.settings))
    assert (xcom[-1]["predicted"], xcom[-1]["failed"]) == (2, 1), "the canaries were used"
    assert CANARY in runner.settings.database_url
    assert "Listed 3 images" in logs.text
    assert CANARY not in logs.text
    assert CANARY not in json.dumps(xcom)
    assert CANARY not in repr(runner.settings)
    assert "not_an_image" in tables(runner.settings.database_url)
    assert CANARY not in tables(runner.settings.database_url)
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes() or CANARY in path.name]


FAULTS = {
    "nobody listens where the store should be": {"s3_endpoint": "http://127.0.0.1:1"},
    "nobody listens where the database should be": {"database": f"postgresql://me:{PASSWORD}@127.0.0.1:1/x"},
    "the password stands in the query": {"database": f"postgresql://me@127.0.0.1:1/x?password={PASSWORD}"},
    "the password holds an @": {"database": f"postgresql://me:so@{PASSWORD}@127.0.0.1:1/x"},
    "the database is of another kind": {"database": f"mysql://me:{PASSWORD}@127.0.0.1:1/x"},
    "the host has no name": {"database": f"postgresql://me:{PASSWORD}@nowhere.invalid/x"},
    "the port is none": {"database": f"postgresql://me:{PASSWORD}@127.0.0.1:99999/x"},
    "the endpoint holds a password": {"s3_endpoint": f"http://me:{PASSWORD}@127.0.0.1:1"},
}


def test_a_run_that_fails_tells_none(make: Callable[..., Runner], logs: pytest.LogCaptureFixture) -> None:
    for fault, settings in FAULTS.items():
        runner = make(**settings)
        with pytest.raises(Exception) as error:  # noqa: PT011  # whatever it is, it must not tell
            runner.run()
        assert CANARY not in told(error.value), fault
        findings = {finding.check: finding for finding in examine(runner.settings, None)}
        assert CANARY not in str(findings), fault
        assert findings["database"].ok == ("database" not in settings), "the doctor met the same fault"
    assert CANARY not in logs.text


def test_a_session_that_expired_names_no_key(make: Callable[..., Runner], bucket: str) -> None:
    """The store's own words are not repeated: some stores quote the request."""
    from botocore.exceptions import ClientError

    from tasks.storage.s3 import _client_error

    words = {"Error": {"Code": "ExpiredToken", "Message": TOKEN}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    error = _client_error(ClientError(words, "GetObject"), "s3://b/k", bucket)  # type: ignore[arg-type]
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    "table",
    [
        {"images": f"s3://key:{SECRET}@bucket/in/"},
        {"images": f"s3://key:so/{SECRET}@bucket/in/"},
        {"images": f"https://bucket.example/in/?X-Amz-Algorithm=x&X-Amz-Signature={SECRET}"},
        {"images": f"ftp://me:{PASSWORD}@host/in/"},
        {"images": "in", "model": f"s3://key:{SECRET}@bucket/model"},
        {"images": "in", "model": f"https://bucket.example/model?X-Amz-Security-Token={TOKEN}"},
        {"images": "in", "s3_secret_key": SECRET},
        {"images": "in", "database": f"postgresql://me:{PASSWORD}@host/x"},
    ],
)
def test_a_secret_in_a_table_is_refused_and_not_repeated(table: dict[str, str]) -> None:
    """Airflow shows what is wrong with pipelines.toml to everybody who may see its DAGs."""
    with pytest.raises(ConfigurationError) as error:
        make_pipeline({"name": "photos", "model": "model", **table}, "pipelines.toml: [photos]")
    assert CANARY not in told(error.value)


def test_a_presigned_address_is_for_its_caller_alone(
    make: Callable[..., Runner], bucket: str, logs: pytest.LogCaptureFixture
) -> None:
    """It carries a signature and the session's token; nothing of it is logged or kept."""
    runner = make()
    url = open_store(parse_location(f"s3://{bucket}/in/"), runner.settings).sign("in/0.png", 60)
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    assert query["x-amz-security-token"] == TOKEN
    signature = query.get("x-amz-signature") or query["signature"]
    runner.run()
    for place in (logs.text, tables(runner.settings.database_url)):
        assert signature not in place
        assert "x-amz-" not in place.lower()


def test_the_command_line_prints_none(
    make: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = make()
    (tmp_path / "pipelines.toml").write_text(f'[photos]\nimages = "{runner.pipeline.images}"\nmodel = "model"\n')
    monkeypatch.delenv("AIRFLOW_HOME", raising=False)  # The doctor would look for a pool in the Airflow of other tests.
    monkeypatch.setenv("AFTERIMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(tmp_path / "pipelines.toml"))
    monkeypatch.setenv("AFTERIMAGE_DEVICE", "cpu")
    monkeypatch.setenv("AFTERIMAGE_S3_ENDPOINT", str(runner.settings.s3_endpoint))
    monkeypatch.setenv("AFTERIMAGE_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("AFTERIMAGE_S3_SECRET_KEY", SECRET)
    lost = f"postgresql://me@127.0.0.1:1/x?password={PASSWORD}"
    for database, code, command in (
        (runner.settings.database_url, 1, "predict photos --json"),
        (runner.settings.database_url, 0, "status --json"),
        (runner.settings.database_url, 0, "failures --json"),
        (runner.settings.database_url, 0, "show in/bad.png --json"),
        (runner.settings.database_url, 0, "doctor --json"),
        (lost, 1, "doctor --json"),
        (lost, 2, "status"),
        (lost, 2, "predict photos"),
    ):
        monkeypatch.setenv("AFTERIMAGE_DATABASE", database)
        assert exit_code(monkeypatch, command.split()) == code, command
        printed = capsys.readouterr()
        assert CANARY not in printed.out + printed.err, command


def test_the_pages_in_airflow_tell_none(make: Callable[..., Runner]) -> None:
    runner = make()
    runner.run()
    (run,) = runner.rows("SELECT dag_id, run_id FROM v_run")
    for database in (runner.settings.database_url, f"postgresql://me@127.0.0.1:1/x?password={PASSWORD}"):
        with opened_pages(database) as client:
            for path in (f"/runs/{run['dag_id']}/{run['run_id']}", "/", "/pipelines/test/browse", "/api/pipelines"):
                answer = client.get(path)
                assert answer.status_code in (200, 503), path
                assert CANARY not in answer.text, path
