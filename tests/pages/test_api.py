"""The read API: JSON with the rights of whoever asks."""

from __future__ import annotations

import re
from datetime import datetime

import httpx
import pytest

from tests.site import Site

API = "/afterimage/api/pipelines"


def test_only_pipelines_that_one_may_see_are_listed(admin: httpx.Client, narrow: httpx.Client) -> None:
    found = {one["pipeline"]: one for one in admin.get(API).json()["pipelines"]}
    assert {"others", "photos", "secret"} <= set(found)
    assert [one["pipeline"] for one in narrow.get(API).json()["pipelines"]] == sorted(set(found) - {"secret"})
    photos = found["photos"]
    assert photos["model_id"] == photos["models"][0]["model_id"]
    assert photos["models"][0]["current"] is True


def test_a_token_is_enough(site: Site) -> None:
    """As docs/pages.md has it for curl."""
    headers = {"Authorization": f"Bearer {site.token('bob')}"}
    answer = httpx.get(f"{site.address}{API}/photos/predictions?limit=1", headers=headers, timeout=60)
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 1


def test_a_row_has_plain_values(viewer: httpx.Client) -> None:
    found = viewer.get(f"{API}/photos/predictions?limit=2&order=uncertain").json()
    first, second = found["predictions"]
    assert first["margin"] <= second["margin"]
    assert re.fullmatch("[0-9a-f]{64}", first["digest"])
    assert datetime.fromisoformat(first["last_modified"]).utcoffset() is not None
    assert first["top_k"][0]["label"] == first["label"]
    assert found["looked_at"] >= 2
    assert found["next"].startswith(f"{API}/photos/predictions?order=uncertain&after=")


def test_runs_and_failures(viewer: httpx.Client) -> None:
    (run,) = viewer.get(f"{API}/photos/runs").json()["runs"]
    assert (run["state"], run["listed"], run["failed"]) == ("success", 124, 3)
    assert isinstance(run["stages"], dict)
    first = viewer.get(f"{API}/photos/failures?limit=2").json()
    second = viewer.get(first["next"]).json()
    keys = [row["key"] for row in first["failures"] + second["failures"]]
    assert keys == [f"dogs/broken-{number}.png" for number in range(3)]
    assert second["next"] is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("photos/predictions?limit=0", "limit"),
        ("photos/predictions?limit=1001", "limit"),
        ("photos/runs?limit=x", "limit"),
        ("photos/predictions?score_from=2", "score_from"),
        ("photos/predictions?model=zzz", "model"),
        ("photos/predictions?order=uncertain&after=x", "after"),
        ("photos/failures?after=x", "after"),
        ("photos/failures?after=7", "after"),
        ('photos/failures?after=["a"]', "after"),
        ('photos/runs?after=["a","b","c"]', "after"),
    ],
)
def test_a_wrong_value_is_named(wrong: str, named: str, viewer: httpx.Client) -> None:
    answer = viewer.get(f"{API}/{wrong}")
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"{named} is ")


def test_problems_are_json(viewer: httpx.Client) -> None:
    for path in ("nothing/predictions", "nothing/failures", "photos/image?key=none"):
        answer = viewer.get(f"{API}/{path}")
        assert answer.status_code == 404
        assert answer.json()["detail"]
