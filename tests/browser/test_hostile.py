"""Markup in keys, labels, model names and EXIF stays text on every page, in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from PIL import Image

from tests.browser.chromium import chromium, signed_in
from tests.integration.test_hostile_keys import KEYS
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner
from tests.site import Site, serving_site

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.chromium

SCRIPT = "<script>window.planted=1</script>"
IMAGE = "<img src=x onerror=window.planted=1>"
QUOTE = '" autofocus onfocus="window.planted=1" x="'
HOSTILE = (
    f"{SCRIPT}.png",
    f"{QUOTE}.png",
    "javascript:window.planted=1.png",
    "a/../../b%2fc?d=e&f#g.png",
    "</title></style></textarea><svg onload=window.planted=1>.png",
    *KEYS,
)
LABELS = (SCRIPT, IMAGE, QUOTE, "{{ 7 * 7 }}")
PAGES = ("browse", "browse?order=uncertain", "review", "compare", "drift", "failures", "export")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Site]:
    """A pipeline whose every text is hostile, run by two models."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, key in enumerate(HOSTILE):
        path = folder / "images" / key.replace("..", "dots")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(described(number) if number % 3 else SCRIPT.encode() * 3)
    models = [write_small_bundle(folder / str(seed), seed, labels=LABELS, name=f"{SCRIPT}{seed}") for seed in (1, 2)]
    url = f"sqlite:///{folder / 'cache.db'}"
    table = f'[photos]\nimages = "{folder / "images"}"\nmodel = "{models[1]}"\nthumbnails = "{folder / "thumbnails"}"\n'
    (folder / "pipelines.toml").write_text(table)
    for model in models:
        images, thumbnails = str(folder / "images"), str(folder / "thumbnails")
        Runner(home, url, name="photos", images=images, thumbnails=thumbnails, model=str(model)).run()
    environment = {"AFTERIMAGE_DATABASE": url, "AFTERIMAGE_PIPELINES": str(folder / "pipelines.toml")}
    with serving_site(tmp_path_factory.mktemp("airflow"), environment) as found:
        yield found


def described(number: int) -> bytes:
    """A picture whose EXIF says something hostile."""
    exif = Image.Exif()
    exif[0x010E] = SCRIPT
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(number))).save(out, "PNG", exif=exif)
    return out.getvalue()


@pytest.fixture(scope="module")
def profile(site: Site) -> Iterator[BrowserContext]:
    with chromium() as browser:
        yield signed_in(browser, site, "admin")


def addresses(site: Site) -> list[str]:
    """Every page of the pipeline, and the page of every image."""
    with site.client("admin") as client:
        runs = client.get("/afterimage/api/pipelines/photos/runs").json()["runs"]
        images = client.get("/afterimage/api/pipelines/photos/predictions").json()["predictions"]
    assert len(images) > len(HOSTILE) / 2
    return [
        "",
        *(f"runs/{quote(run['dag_id'])}/{quote(run['run_id'])}" for run in runs),
        *(f"pipelines/photos/{page}" for page in PAGES),
        *(f"pipelines/photos/image?key={quote(image['key'], safe='')}" for image in images),
        f"pipelines/photos/browse?label={quote(SCRIPT)}&prefix={quote(SCRIPT)}",
        f"pipelines/photos/failures?reason={quote(SCRIPT)}",
        f"pipelines/photos/browse?contains={quote(QUOTE)}",
    ]


def test_what_others_wrote_stays_text(site: Site, profile: BrowserContext) -> None:
    page = profile.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("dialog", lambda dialog: said.append(f"{page.url}: {dialog.message}"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for address in addresses(site):
        answer = page.goto(f"/afterimage/{address}")
        assert answer is not None
        assert answer.status == 200, address
        assert page.evaluate("window.planted") is None, address
        assert page.locator("script:not([src]):not([type='application/json'])").count() == 0, address
        assert page.locator("[onerror], [onload], [onfocus], [style]").count() == 0, address
        assert page.locator("a[href^='javascript:']").count() == 0, address
        assert "49" not in page.locator("main").inner_text().split(), address
    # 400 and 404 of an asset would be said here, and whatever the Content-Security-Policy kept out.
    assert said == []
    assert [url for url in asked if not url.startswith(site.address)] == []
