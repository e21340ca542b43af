"""The page of a run: while it goes on, when it has ended, and what it says to who may not see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import text

from tasks import road
from tasks.cache.database import connect, writing
from tasks.cache.runs import RunKey, find_staging, forget_run
from tasks.plan import RunRequest, ShardDescriptor
from tests.pages.conftest import FAILURES, IMAGES
from tests.pictures import picture, tinted_picture
from tests.runner import Runner

if TYPE_CHECKING:
    from playwright.sync_api import Page


def address(request: RunRequest) -> str:
    return f"/afterimage/runs/{quote(request.key.dag_id, safe='')}/{quote(request.key.run_id, safe='')}"


def address_of(seeded: dict[str, str], pipeline: str) -> str:
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with engine.connect() as connection:
        query = text("SELECT dag_id, run_id FROM run WHERE pipeline = :name ORDER BY run_no LIMIT 1")
        dag_id, run_id = connection.execute(query, {"name": pipeline}).one()
    engine.dispose()
    return f"/afterimage/runs/{dag_id}/{run_id}"


def squeezed(page: str) -> str:
    """The text of a page, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@dataclass
class Going:
    """A run of three shards, of which none has begun."""

    runner: Runner
    request: RunRequest
    shards: list[ShardDescriptor]

    def predict(self, number: int) -> None:
        road.predict_shard(self.shards[number], self.runner.settings)


@pytest.fixture
def going(seeded: dict[str, str], home: Path, tmp_path: Path) -> Iterator[Going]:
    """One whose images no other test sees, and which is gone afterwards."""
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number:03}.png").write_bytes(tinted_picture(500 + number))
    (tmp_path / "images" / "000 <b>odd.png").write_bytes(picture(1)[:60])
    model = Path(seeded["AFTERIMAGE_PIPELINES"]).parent / "photos"
    url = seeded["AFTERIMAGE_DATABASE"]
    runner = Runner(home, url, name="photos", images=str(tmp_path / "images"), model=str(model), workers=3)
    request, shards = runner.plan(key=RunKey("predict_photos", "manual__2026-11-26T12:00:00+00:00"))
    yield Going(runner, request, shards)
    engine = connect(url)
    forget_run(engine, find_staging(engine, request.key))
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM failure WHERE key LIKE '000 <b>%'"))
    engine.dispose()


def test_a_run_that_has_ended_shows_counts_that_add_up(admin: httpx.Client, seeded: dict[str, str]) -> None:
    page = admin.get(address_of(seeded, "photos"))
    assert page.status_code == 200
    assert f"success: {IMAGES + 1 + FAILURES} images listed" in page.text
    bars = [
        float(width) for width in re.findall(r'<rect class="part-\w+" x="[\d.]+" y="0" width="([\d.]+)"', page.text)
    ]
    assert sum(bars) == pytest.approx(1000, abs=0.1)
    for name, images in (("predicted", IMAGES), ("reused", 1), ("failed", FAILURES)):
        assert re.search(rf'part-{name}"></span>{name}</th>\s*<td class="number">{images}</td>', page.text), name
    told = squeezed(page.text)
    assert "Where the time went" in told
    assert "Held back:" in told
    assert re.search(r"decode: [^,]+, busy \d+% [\d.,]+ \d+% 12[0-4] ", told)
    assert 'data-live="ended"' in page.text


def test_failures_and_the_least_certain_lead_on(admin: httpx.Client, seeded: dict[str, str]) -> None:
    page = admin.get(address_of(seeded, "photos")).text
    assert (
        f'/pipelines/photos/failures?reason=truncated">truncated</a></th>\n    <td class="number">{FAILURES}</td>'
        in page
    )
    assert "broken-0.png" in page
    assert page.count('data-testid="card"') == 12
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with engine.connect() as connection:
        query = (
            "SELECT min(i.key) FROM prediction p JOIN image i ON i.digest = p.digest AND i.key LIKE '%s/0%' "
            "WHERE p.run_no = (SELECT min(run_no) FROM run WHERE pipeline = 'photos') "
            "GROUP BY p.digest ORDER BY p.margin LIMIT 12"
        )
        least = list(connection.execute(text(query)).scalars())
    engine.dispose()
    shown = re.findall(r'data-testid="card" href="[^"]*key=([^"]+)"', page)
    assert sorted(shown) == sorted(quote(key, safe="") for key in least)


