"""Where Airflow's Connection afterimage_database names the cache, the pages read that one, as the DAGs do."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import make_url

from tasks.cache.database import connect
from tasks.cache.runs import RunKey
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner
from tests.site import serving_site


def test_the_connection_wins_over_the_environment(postgres_url: str, home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 7)
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, postgres_url, name="photos", images=str(tmp_path / "images"), model=str(model))
    runner.run(key=RunKey("predict_photos", "in PostgreSQL"))
    # A cache that Airflow's environment names, and in which nothing is.
    environment = {"AFTERIMAGE_DATABASE": f"sqlite:///{tmp_path / 'other.db'}"}
    with serving_site(tmp_path / "airflow", environment) as site, site.client("admin") as client:
        url = make_url(connect(postgres_url).url)
        given = {
            "connection_id": "afterimage_database",
            "conn_type": "postgres",
            "host": url.host,
            "port": url.port,
            "schema": url.database,
            "login": url.username,
            "password": url.password,
            "extra": json.dumps(dict(url.query)),
        }
        assert client.post("/api/v2/connections", json=given).status_code == 201
        page = client.get("/afterimage/runs/predict_photos/in%20PostgreSQL")
    assert page.status_code == 200, page.text
    assert "7 images listed" in page.text
