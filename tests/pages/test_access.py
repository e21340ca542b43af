"""Who is let in: every route asks, and says nothing to who may not know."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest

from tests.conftest import ROOT
from tests.site import Site

# Every route of the app, in a process of its own: Airflow reads its settings when it is imported.
ROUTES = """
import json, sys
from afterimage_ui.app import create_app
found = [[sorted(route.methods)[0], route.path] for route in create_app().routes if "HEAD" != sorted(route.methods)[0]]
print(json.dumps(found))
"""
FILLED = {
    "{dag_id}": "predict_photos",
    "{run_id}": "some",
    "{pipeline}": "photos",
    "{digest}": "0" * 64,
    "/assets/{name}": "/assets/style.css",
    "/export/{name}": "/export/predictions",
}


@pytest.fixture(scope="module")
def routes(site: Site) -> list[tuple[str, str]]:
    """(method, path) of every route, with the placeholders filled in."""
    import json

    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "AIRFLOW_HOME": str(site.home)}
    done = subprocess.run(
        [sys.executable, "-c", ROUTES], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = []
    for method, path in json.loads(done.stdout.splitlines()[-1]):
        for placeholder, value in FILLED.items():
            path = path.replace(placeholder, value)
        assert "{" not in path, f"{path}: add a value for its placeholder"
        found.append((method, f"/afterimage{path}"))
    assert len(found) >= 2
    return found


def test_nobody_is_let_in_who_has_not_signed_in(routes: list[tuple[str, str]], anonymous: httpx.Client) -> None:
    for method, path in routes:
        assert anonymous.request(method, path).status_code == 401, f"{method} {path}"


def test_a_viewer_changes_nothing(routes: list[tuple[str, str]], viewer: httpx.Client) -> None:
    for method, path in routes:
        if method != "GET":
            assert viewer.request(method, path, json={}).status_code == 403, f"{method} {path}"


def test_another_site_changes_nothing(routes: list[tuple[str, str]], admin: httpx.Client) -> None:
    for method, path in routes:
        if method != "GET":
            for foreign in ("cross-site", "same-site"):
                answer = admin.request(method, path, json={}, headers={"Sec-Fetch-Site": foreign})
                assert answer.status_code == 403, f"{method} {path}"


def test_a_pipeline_that_one_may_not_see_is_refused(routes: list[tuple[str, str]], narrow: httpx.Client) -> None:
    for method, path in routes:
        hidden = path.replace("/photos", "/secret").replace("predict_photos", "predict_secret")
        if hidden != path:
            assert narrow.request(method, hidden, json={}).status_code == 403, f"{method} {hidden}"


def test_every_answer_carries_the_policy(routes: list[tuple[str, str]], admin: httpx.Client) -> None:
    for method, path in routes:
        answer = admin.request(method, path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; "), path
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["openapi.json", "docs", "redoc", "static/style.css", "assets/../app.py"])
def test_there_is_no_other_way_in(path: str, admin: httpx.Client) -> None:
    assert admin.get(f"/afterimage/{path}").status_code == 404
