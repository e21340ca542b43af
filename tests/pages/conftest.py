"""A site over real runs: the pipelines `photos` and `others` over one bucket, `secret`, which not everybody may see, and
`compared`, which has run with two models."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.chromium import chromium, signed_in
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
thumbnails = "{thumbnails}"

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


# A pipeline with two models, over images of its own: some thirty of the sixty are seen alike.
COMPARED_IMAGES = 60
HOSTILE_KEY = "a&b #1%20/<script>alert('x')\u202e\n\"?.png"
COMPARED_SEEDS = {"before": 1, "current": 7}
COMPARED = """
[compared]
images = "{images}"
model = "{current}"
thumbnails = "{thumbnails}"
"""


def run_compared(folder: Path, home: Path, url: str) -> str:
    """Run `compared` with one model and then with the other; its table for pipelines.toml."""
    keys = [f"{number:03}.png" for number in range(COMPARED_IMAGES - 1)] + [HOSTILE_KEY]
    for number, key in enumerate(keys, start=1_000):
        path = folder / "compared" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tinted_picture(number))
    models = {name: write_small_bundle(folder / f"compared-{name}", seed) for name, seed in COMPARED_SEEDS.items()}
    table = {"images": str(folder / "compared"), "thumbnails": str(folder / "compared-thumbnails")}
    for model in models.values():
        Runner(home, url, name="compared", model=str(model), **table).run()
    return COMPARED.format(**table, **models)


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
    file.write_text(
        PIPELINES.format(images=folder / "images", hidden=folder / "hidden", thumbnails=folder / "thumbnails", **models)
    )
    url = f"sqlite:///{folder / 'cache.db'}"
    for name, model in models.items():
        images = folder / ("hidden" if name == "secret" else "images")
        small = {"thumbnails": str(folder / "thumbnails")} if name == "photos" else {}
        Runner(home, url, name=name, images=str(images), model=str(model), **small).run()
    file.write_text(file.read_text() + run_compared(folder, home, url))
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


DAYS = """
[days]
images = "{images}"
model = "{model}"
schedule = "@daily"
baseline = ["2026-10-01", "2026-10-03"]
drift_limit = 0.25

[secret]
images = "{images}"
model = "{model}"
"""
# What the model of `days` calls dark and bright images: text that would be taken for more than text.
DAYS_LABELS = ("never", "<b>bright</b>", "dim & dark", "blue")


@pytest.fixture(scope="session")
def days_seeded(tmp_path_factory: pytest.TempPathFactory, home: Path) -> dict[str, str]:
    """Environment of a site whose images are of ten days in October: half of them bright for six days, then most of them;
    and few on the eighth."""
    from tasks.errors import DriftExceeded
    from tests.integration.test_drift import write_images as write_grey

    folder = tmp_path_factory.mktemp("days")
    model = write_small_bundle(folder / "model", 10, labels=DAYS_LABELS)
    for day in range(10):
        bright, dark = (5, 5) if day == 7 else (30, 30) if day < 6 else (54, 6)
        write_grey(folder / "images", day * 100, bright, day, 200)
        write_grey(folder / "images", day * 100 + bright, dark, day, 0)
    file = folder / "pipelines.toml"
    file.write_text(DAYS.format(images=folder / "images", model=model))
    url = f"sqlite:///{folder / 'cache.db'}"
    with contextlib.suppress(DriftExceeded):
        runner = Runner(home, url, name="days", images=str(folder / "images"), model=str(model))
        runner.run()
        limited = {"baseline": (date(2026, 10, 1), date(2026, 10, 3)), "drift_limit": 0.25}
        write_grey(folder / "images", 5000, 60, 11, 200)
        Runner(home, url, name="days", images=str(folder / "images"), model=str(model), **limited).run()
    home = folder / "home"
    return {
        "AFTERIMAGE_DATABASE": url,
        "AFTERIMAGE_PIPELINES": str(file),
        "AFTERIMAGE_HOME": str(home),
        "AFTERIMAGE_COST_PER_HOUR": "3600",
    }


@pytest.fixture(scope="session")
def days_site(days_seeded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site of its own, with a price, over images of several days."""
    with serving_site(tmp_path_factory.mktemp("airflow-days"), days_seeded) as found:
        yield found


@pytest.fixture
def days_admin(days_site: Site) -> Iterator[httpx.Client]:
    """Who may do everything there."""
    with days_site.client("admin") as client:
        yield client


@pytest.fixture
def browser_page(site: Site) -> Iterator[Page]:
    """Chromium, signed in as who may do everything; the test fails where our page breaks its own policy."""
    with chromium() as browser:
        page, said = signed_in(browser, site, "admin").new_page(), list[str]()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        yield page
        assert [text for text in said if "Content Security Policy" in text] == []
