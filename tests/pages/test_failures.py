"""The page of failures, and its buttons: who may press them, what they reach, and what the next run makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import httpx
import pytest
from sqlalchemy import text

from tasks.cache.database import connect, writing
from tests.pages.conftest import FAILURES
from tests.pages.test_run import squeezed
from tests.pictures import picture
from tests.runner import Runner, outcomes

if TYPE_CHECKING:
    from playwright.sync_api import Page


PAGE, RETRIES = "/afterimage/pipelines/broken/failures", "/afterimage/pipelines/broken/retries"
ODD = "%41 <script>alert(1)<x>\u202e'\"?#&.png"


@pytest.fixture(scope="module")
def broken(seeded: dict[str, str], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A pipeline of its own, with more failures than a page holds."""
    folder = tmp_path_factory.mktemp("broken")
    for number in range(56):
        (folder / f"{number:03}.png").write_bytes(picture(number)[:60])
    for key in ("empty.png", ODD):
        (folder / key).write_bytes(b"")
    model = Path(seeded["AFTERIMAGE_PIPELINES"]).parent / "photos"
    runner = Runner(home, seeded["AFTERIMAGE_DATABASE"], name="broken", images=str(folder), model=str(model))
    runner.run()
    return runner


def keys(page: str) -> list[str]:
    return re.findall(r'<td class="key">([^<]*)<div', page)


def test_reasons_with_their_counts_and_ages(admin: httpx.Client, broken: Runner) -> None:
    told = squeezed(admin.get(PAGE).text)
    assert re.search(r"truncated 56 [\d.]+ (s|min) ago [\d.]+ (s|min) ago permanent", told)
    assert re.search(r"empty 2 [\d.]+ (s|min) ago [\d.]+ (s|min) ago permanent", told)


def test_pages_lead_through_all_of_them(admin: httpx.Client, broken: Runner) -> None:
    first = admin.get(PAGE).text
    assert len(keys(first)) == 50
    following = re.search(r'href="(\?[^"]*before=[^"]*)"', first)
    assert following is not None
    second = admin.get(PAGE + following[1].replace("&amp;", "&")).text
    assert len({*keys(first), *keys(second)}) == 58
    assert "Older failures" not in second
    assert admin.get(f"{PAGE}?before=yesterday").status_code == 400


def test_filters_stand_in_the_address(admin: httpx.Client, broken: Runner) -> None:
    assert sorted(keys(admin.get(f"{PAGE}?reason=empty").text))[-1] == "empty.png"
    assert len(keys(admin.get(f"{PAGE}?reason=empty").text)) == 2
    assert sorted(keys(admin.get(f"{PAGE}?key=05&reason=truncated").text)) == [
        f"{number:03}.png" for number in range(50, 56)
    ]
    odd = admin.get(PAGE, params={"key": ODD[:10]})
    assert "<script>alert" not in odd.text
    assert "%41 &lt;script&gt;alert(1)&lt;x&gt;\\u202e&#39;&#34;?#&amp;.png" in odd.text
    assert "No failure is like that." in admin.get(f"{PAGE}?reason=decoder_crash").text


def test_a_pipeline_shows_its_own_failures(admin: httpx.Client, broken: Runner) -> None:
    assert len(keys(admin.get("/afterimage/pipelines/photos/failures").text)) == FAILURES
    assert "There are none." in admin.get("/afterimage/pipelines/secret/failures").text
    assert admin.get("/afterimage/pipelines/unknown/failures").status_code == 404


def test_buttons_are_shown_to_who_may_press_them(admin: httpx.Client, viewer: httpx.Client, broken: Runner) -> None:
    assert "data-retry" in admin.get(f"{PAGE}?key=empty").text
    page = viewer.get(f"{PAGE}?key=empty").text
    assert keys(page) == ["empty.png"]
    assert '<button type="button"' not in page
    assert viewer.post(RETRIES, json={"key": "empty.png"}).status_code == 403


def test_a_retry_is_tried_by_the_next_run(admin: httpx.Client, broken: Runner) -> None:
    def attempts(key: str) -> int:
        rows = broken.rows(
            "SELECT attempts FROM v_failure WHERE key = :key AND model_id = :model", key=key, model=model
        )
        return int(rows[0]["attempts"])

    model = broken.rows("SELECT model_id FROM v_run WHERE pipeline = 'broken'")[0]["model_id"]
    assert admin.post(RETRIES, json={"key": ODD}).json() == {"marked": 1}
    answer = admin.post(RETRIES, json={"key": "empty.png", "start": True}).json()
    assert answer == {
        "marked": 1,
        "start": "/afterimage/../api/v2/dags/predict_broken/dagRuns",
        "runs": "/afterimage/../dags/predict_broken/runs/",
    }
    assert re.search(r"empty 2 [^U]* UTC", squeezed(admin.get(PAGE).text))
    assert outcomes(broken.run()) == {"known_bad": 56, "failed": 2}
    assert (attempts(ODD), attempts("empty.png"), attempts("000.png")) == (2, 2, 1)
    assert admin.post(RETRIES, json={"reason": "truncated"}).json() == {"marked": 56}
    assert outcomes(broken.run()) == {"known_bad": 2, "failed": 56}


def test_a_retry_reaches_no_other_pipeline(admin: httpx.Client, broken: Runner) -> None:
    assert admin.post("/afterimage/pipelines/photos/retries", json={"key": "empty.png"}).json() == {"marked": 0}
    assert admin.post(RETRIES, json={"key": "dogs/broken-0.png"}).json() == {"marked": 0}
    assert admin.post(RETRIES, json={}).json() == {"marked": 0}, "none of them passes by itself"
    for wrong in ({"reason": ""}, {"other": 1}, {"key": 3}):
        assert admin.post(RETRIES, json=wrong).status_code == 422
    assert admin.post("/afterimage/pipelines/unknown/retries", json={}).status_code == 404


@pytest.mark.chromium
def test_a_button_marks_and_has_airflow_start_a_run(
    browser_page: Page, admin: httpx.Client, seeded: dict[str, str]
) -> None:
    from playwright.sync_api import expect

    page = browser_page
    page.goto("/afterimage/pipelines/photos/failures")
    page.get_by_role("button", name="Retry truncated", exact=True).click()
    expect(page.get_by_test_id("told")).to_have_text(f"{FAILURES} images are due: the next run tries again.")
    page.get_by_role("button", name="Retry dogs/broken-1.png and start a run").click()
    expect(page.get_by_test_id("told")).to_contain_text("1 image is due")
    link = page.get_by_test_id("told").get_by_role("link")
    expect(link).to_have_attribute("href", re.compile(r"^/afterimage/\.\./dags/predict_photos/runs/manual__"))
    run_id = unquote(str(link.get_attribute("href")).rsplit("/", 1)[1])
    run = admin.get(f"/api/v2/dags/predict_photos/dagRuns/{quote(run_id, safe='')}").json()
    assert (run["run_type"], run["triggering_user_name"]) == ("manual", "admin")
    admin.delete(f"/api/v2/dags/predict_photos/dagRuns/{quote(run_id, safe='')}")
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:  # As the other tests expect them.
        connection.execute(text("UPDATE failure SET next_retry_at = NULL WHERE reason = 'truncated'"))
    engine.dispose()
