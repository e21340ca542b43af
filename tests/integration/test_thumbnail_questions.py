"""Whose picture a digest is: what the pages and a shard ask the cache about thumbnails, on both databases."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tasks.cache.database import connect, reading
from tasks.cache.pages.thumbnails import is_of_pipeline
from tasks.cache.runs import find_staging
from tasks.cache.thumbnails import forgotten_digests
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner

BROKEN = picture(9)[:60]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.fixture
def runner(tmp_path: Path, home: Path, database_url: str) -> Runner:
    """`a` looks at one day under `Raw_`, where picture 0 and 1 lie and a broken file; picture 2 and 3 lie beside it."""
    write_pictures(tmp_path / "images" / "Raw_2026-01-01", 2)
    (tmp_path / "images" / "Raw_2026-01-01" / "broken.png").write_bytes(BROKEN)
    write_pictures(tmp_path / "images" / "raw_2026-01-01", 1, start=2)
    write_pictures(tmp_path / "images" / "RawX2026-01-01", 1, start=3)
    model = write_small_bundle(tmp_path / "model")
    for name, images in (("a", "Raw_{{ ds }}/"), ("all", ""), ("never", "")):
        found = Runner(home, database_url, name=name, images=str(tmp_path / "images" / images), model=str(model))
        if name != "never":
            found.run()
    return found


@pytest.fixture
def engine(runner: Runner) -> Engine:
    return connect(runner.settings.database_url)


def test_only_what_lies_under_the_pipelines_prefix_is_its_own(engine: Engine) -> None:
    """To the letter: `_` is no placeholder, and small letters are not large ones."""
    seen = {
        seed: (is_of_pipeline(engine, "a", sha(picture(seed))), is_of_pipeline(engine, "all", sha(picture(seed))))
        for seed in range(5)
    }
    assert seen == {0: (True, True), 1: (True, True), 2: (False, True), 3: (False, True), 4: (False, False)}


def test_a_pipeline_that_never_ran_has_nothing(engine: Engine) -> None:
    assert not is_of_pipeline(engine, "never", sha(picture(0)))


@pytest.mark.parametrize(
    ("name", "key", "is_its_own"),
    [
        ("a", "Raw_2026-01-01/broken.png", True),
        ("all", "Raw_2026-01-01/broken.png", True),
        ("a", None, False),
        ("a", "Raw_2026-01-01/00000.png", False),
        ("a", "Raw_2026-01-01/' OR ''='", False),
        ("a", "Raw_2026-01-01/\0", False),
    ],
)
def test_what_is_in_quarantine_is_found_by_its_key(
    engine: Engine, name: str, key: str | None, is_its_own: bool
) -> None:
    assert is_of_pipeline(engine, name, sha(BROKEN), key) == is_its_own


def test_what_neither_an_image_nor_a_failure_has_was_forgotten(engine: Engine, runner: Runner) -> None:
    broken = "Raw_2026-01-01/broken.png"
    asked = {"x": sha(picture(0)), "y": sha(picture(7)), broken: sha(BROKEN)}
    request, _ = runner.plan()
    staging = find_staging(engine, request.key)
    with reading(engine) as connection:
        assert forgotten_digests(connection, staging, asked) == {sha(picture(7))}
        assert forgotten_digests(connection, staging, {"x": sha(BROKEN)}) == {sha(BROKEN)}
        assert forgotten_digests(connection, staging, {}) == set()
