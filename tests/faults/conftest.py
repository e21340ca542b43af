"""What fault tests share: a fake S3 that is as new for each test, and nobody who waits long."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import session  # Here, not later: modules that are imported under the patches below would keep them.
from botocore.config import Config
from botocore.loaders import create_loader

from tasks.inference import reading
from tasks.storage import gets, s3
from tests.faults.fake_s3.control import FakeS3, serving_fake_s3
from tests.faults.scene import GOOD, IMAGES, Make, Scene, image_of
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

LOADER = create_loader()


@pytest.fixture(scope="session")
def fake_server() -> Iterator[FakeS3]:
    """A fake S3 that all tests share."""
    with serving_fake_s3() as found:
        yield found


@pytest.fixture
def fake(fake_server: FakeS3) -> FakeS3:
    """A fake S3 without faults; its buckets stay."""
    fake_server.reset()
    return fake_server


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 asks twice without a pause, and nobody pauses between attempts."""
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.001)
    retries = {"mode": "standard", "total_max_attempts": 2}
    monkeypatch.setattr("botocore.config.Config", lambda **options: Config(**options | {"retries": retries}))
    # Each client reads S3's description anew: a tenth of a second, several times in each run.
    monkeypatch.setattr(session, "create_loader", lambda *_arguments: LOADER)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_arguments: 0.0)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time-out is short. Only for tests that wait for one: a loaded machine may take longer for an answer."""
    for module in (gets, s3):
        monkeypatch.setattr(module, "READ_SECONDS", 0.3)
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)


@pytest.fixture(scope="session")
def calm_rows(
    fake_server: FakeS3, home: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What an undisturbed run over the bucket of every scene leaves."""
    for number in range(IMAGES):
        fake_server.put("calm", *image_of(number))
    url = f"sqlite:///{tmp_path_factory.mktemp('calm') / 'calm.db'}"
    runner = Runner(home, url, dict(fake_server.settings), images="s3://calm/", model=str(small_bundle))
    runner.run()
    assert len(runner.predictions()) == IMAGES
    return runner.predictions()


@pytest.fixture
def make(fake: FakeS3, home: Path, tmp_path: Path, small_bundle: Path, calm_rows: dict[str, Any]) -> Make:
    """A scene over a database of its own."""

    def scene(database_url: str | None = None, **settings: Any) -> Scene:
        bucket = f"photos-{uuid.uuid4().hex[:8]}"
        for number in range(IMAGES):
            fake.put(bucket, *image_of(number))
        url = database_url or f"sqlite:///{tmp_path / 'cache.db'}"
        all_settings = {**fake.settings, "readers": 8, **settings}
        runner = Runner(home, url, all_settings, images=f"s3://{bucket}/", model=str(small_bundle), commit_images=8)
        fake.reset()
        return Scene(fake, bucket, runner, calm_rows)

    return scene


@pytest.fixture
def runner(home: Path, tmp_path: Path, database_url: str) -> Runner:
    write_pictures(tmp_path / "images", GOOD)
    model = write_small_bundle(tmp_path / "model")
    return Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))


@pytest.fixture
def calm(runner: Runner, tmp_path: Path) -> dict[str, Any]:
    """The rows of the good images alone."""
    alone = Runner(runner.settings.home, f"sqlite:///{tmp_path / 'calm.db'}", **runner.pipeline.model_dump())
    alone.run()
    return alone.predictions()
