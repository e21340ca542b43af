"""The Review page with the keyboard in Chromium: what is pressed ends as rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tasks.cache import contract
from tasks.cache.database import connect
from tests.browser.chromium import chromium, signed_in
from tests.pages.conftest import seeded, site  # noqa: F401  # fixtures
from tests.site import Site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.chromium

PAGE = "/afterimage/pipelines/compared/review"


@pytest.fixture
def page(site: Site) -> Iterator[Page]:  # noqa: F811
    """Signed in as somebody who may review; nothing is said on the console, but that an answer was refused."""
    said: list[str] = []
    with chromium() as browser:
        page = signed_in(browser, site, "uma").new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
    assert [text for text in said if "422" not in text] == []


def test_answers_by_keyboard_end_as_rows(page: Page, seeded: dict[str, str]) -> None:  # noqa: F811
    from playwright.sync_api import expect

    engine = connect(seeded["AFTERIMAGE_DATABASE"])

    def rows() -> dict[str, str]:
        return {row["key"]: row["label"] for row in contract.reviews(engine, "compared")}

    page.goto(PAGE)
    key, told, place = page.locator("#key"), page.locator("#told"), page.locator("#place")
    queue = page.evaluate("JSON.parse(document.getElementById('batch').textContent).items")
    names = [item["key"] for item in queue]

    def said(number: int, label: str) -> None:
        expect(told).to_have_text(f"{queue[number]['shown']}: {label}")

    # The image is large, and it is that of the digest.
    picture = page.locator("#picture img")
    expect(picture).to_have_attribute("src", re.compile(f"thumbnails/{queue[0]['digest']}$"))
    page.wait_for_function("document.querySelector('#picture img').naturalWidth > 0")
    assert picture.bounding_box()["height"] > 300  # type: ignore[index]

    # Agree, by either key.
    expect(key).to_have_text(queue[0]["shown"])
    page.keyboard.press("a")
    said(0, queue[0]["label"])
    expect(place).to_have_text("2")
    page.keyboard.press("Enter")
    said(1, queue[1]["label"])
    assert rows() == {names[0]: queue[0]["label"], names[1]: queue[1]["label"]}
    expect(page.get_by_test_id("progress")).to_contain_text("2 reviewed, 100.0% of them agreed")

    # The second best, and a label that is looked for.
    page.keyboard.press("2")
    said(2, queue[2]["choices"][1]["label"])
    page.keyboard.press("/")
    page.keyboard.type("re")
    expect(page.locator("#matches li")).to_have_text(["red", "green"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    said(3, "red")
    assert rows()[names[2]] == queue[2]["choices"][1]["label"]
    assert rows()[names[3]] == "red"
    expect(page.get_by_test_id("progress")).to_contain_text("4 reviewed, 50.0% of them agreed")

    # In the field, letters are letters; a label that the model has not is refused with a text.
    page.keyboard.press("/")
    page.keyboard.type("ajku7")
    page.keyboard.press("Enter")
    expect(told).to_contain_text("'ajku7' is no label of small 1")
    page.keyboard.press("Escape")
    assert len(rows()) == 4

    # Back and forth, undo, and the list of the keys.
    page.keyboard.press("j")
    expect(place).to_have_text("6")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("k")
    expect(place).to_have_text("4")
    page.keyboard.press("u")
    expect(told).to_have_text("Taken back.")
    assert names[3] not in rows()
    expect(page.locator("#keys dl")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.locator("#keys dl")).to_be_visible()

    # With the mouse; Enter afterwards is for the next image, and not for that button again.
    page.locator("#choices button").nth(1).click()
    said(3, queue[3]["choices"][1]["label"])
    page.keyboard.press("Enter")
    said(4, queue[4]["label"])
    engine.dispose()


def test_the_next_images_come_when_these_are_used_up(page: Page, seeded: dict[str, str]) -> None:  # noqa: F811
    from playwright.sync_api import expect

    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    before = len(contract.reviews(engine, "compared"))
    page.goto(f"{PAGE}?margin_to=1")
    batch: dict[str, Any] = page.evaluate("JSON.parse(document.getElementById('batch').textContent)")
    for number in range(1, len(batch["items"]) + 1):
        expect(page.locator("#place")).to_have_text(str(number))
        page.keyboard.press("a")
    page.wait_for_url("**after=**")
    expect(page.locator("#place")).to_have_text("1")
    again: dict[str, Any] = page.evaluate("JSON.parse(document.getElementById('batch').textContent)")
    assert not {item["digest"] for item in batch["items"]} & {item["digest"] for item in again["items"]}
    assert len(contract.reviews(engine, "compared")) == before + len(batch["items"])

    # What was answered on the page before is taken back from here.
    page.keyboard.press("u")
    page.wait_for_url("**/review?margin_to=1")
    expect(page.locator("#key")).to_have_text(batch["items"][-1]["shown"])
    engine.dispose()


def test_a_viewer_looks_and_changes_nothing(site: Site) -> None:  # noqa: F811
    from playwright.sync_api import expect

    with chromium() as browser:
        page = signed_in(browser, site, "bob").new_page()
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        page.goto(PAGE)
        page.keyboard.press("a")
        page.keyboard.press("1")
        page.keyboard.press("/")
        page.keyboard.press("j")
        expect(page.locator("#place")).to_have_text("2")
        expect(page.get_by_role("button", name="Agree")).to_have_count(0)
        assert set(sent) == {"GET"}
