"""A site over real runs: the pipelines `photos` and `others` over one bucket, and `secret`, which not everybody may see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.pictures import picture, tinted_picture, write_small_bundle
from tests.runner import Runner
from tests.site import Site, serving_site

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = 120
FAILURES = 3
MODEL_SEEDS = {"photos": 0, "others": 1, "secret": 2}

PIPELINES = """
[photos]
images = "{images}"
model = "{photos}"

[others]
images = "{images}"
model = "{others}"

[secret]
images = "{hidden}"
model = "{secret}"
"""


def write_images(folder: Path, count: int = IMAGES, failures: int = FAILURES) -> list[str]:
    """Pictures in two folders, two of which have the same bytes, and some files that are none; the keys that can be predicted."""
    keys = [f"{'cats' if number % 2 else 'dogs'}/{number:04}.png" for number in range(count)]
    for number, key in enumerate(keys):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tinted_picture(number))
    shutil.copyfile(folder / keys[0], folder / "dogs" / "twin.png")
    for number in range(failures):
        (folder / "dogs" / f"broken-{number}.png").write_bytes(picture(number)[:60])
    return sorted([*keys, "dogs/twin.png"])


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory, home: Path) -> dict[str, str]:
    """Environment of a site whose pipelines have run, on SQLite."""
    folder = tmp_path_factory.mktemp("pages")
    write_images(folder / "images")
    for number in range(5):
        path = folder / "hidden" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tinted_picture(number))  # twins of the first images of the others
    models = {name: write_small_bundle(folder / name, seed) for name, seed in MODEL_SEEDS.items()}
    file = folder / "pipelines.toml"
    file.write_text(PIPELINES.format(images=folder / "images", hidden=folder / "hidden", **models))
    url = f"sqlite:///{folder / 'cache.db'}"
    for name, model in models.items():
        images = folder / ("hidden" if name == "secret" else "images")
        Runner(home, url, name=name, images=str(images), model=str(model)).run()
    return {"AFTERIMAGE_DATABASE": url, "AFTERIMAGE_PIPELINES": str(file), "AFTERIMAGE_HOME": str(folder / "home")}


@pytest.fixture(scope="session")
def site(seeded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The pages over what was seeded. Tests that write do so in ways that the others do not see."""
    with serving_site(tmp_path_factory.mktemp("airflow"), seeded) as found:
        yield found


@pytest.fixture
def admin(site: Site) -> Iterator[httpx.Client]:
    """Who may do everything."""
    with site.client("admin") as client:
        yield client


@pytest.fixture
def viewer(site: Site) -> Iterator[httpx.Client]:
    """Who may see everything and change nothing."""
    with site.client("bob") as client:
        yield client


@pytest.fixture
def narrow(site: Site) -> Iterator[httpx.Client]:
    """Who may not see the pipeline `secret`."""
    with site.client("narrow") as client:
        yield client


@pytest.fixture
def anonymous(site: Site) -> Iterator[httpx.Client]:
    """Nobody in particular."""
    with site.client(None) as client:
        yield client


@pytest.fixture
def browser_page(site: Site) -> Iterator[Page]:
    """Chromium, signed in as who may do everything; the test fails where our page breaks its own policy."""
    from playwright.sync_api import sync_playwright

    from tests.browser.test_ui import FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        context = browser.new_context(base_url=site.address)
        context.add_cookies([{"name": "_token", "value": site.token("admin"), "url": site.address}])
        page, said = context.new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        yield page
        browser.close()
        assert [text for text in said if "Content Security Policy" in text] == []
