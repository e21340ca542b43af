"""`make ui` as a user meets it in Chromium: trigger a run with the form, then see, judge and steer it on the pages.

The tests follow each other, as a user does: the first one triggers the run that the others look at. With
AFTERIMAGE_TEST_SCREENSHOTS=FOLDER the pages are kept as pictures, as docs/pages.md shows them.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.chromium import chromium
from tests.conftest import free_port, outer_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

pytestmark = [pytest.mark.chromium, pytest.mark.alone]

# Without a schedule: Trigger lets a paused DAG run, and a scheduled run would be first to predict.
PIPELINE = """
[digits]
images = "bucket"
model = "model"
thumbnails = "thumbnails"
baseline = ["2026-10-01", "2026-10-07"]
"""
PAGES = ("browse", "review", "compare", "drift", "failures", "export")
WIDTHS = (1280, 800)
# The page itself, and tables that could be scrolled sideways, in which something would be out of sight.
TOO_WIDE = """root => [root, ...root.querySelectorAll(".scroll")]
    .filter(one => one.scrollWidth > one.clientWidth).map(one => `${one.className}: ${one.scrollWidth} > ${one.clientWidth}`)"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `make ui` listens, once it does."""
    folder = tmp_path_factory.mktemp("ui")
    (folder / "pipelines.toml").write_text(PIPELINE)
    port = free_port()
    environment = outer_environment(
        AIRFLOW_HOME=str(folder / "airflow"),
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()),
        AFTERIMAGE_HOME=str(folder / "home"),
        AFTERIMAGE_PIPELINES=str(folder / "pipelines.toml"),
        AFTERIMAGE_COST_PER_HOUR="1.2",
    )
    log = folder / "ui.log"
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "demo.ui"]
        ui = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for_health(port, ui, log)
        assert f"http://localhost:{port}" in log.read_text()
        yield f"http://127.0.0.1:{port} {_password(folder / 'airflow', log)}"
    finally:
        _end(ui)
    assert not (folder / "airflow" / "postgres" / "postmaster.pid").exists(), "PostgreSQL was left behind"
    assert ui.returncode == 0, log.read_text()[-3000:]


def _end(ui: subprocess.Popen[bytes]) -> None:
    """As whoever closes the terminal ends it; SIGKILL to the whole group where that takes too long."""
    try:
        ui.send_signal(signal.SIGHUP)
        ui.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait(5)


