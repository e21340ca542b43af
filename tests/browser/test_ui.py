"""`make ui` as a user meets it in Chromium: sign in, fill the form, trigger, and read what became of the images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import free_port, outer_environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.chromium, pytest.mark.alone]

# Without a schedule: Trigger lets a paused DAG run, and a scheduled run would be first to predict.
PIPELINE = '[digits]\nimages = "bucket"\nmodel = "model"\n'
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


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
    deadline = time.monotonic() + 240
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


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """Chromium, signed in through the form."""
    from playwright.sync_api import sync_playwright

    base, password = address.split()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page = browser.new_page(base_url=base, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto("/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/auth/" not in url)
        yield page
        browser.close()


def test_trigger_with_the_form_and_read_the_counts_in_the_tab(page: Page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    pictures = Path(os.environ.get("AFTERIMAGE_TEST_SCREENSHOTS", tmp_path))
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
    page.screenshot(path=pictures / "run.png")
    page.locator("a[href$='/plugin/afterimage_run']").click()
    frame = page.frame_locator("iframe[title='Predictions']")
    expect(frame.get_by_role("heading")).to_contain_text("success: 1,804 images listed")
    expect(frame.locator("tr", has_text="failed")).to_contain_text("3")
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
