"""Airflow's API server with our pages, in a process of its own, for tests of pages: `python -m tests.site`.

No scheduler runs: what the pages show is put into the cache by the road itself, and into Airflow by its REST API. It is ready
in some 15 seconds, a third of what `airflow standalone` takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import ROOT, free_port, outer_environment, wait_for_port

# What Airflow's own simple roles may do; `narrow` may see all but the pipeline `secret`, and `nobody` none (site_auth.py).
USERS = {"admin": "admin", "uma": "user", "bob": "viewer", "narrow": "viewer", "nobody": "viewer"}


@dataclass(frozen=True)
class Site:
    """Where it listens."""

    address: str
    home: Path

    def client(self, user: str | None) -> httpx.Client:
        """A client that is signed in, as a browser is, or with None an anonymous one."""
        client = httpx.Client(base_url=self.address, timeout=60)
        if user is not None:
            client.cookies.set("_token", self.token(user))
        return client

    def token(self, user: str) -> str:
        """What Airflow's cookie `_token` holds after a login."""
        answer = httpx.post(f"{self.address}/auth/token", json={"username": user, "password": user}, timeout=60)
        return str(answer.raise_for_status().json()["access_token"])


@contextmanager
def serving_site(home: Path, environment: Mapping[str, str]) -> Iterator[Site]:
    """The server, with AFTERIMAGE_* variables of the caller's; `home` is Airflow's."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (home / "passwords.json").write_text(json.dumps({name: name for name in USERS}))
    log = home / "site.log"
    given = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__AUTH_MANAGER": "tests.site_auth.NarrowAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API_AUTH__JWT_SECRET": "tests" * 16,
        "_AIRFLOW_PROCESS_CONTEXT": "server",  # As `airflow api-server` says of itself.
        **environment,
    }
    with open(log, "wb") as out:
        # The tests' own conftest drops AFTERIMAGE_* from the environment of whoever imports it.
        kept = {name: value for name, value in environment.items() if name.startswith("AFTERIMAGE_")}
        command = [sys.executable, "-m", "tests.site", str(port), json.dumps(kept)]
        environment = {**outer_environment(), **given, "PYTHONPATH": f"{ROOT}:{ROOT / 'dags'}"}
        server = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        try:
            wait_for_port(port, server, 180)
        except Exception as error:
            raise RuntimeError(log.read_text()[-3000:]) from error
        yield Site(f"http://127.0.0.1:{port}", home)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(5)


def serve(port: int) -> None:
    """Set Airflow up on an empty home, take in the DAGs, and serve until SIGTERM."""
    from airflow.utils.db import initdb

    initdb()
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    manager.sync_bundles_to_db()
    for bundle in manager.get_all_dag_bundles():
        bundle.initialize()
        bag = BundleDagBag(bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, bundle_version=None)
    import uvicorn
    from airflow.api_fastapi.app import create_app

    uvicorn.run(create_app("core"), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    os.environ.update(json.loads(sys.argv[2]))
    serve(int(sys.argv[1]))