def _wait_for_health(port: int, ui: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert ui.poll() is None, log.read_text()[-3000:]
        try:
            health = httpx.get(f"http://127.0.0.1:{port}/api/v2/monitor/health", timeout=10).json()
            if all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor")):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def _password(airflow_home: Path, log: Path) -> str:
    password: str = json.loads((airflow_home / "passwords.json").read_text())["admin"]
    assert f"the password {password}" in log.read_text()
    return password


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Signed in through the form."""
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    base, password = address.split()
    page = browser.new_page(base_url=base, viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(60_000)
    page.goto("/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/auth/" not in url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    given = os.environ.get("AFTERIMAGE_TEST_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def overview(page: Page) -> FrameLocator:
    """The frame of the pages, opened from Airflow's own navigation."""
    page.goto("/")
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Predictions").click()
    return page.frame_locator("iframe[title='Predictions']")


def test_trigger_with_the_form_and_read_the_counts_in_the_tab(page: Page, pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto("/dags/predict_digits")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    for title in ("Window start", "Window end"):
        expect(form.get_by_text(title).first).to_be_visible()
    for kind, title in (("checkbox", "Recompute"), ("spinbutton", "Limit"), ("checkbox", "Dry run")):
        expect(form.get_by_role(kind, name=title)).to_have_count(1)  # type: ignore[arg-type]
    page.screenshot(path=pictures / "trigger-form.png")
    form.get_by_role("button", name="Trigger").last.click()

    run_id = _finished(page)
    page.goto(f"/dags/predict_digits/runs/{run_id}")
    page.locator("a[href$='/plugin/afterimage_run']").click()
    frame = page.frame_locator("iframe[title='Predictions']")
    expect(frame.get_by_role("heading").first).to_contain_text("success: 1,804 images listed")
    expect(frame.locator("tr", has_text="failed").first).to_contain_text("3")
    page.screenshot(path=pictures / "tab.png")


def _finished(page: Page) -> str:
    """The run that the form has started, when it has ended well."""
    deadline = time.monotonic() + 240
    runs: list[dict[str, str]] = []
    while time.monotonic() < deadline:
        answer = page.request.get("/api/v2/dags/predict_digits/dagRuns")
        runs = [run for run in answer.json()["dag_runs"] if run["run_type"] == "manual"]
        if runs and runs[0]["state"] in ("success", "failed"):
            assert runs[0]["state"] == "success"
            return runs[0]["dag_run_id"]
        page.wait_for_timeout(1000)
    raise TimeoutError(f"the run did not end: {runs}")


def test_every_page_opens_from_the_overview(page: Page, overview: FrameLocator) -> None:
    from playwright.sync_api import expect

    for name in PAGES:
        expect(overview.get_by_role("heading").first).to_be_visible()
        overview.get_by_role("link", name=name.capitalize(), exact=True).first.click()
        expect(page).to_have_url(re.compile(rf"/pipelines/digits/{name}"))
        expect(overview.locator(f"nav a[href*='/{name}'][aria-current=page]")).to_be_visible()
        overview.get_by_role("link", name="Overview", exact=True).click()


def test_filter_and_go_through_the_pages_of_a_label(page: Page, overview: FrameLocator) -> None:
    from playwright.sync_api import expect

    overview.get_by_role("link", name="Browse", exact=True).first.click()
    overview.locator("[name=label]").first.fill("7")
    overview.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile("label=7"))
    cards = overview.get_by_test_id("card")
    expect(cards).to_have_count(48)
    first = cards.first.inner_text()
    assert all(re.search(r"^7$", card, re.MULTILINE) for card in cards.all_inner_texts())
    image = cards.first.locator("img")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 0, "the thumbnail did not load"
    overview.get_by_role("link", name="Next page").click()
    expect(page).to_have_url(re.compile("label=7.*after"))
    expect(overview.get_by_test_id("card").first).not_to_have_text(first)
    page.reload()  # the filter lives in the address
    expect(overview.get_by_test_id("card").first).not_to_have_text(first)


def test_review_an_image_with_the_keyboard(page: Page, overview: FrameLocator) -> None:
    from playwright.sync_api import expect

    overview.get_by_role("link", name="Review", exact=True).first.click()
    expect(overview.get_by_text(re.compile("0 reviewed", re.IGNORECASE))).to_be_visible()
    overview.locator("body").press("a")
    expect(overview.get_by_text(re.compile("1 reviewed", re.IGNORECASE))).to_be_visible()
    rows = page.request.get("/afterimage/api/pipelines/digits/reviews").json()["reviews"]
    assert [row["reviewer"] for row in rows] == ["admin"]


def test_retry_a_failure_and_start_a_run(page: Page, overview: FrameLocator) -> None:
    from playwright.sync_api import expect

    overview.get_by_role("link", name="Failures", exact=True).first.click()
    row = overview.locator("tr", has_text="damaged/cut-off.png").first
    expect(row).to_be_visible()
    row.get_by_role("button", name="Retry damaged/cut-off.png", exact=True).click()
    expect(overview.locator("output").first).to_contain_text("1")
    failures = page.request.get("/afterimage/api/pipelines/digits/failures").json()["failures"]
    due = [row["key"] for row in failures if row["next_retry_at"] is not None]
    assert due == ["damaged/cut-off.png"]


def test_export_what_the_filter_counts(page: Page, overview: FrameLocator) -> None:
    overview.get_by_role("link", name="Browse", exact=True).first.click()
    overview.locator("[name=label]").first.fill("7")
    overview.get_by_role("button", name="Show").click()
    overview.get_by_role("link", name="Export these").click()
    told = overview.get_by_test_id("rows-predictions").inner_text()
    with page.expect_download() as download:
        overview.get_by_role("link", name="CSV").first.click()
    path = download.value.path()
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["label"] for row in rows} == {"7"}
    assert told == f"{len(rows):,}"
    assert str(len(rows)) in download.value.suggested_filename


def test_a_link_to_airflow_leaves_the_frame_and_back_returns(page: Page, overview: FrameLocator) -> None:
    from playwright.sync_api import expect

    overview.locator("a[data-airflow]").first.click()
    expect(page).to_have_url(re.compile(r"/dags/predict_digits"))
    expect(page.locator("iframe[title='Predictions']")).to_have_count(0)
    page.go_back()
    expect(page.frame_locator("iframe[title='Predictions']").get_by_role("heading").first).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_cut_or_overlaps(page: Page, pictures: Path, theme: str) -> None:
    """No page is wider than its frame, and none is told off by its own Content-Security-Policy."""
    from playwright.sync_api import expect

    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    run_id = _finished(page)
    shown = {"overview": "", "run": f"runs/predict_digits/{run_id}"}
    shown |= {name: f"pipelines/digits/{name}" for name in PAGES}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1100})
        for name, path in shown.items():
            page.goto(f"/plugin/afterimage/afterimage/{path}")
            frame = page.frame_locator("iframe[title='Predictions']")
            expect(frame.locator("main")).to_be_visible()
            expect(frame.locator(f":root[data-theme={theme}]")).to_have_count(1)
            page.wait_for_load_state("networkidle")
            wide = frame.locator("html").evaluate(TOO_WIDE)
            page.screenshot(path=pictures / f"{name}-{theme}-{width}.png")
            assert wide == [], f"{name} at {width}: wider than there is room"
    assert [text for text in said if "Content Security Policy" in text] == []
