"""An Airflow of its own for the tests in this folder: SQLite metadata, our dags/ and plugins/, pipelines of their own.

Airflow reads its settings when it is imported, so they are set when this file is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.pictures import write_small_bundle

HOME = Path(tempfile.mkdtemp(prefix="afterimage-airflow-"))

os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{HOME / 'airflow.db'}",
    AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
    AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__UNIT_TEST_MODE="False",
)

PIPELINES = """
[plain]
images = "{images}"
model = "{model}"
schedule = "@daily"
max_failure_rate = 0.2

[templated]
images = "{images}/raw/{{{{ ds }}}}/"
model = "{model}"
schedule = "0 0 * * *"

[manual]
images = "{images}"
model = "{model}"

[announced]
images = "s3://announced/raw/"
model = "{model}"
events = "https://sqs.eu-west-1.amazonaws.com/123456789012/images"
"""


@pytest.fixture(scope="package")
def images() -> Path:
    """The folder of the pipelines; each test fills it.

    Where files of other folders are run between those of this one, it is made anew.
    """
    folder = HOME / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.fixture(scope="package")
def airflow(images: Path) -> Iterator[None]:
    """Airflow with its metadata database, and our settings in the environment."""
    model = write_small_bundle(HOME / "model")
    (HOME / "pipelines.toml").write_text(PIPELINES.format(images=images, model=model))
    os.environ.update(
        AFTERIMAGE_PIPELINES=str(HOME / "pipelines.toml"),
        AFTERIMAGE_HOME=str(HOME / "afterimage"),
        AFTERIMAGE_DEVICE="cpu",
    )
    sys.path.insert(0, str(ROOT / "dags"))
    from airflow.utils.db import initdb

    initdb()
    yield
    for name in ("AFTERIMAGE_PIPELINES", "AFTERIMAGE_HOME", "AFTERIMAGE_DEVICE"):
        os.environ.pop(name, None)


@pytest.fixture
def dags(airflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """{dag_id: DAG}, with an empty cache for this test."""
    monkeypatch.setenv("AFTERIMAGE_DATABASE", f"sqlite:///{tmp_path / 'cache.db'}")
    return load_dags().dags


def load_dags() -> Any:
    """Parse dags/ as the DAG processor does."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(
        str(ROOT / "dags"), bundle_path=ROOT / "dags", bundle_name="dags-folder", known_pools={"default_pool", "gpu"}
    )
