"""A cache that does not answer holds up the pages for seconds, and Airflow not at all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import text

from tasks.cache.database import connect
from tests.database_roles import as_owner
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner
from tests.site import Site, serving_site

# More than the 40 threads that the API server shares among all its routes.
REQUESTS = 60


def test_pages_that_wait_for_the_cache_hold_up_nobody_else(postgres_url: str, home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 7)
    model = write_small_bundle(tmp_path / "model")
    Runner(home, postgres_url, name="photos", images=str(tmp_path / "images"), model=str(model)).run()
    owner = connect(as_owner(postgres_url))
    with (
        serving_site(tmp_path / "airflow", {"AFTERIMAGE_DATABASE": postgres_url}) as site,
        ThreadPoolExecutor(REQUESTS) as pool,
    ):
        assert browse(site, threading.Event()) == 200
        released = threading.Event()
        with owner.begin() as connection:
            connection.execute(text("LOCK TABLE afterimage.image IN ACCESS EXCLUSIVE MODE"))
            waiting = [pool.submit(browse, site, released) for _ in range(REQUESTS)]
            time.sleep(1)
            seconds = [health(site) for _ in range(5)]
            time.sleep(2)
            told = [one.result() for one in waiting if one.done()]
            released.set()
        answers = {one.result() for one in waiting}
    owner.dispose()
    assert max(seconds) < 3, seconds
    assert 503 in told, "a statement ends after two seconds, and the page says so"
    assert answers <= {200, 503, None}


def browse(site: Site, released: threading.Event) -> int | None:
    """The status of a page; None for a request that was not sent before the cache answered again."""
    if released.is_set():
        return None
    with site.client("admin") as client:
        return client.get("/afterimage/pipelines/photos/browse").status_code


def health(site: Site) -> float:
    """Seconds that Airflow takes to say how it is."""
    started = time.perf_counter()
    with site.client(None) as client:
        assert client.get("/api/v2/monitor/health").status_code == 200
    return time.perf_counter() - started
