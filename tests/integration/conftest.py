"""What tests of the S3 store share."""

from __future__ import annotations

from collections.abc import Iterator

import botocore.session  # noqa: F401  modules that are imported under the patch of `one_attempt` would keep it
import pytest
from botocore.config import Config

from tests.s3_server import Server, serve


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers as the test says."""
    with serve() as found:
        yield found


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 asks once, so that no test waits for its pauses."""
    retries = {"mode": "standard", "total_max_attempts": 1}
    monkeypatch.setattr("botocore.config.Config", lambda **options: Config(**options | {"retries": retries}))
