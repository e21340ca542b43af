"""The Review page: what comes first, what is kept of an answer, and what is refused."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import delete

from tasks.cache import contract
from tasks.cache.database import connect, writing
from tasks.cache.schema import review
from tests.pages.conftest import COMPARED_IMAGES, HOSTILE_KEY
from tests.site import Site

PAGE = "/afterimage/pipelines/compared/review"
REVIEWS = "/afterimage/pipelines/compared/reviews"


@pytest.fixture
def cache(site: Site, seeded: dict[str, str]) -> Iterator[Any]:
    """The cache behind the site; what was reviewed is taken away again."""
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    yield engine
    with writing(engine) as connection:
        connection.execute(delete(review))
    engine.dispose()


def batch(client: httpx.Client, query: str = "") -> dict[str, Any]:
    """What the page gives to its script."""
    answer = client.get(f"{PAGE}{query}")
    assert answer.status_code == 200, answer.text
    found = re.search(r'<script type="application/json" id="batch">(.*?)</script>', answer.text, re.DOTALL)
    assert found is not None, answer.text
    return dict(json.loads(found[1]))


def all_batches(client: httpx.Client, query: str = "?") -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    while True:
        page = batch(client, query)
        items += page["items"]
        if not page["next"]:
            return items
        query = page["next"]


def expected(cache: Any) -> list[str]:
    rows = contract.current_predictions(cache, "compared")
    return [row["digest"] for row in sorted(rows, key=lambda row: (row["margin"], row["digest"]))]


def test_the_least_certain_come_first_and_every_image_comes(admin: httpx.Client, cache: Any) -> None:
    items = all_batches(admin)
    assert [item["digest"] for item in items] == expected(cache)
    assert len(items) == COMPARED_IMAGES
    first = batch(admin)
    assert len(first["items"]) == 20
    assert first["labels"] == ["dark", "red", "green", "blue"]
    assert items[0]["choices"][0]["label"] == items[0]["label"]


def test_a_filter_is_kept_from_page_to_page(admin: httpx.Client, cache: Any) -> None:
    rows = {row["digest"]: row for row in contract.current_predictions(cache, "compared")}
    for label in ("green", "blue"):
        found = [item["digest"] for item in all_batches(admin, f"?label={label}")]
        assert found == [digest for digest in expected(cache) if rows[digest]["label"] == label]
    most = rows[expected(cache)[30]]["margin"]
    assert [item["digest"] for item in all_batches(admin, f"?margin_to={most!r}")] == expected(cache)[:31]
    assert "has no label no such" in admin.get(f"{PAGE}?label=no+such").text
    assert admin.get(f"{PAGE}?label=%00").status_code == 200


@pytest.mark.parametrize("query", ["margin_to=wide", "margin_to=nan", "after=0.5", "after=0.5:zz", "after=inf:00"])
def test_an_address_that_makes_no_sense_is_told(query: str, admin: httpx.Client) -> None:
    answer = admin.get(f"{PAGE}?{query}")
    assert answer.status_code == 422 or query == "after=0.5"
    assert answer.status_code < 500


def test_an_answer_is_kept_replaced_and_taken_back(admin: httpx.Client, site: Site, cache: Any) -> None:
    page = batch(admin)
    one = page["items"][0]
    with site.client("uma") as uma:
        said = uma.post(REVIEWS, json={"digest": one["digest"], "label": "red", "model_id": page["model"]})
    assert said.json() == {"digest": one["digest"], "label": "red", "reviewer": "uma"}
    (row,) = contract.reviews(cache, "compared")
    assert (row["digest"], row["label"], row["reviewer"]) == (one["digest"], "red", "uma")
    assert row["model_id"] == page["model"]
    assert [item["digest"] for item in all_batches(admin)] == expected(cache)[1:]
    assert "1</span> reviewed" in admin.get(PAGE).text

    admin.post(REVIEWS, json={"digest": one["digest"], "label": one["label"], "model_id": page["model"]})
    (row,) = contract.reviews(cache, "compared")
    assert (row["label"], row["reviewer"]) == (one["label"], "admin")
    assert '<span id="share">100.0%</span>' in admin.get(PAGE).text

    for was_there in (True, False):
        answer = admin.post(f"{REVIEWS}/removed", json={"digest": one["digest"]})
        assert answer.json() == {"digest": one["digest"], "removed": was_there}
    assert contract.reviews(cache, "compared") == []


def test_what_cannot_be_is_refused_with_a_text(admin: httpx.Client, cache: Any) -> None:
    page = batch(admin)
    good = {"digest": page["items"][0]["digest"], "label": "red", "model_id": page["model"]}
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"label": "violet"}, 422, "'violet' is no label of small 1. Take one of the list."),
        ({"label": ""}, 422, "is no label"),
        ({"label": "a\0b"}, 422, "is no label"),
        ({"label": "\ud800"}, 422, ""),
        ({"label": "<script>"}, 422, "is no label"),
        ({"model_id": "0" * 64}, 422, "has not run with the model"),
        ({"model_id": ""}, 422, "has not run with the model"),
        ({"digest": "0" * 64}, 404, "No image of the pipeline compared has these bytes"),
        ({"digest": "xyz"}, 422, ""),
        ({"reviewer": "somebody else"}, 422, ""),
    ]
    for change, status, told in wrong:
        answer = admin.post(REVIEWS, content=json.dumps(good | change), headers={"Content-Type": "application/json"})
        assert answer.status_code == status, (change, answer.text)
        assert told in str(answer.json()["detail"])
    assert contract.reviews(cache, "compared") == []
    assert admin.post(REVIEWS.replace("compared", "nothing"), json=good).status_code in (403, 404)


def test_an_image_of_another_pipeline_is_not_reviewed_in_this_one(admin: httpx.Client, cache: Any) -> None:
    page = batch(admin)
    other = contract.current_predictions(cache, "photos")[0]["digest"]
    answer = admin.post(REVIEWS, json={"digest": other, "label": "red", "model_id": page["model"]})
    assert answer.status_code == 404


def test_a_viewer_reads_and_has_no_buttons(viewer: httpx.Client, admin: httpx.Client, site: Site) -> None:
    assert not batch(viewer)["change"]
    assert 'id="agree"' not in viewer.get(PAGE).text
    assert viewer.get(PAGE).text.count('data-testid="card"') == 20, "readable without a script"
    assert batch(admin)["change"]
    with site.client("uma") as uma:
        assert 'id="agree"' in uma.get(PAGE).text


def test_a_key_may_hold_anything(admin: httpx.Client) -> None:
    (item,) = [item for item in all_batches(admin) if item["key"] == HOSTILE_KEY]
    assert "\u202e" not in item["shown"]
    query = "?"
    while item["digest"] not in (page := admin.get(f"{PAGE}{query}").text):
        query = batch(admin, query)["next"]
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert html.escape("<script>alert", quote=False) in page


def test_a_pipeline_without_a_run_says_so(admin: httpx.Client) -> None:
    answer = admin.get("/afterimage/pipelines/never/review")
    assert answer.status_code in (403, 404)