def test_a_run_that_goes_on_says_how_far_it_has_come(admin: httpx.Client, going: Going) -> None:
    before = admin.get(address(going.request))
    assert "running: 31 images listed" in before.text
    assert 'data-live="running"' in before.text
    assert "0 of 31 to be read · shards 0 of 3 done · no shard is at work" in squeezed(before.text)

    going.predict(0)
    page = admin.get(address(going.request)).text
    told = squeezed(page)
    first = going.shards[0].count
    assert f"{first} of 31 images are through · {first} of 31 to be read · shards 1 of 3 done" in told
    assert f'part-open"></span>open</th>\n    <td class="number">{31 - first}</td>' in page
    assert re.search(rf"1 {first} of {first} {first} [\d,]+ cpu \S* ?[\d.]+ s ago done", told), told
    assert "Held back so far:" in told
    assert "000 &lt;b&gt;odd.png" in page
    assert "<b>odd" not in page
    assert (
        '<a data-airflow href="/afterimage/../dags/predict_photos/runs/manual__2026-11-26T12%3A00%3A00%2B00%3A00">'
        in page
    )
    assert "/assets/live.js" in page


def test_a_shard_at_work_gives_a_rate_and_a_time(admin: httpx.Client, going: Going, seeded: dict[str, str]) -> None:
    going.predict(0)
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    part = "run_no = :run_no AND shard = 1"
    with writing(engine) as connection:  # As a shard of 10 images leaves its row in the middle of its work.
        connection.execute(
            text(
                f"UPDATE shard SET working = 1, reads = 4, done = 4, seconds = 2, updated_at = "
                f"(SELECT max(updated_at) FROM shard) WHERE {part}"
            ),
            {"run_no": going.shards[0].run_no},
        )
    told = squeezed(admin.get(address(going.request)).text)
    left = (31 - going.shards[0].count - 4) / 2
    assert f"shards 1 of 3 done · 2 images/s · about {left:.1f} s left" in told
    with writing(engine) as connection:
        connection.execute(
            text(f"UPDATE shard SET updated_at = '2026-01-01 00:00:00.000000' WHERE {part}"),
            {"run_no": going.shards[0].run_no},
        )
    assert "no shard is at work at the moment" in squeezed(admin.get(address(going.request)).text)
    assert "stopped" in squeezed(admin.get(address(going.request)).text)
    engine.dispose()


def test_counts_stay_when_the_rows_are_gone(admin: httpx.Client, going: Going, seeded: dict[str, str]) -> None:
    for number in range(3):
        going.predict(number)
    road.publish_run(going.request, going.runner.settings)
    assert "least certain" in admin.get(address(going.request)).text.lower()
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:
        for table in ("work_item", "shard"):
            connection.execute(text(f"DELETE FROM {table} WHERE run_no = :run_no"), {"run_no": going.shards[0].run_no})
    page = admin.get(address(going.request)).text
    assert "success: 31 images listed" in page
    assert "The rows of this run's images are gone" in page
    assert "Where the time went" in page
    engine.dispose()


def test_a_run_of_another_dag_is_told_of_politely(admin: httpx.Client) -> None:
    page = admin.get("/afterimage/runs/other_dag/manual__1")
    assert page.status_code == 200
    assert "This run has no images" in page.text


def test_a_run_of_a_pipeline_that_one_may_not_see_is_refused(
    admin: httpx.Client, narrow: httpx.Client, seeded: dict[str, str]
) -> None:
    """It is one of the command line, whose DAG they may see."""
    hidden = address_of(seeded, "secret")
    assert hidden.startswith("/afterimage/runs/cli/")
    assert admin.get(hidden).status_code == 200
    assert narrow.get(hidden).status_code == 403
    assert narrow.get(address_of(seeded, "photos")).status_code == 200


@pytest.mark.chromium
def test_the_page_refreshes_itself_until_the_run_has_ended(browser_page: Page, going: Going) -> None:
    from playwright.sync_api import expect

    page = browser_page
    page.goto(address(going.request))
    page.evaluate("window.stayed = true")
    expect(page.get_by_test_id("progress")).to_contain_text("shards 0 of 3 done")
    for number in range(3):
        going.predict(number)
    expect(page.get_by_test_id("progress")).to_contain_text("shards 3 of 3 done · to be published", timeout=15_000)
    road.publish_run(going.request, going.runner.settings)
    expect(page.get_by_role("heading", level=1)).to_have_text("success: 31 images listed", timeout=15_000)
    expect(page.locator("[data-live]")).to_have_attribute("data-live", "ended")
    assert page.evaluate("window.stayed") is True, "no page was loaded anew"
    requests = list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_timeout(3500)
    assert requests == []
