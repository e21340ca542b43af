"""The Overview: how each pipeline stands that the reader may see."""

from __future__ import annotations

import html
import re
from datetime import UTC, date, datetime

import httpx
import pytest

from tasks.cache.pages.estimates import hits_of, money_of
from tasks.cache.pages.overview import Run, Work
from tests.site import Site


def blocks(client: httpx.Client) -> dict[str, str]:
    """{pipeline: the text of its block}."""
    answer = client.get("/afterimage/")
    assert answer.status_code == 200
    found = {}
    for block in re.findall(r'<section class="pipeline".*?</section>', answer.text, re.DOTALL):
        text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", block))).strip()
        found[text.split()[0]] = text
    return found


def test_each_pipeline_has_a_block_with_its_last_run(admin: httpx.Client) -> None:
    found = blocks(admin)
    assert found.keys() >= {"others", "photos", "secret"}
    photos = found["photos"]
    for part in ("success", "Backlog 0 images", "124 listed:", "predicted 120", "reused 1", "failed 3", "held back: "):
        assert part in photos, part
    assert "Found in the cache 0.8%" in photos, "the twin of 124"
    assert "121 images predicted or reused 3 failed" in photos
    assert re.search(r"Rate [\d,]+ images/s", photos)


def test_pipelines_that_one_may_not_see_are_not_there(narrow: httpx.Client) -> None:
    assert blocks(narrow).keys() >= {"others", "photos"}
    assert "secret" not in narrow.get("/afterimage/").text


def test_who_may_see_none_is_told_so(site: Site) -> None:
    with site.client("nobody") as nobody:
        answer = nobody.get("/afterimage/")
    assert answer.status_code == 200
    assert "no pipeline here that you may see" in answer.text
    assert "photos" not in answer.text


def test_links_lead_to_the_run_and_to_every_page(admin: httpx.Client) -> None:
    text = admin.get("/afterimage/").text
    for page in ("browse", "review", "compare", "drift", "failures", "export"):
        assert f'href="/afterimage/pipelines/photos/{page}"' in text
    run = re.search(r'href="(/afterimage/runs/cli/[^"]+)" class="state success"', text)
    assert run is not None
    assert admin.get(html.unescape(run[1])).status_code == 200
    assert 'data-airflow href="/afterimage/../dags/predict_photos"' in text


def test_the_next_run_is_what_airflow_says(admin: httpx.Client) -> None:
    assert "Next run paused" in blocks(admin)["photos"]
    unpause = {"is_paused": False}
    assert admin.patch("/api/v2/dags/predict_others", json=unpause).status_code == 200
    try:
        assert "Next run by hand" in blocks(admin)["others"]
    finally:
        admin.patch("/api/v2/dags/predict_others", json={"is_paused": True})


def test_no_money_is_shown_where_no_price_is_set(admin: httpx.Client) -> None:
    assert "Cost" not in admin.get("/afterimage/").text


def test_a_pipeline_that_never_ran_is_there_and_a_price_makes_estimates(days_admin: httpx.Client) -> None:
    found = blocks(days_admin)
    assert "Last run none yet" in found["secret"]
    days = found["days"]
    assert re.search(r"Cost, estimated \$\d", days)
    assert re.search(r"Avoided by the cache, estimated \$\d", days), "the second run found all images of the first"
    assert re.search(r"Next run \d{4}-\d\d-\d\d \d\d:\d\d UTC", days) or "Next run paused" in days


def test_a_message_is_shown_as_text(days_admin: httpx.Client) -> None:
    text = days_admin.get("/afterimage/").text
    assert "have moved from the baseline" in text
    assert "<b>bright" not in text


LAST = Run(
    dag_id="cli",
    run_id="x",
    state="success",
    message=None,
    counts={"listed": 100, "cached": 60, "reused": 10, "predicted": 30, "failed": 0, "open": 0, "deferred": 0},
    seconds=10.0,
    worker_seconds=36.0,
    held_back_by=None,
    waiting_since=None,
    started_at=datetime(2026, 11, 1, tzinfo=UTC),
    finished_at=None,
    remaining=0,
)


def test_costs_are_those_of_workers_and_what_is_avoided_those_of_as_many_images() -> None:
    month = [Work(date(2026, 11, 1), listed=300, cached=200, reused=0, predicted=100, failed=0, worker_seconds=50.0)]
    money = money_of(LAST, month, month, price=3.6)
    assert money.last == pytest.approx(0.036)
    assert money.month == pytest.approx(0.05)
    assert money.avoided == pytest.approx(0.1), "half a second for each image"
    assert money.avoided_last == pytest.approx(0.035)
    assert money_of(LAST, month, month, price=None).month is None
    nothing = [Work(date(2026, 11, 1), listed=5, cached=5, reused=0, predicted=0, failed=0, worker_seconds=0.0)]
    assert money_of(LAST, nothing, nothing, price=3.6).avoided is None


def test_hits_are_a_share_of_what_was_listed() -> None:
    assert hits_of([LAST.counts]) == pytest.approx(0.7)
    assert hits_of([{"listed": 0, "cached": 0, "reused": 0}]) is None
