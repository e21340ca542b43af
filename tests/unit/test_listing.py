"""What a run looks at: globs, windows, date templates, and what is counted as ignored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from tasks.listing import KeyFilter, list_pages
from tasks.location import parse_location
from tasks.pipelines import RASTER_SUFFIXES
from tasks.storage.base import Blob, ImageObject
from tasks.window import EVERYTHING, Window

MARCH_1, MARCH_2 = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
IMAGES = KeyFilter(RASTER_SUFFIXES, ())


@dataclass
class FakeStore:
    """Keys with the moment at which they were modified; it remembers which prefixes were asked for."""

    objects: dict[str, datetime]
    page_size: int = 2
    asked: list[str] = field(default_factory=list)
    pages_given: int = 0

    def pages(self, prefix: str) -> Iterator[list[ImageObject]]:
        self.asked.append(prefix)
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        for start in range(0, len(keys), self.page_size):
            self.pages_given += 1
            yield [ImageObject(key, "etag", 1, self.objects[key]) for key in keys[start : start + self.page_size]]

    def read(self, key: str, etag: str | None) -> Blob:
        raise AssertionError("a listing reads nothing")

    def sign(self, key: str, seconds: int) -> str:
        raise AssertionError("a listing signs nothing")


def listed(store: FakeStore, uri: str, window: Window = EVERYTHING, keys: KeyFilter = IMAGES) -> tuple[list[str], int]:
    pages = list(list_pages(store, parse_location(uri), window, keys))
    return [image.key for page in pages for image in page.images], sum(page.ignored for page in pages)


def on_days(*keys: str) -> FakeStore:
    return FakeStore(dict.fromkeys(keys, MARCH_1))


@pytest.mark.parametrize(
    "key", ["a.jpg", "raw/a.JPG", "deep/er/a.Jpeg", "a.png", "a.webp", "a.TIF", "ä b?.gif", "a\n.bmp"]
)
def test_raster_images_are_wanted_in_any_case(key: str) -> None:
    assert IMAGES.wants(key)


@pytest.mark.parametrize("key", ["a.txt", "a.jpg.bak", "jpg", "a.jpgx", "a.svg", "raw/", "raw.jpg/", ""])
def test_other_objects_are_not_wanted(key: str) -> None:
    assert not IMAGES.wants(key)


def test_a_directory_marker_is_no_image_whatever_the_globs_say() -> None:
    assert not KeyFilter(("*",), ()).wants("raw/2026/")


def test_a_star_crosses_slashes() -> None:
    assert KeyFilter(("raw/*/left/*.jpg",), ()).wants("raw/2026/03/left/a/b.jpg")


def test_globs_are_anchored_on_both_sides() -> None:
    keys = KeyFilter(("raw/*.jpg",), ())

    assert not keys.wants("my/raw/a.jpg")
    assert not keys.wants("raw/a.jpg.txt")


def test_exclude_wins_over_include_in_any_case() -> None:
    keys = KeyFilter(("*.jpg",), ("*/Thumbs/*", "*_mask.*"))

    assert keys.wants("a/b.jpg")
    assert not keys.wants("a/thumbs/b.jpg")
    assert not keys.wants("a/b_MASK.jpg")


def test_character_classes_and_question_marks_work() -> None:
    keys = KeyFilter(("cam[12]/?.jpg",), ())

    assert keys.wants("cam2/a.jpg")
    assert not keys.wants("cam3/a.jpg")
    assert not keys.wants("cam1/ab.jpg")


def test_without_a_glob_nothing_is_wanted() -> None:
    assert not KeyFilter((), ()).wants("a.jpg")


def test_ignored_counts_what_the_filter_drops() -> None:
    store = on_days("raw/", "raw/a.jpg", "raw/b.txt", "raw/c.PNG", "raw/d.csv")

    assert listed(store, "s3://bucket/raw/") == (["raw/a.jpg", "raw/c.PNG"], 3)


def test_only_the_prefix_is_listed() -> None:
    store = on_days("raw/a.jpg", "rawer/b.jpg")

    assert listed(store, "s3://bucket/raw/") == (["raw/a.jpg"], 0)
    assert store.asked == ["raw/"]


def test_a_window_is_half_open_on_last_modified() -> None:
    tick = timedelta(microseconds=1)
    store = FakeStore({"a.jpg": MARCH_1 - tick, "b.jpg": MARCH_1, "c.jpg": MARCH_2 - tick, "d.jpg": MARCH_2})

    assert listed(store, "s3://bucket/", Window(MARCH_1, MARCH_2)) == (["b.jpg", "c.jpg"], 0)


def test_what_lies_outside_the_window_is_not_even_ignored() -> None:
    store = FakeStore({"old.txt": MARCH_1, "new.txt": MARCH_2, "new.jpg": MARCH_2})

    assert listed(store, "s3://bucket/", Window(start=MARCH_2)) == (["new.jpg"], 1)


def test_a_template_lists_only_the_prefixes_of_the_days() -> None:
    store = on_days("raw/2026-02-28/a.jpg", "raw/2026-03-01/b.jpg", "raw/2026-03-02/c.jpg", "raw/2026-03-02/d.txt")
    window = Window(MARCH_1, MARCH_2 + timedelta(days=1))

    assert listed(store, "s3://bucket/raw/{{ ds }}/", window) == (["raw/2026-03-01/b.jpg", "raw/2026-03-02/c.jpg"], 1)
    assert store.asked == ["raw/2026-03-01/", "raw/2026-03-02/"]


def test_over_a_template_last_modified_is_not_looked_at() -> None:
    store = FakeStore({"raw/2026-03-01/a.jpg": MARCH_1 - timedelta(days=400)})

    assert listed(store, "s3://bucket/raw/{{ ds }}/", Window(MARCH_1, MARCH_2))[0] == ["raw/2026-03-01/a.jpg"]


def test_a_template_without_a_window_lists_the_stem_and_keeps_what_matches() -> None:
    store = on_days("raw/2026-03-01/a.jpg", "raw/latest/b.jpg", "raw/latest/c.txt", "raw/2026-13-01/d.jpg", "x.jpg")

    assert listed(store, "s3://bucket/raw/{{ ds }}/") == (["raw/2026-03-01/a.jpg"], 0)
    assert store.asked == ["raw/"]


def test_a_template_with_one_bound_filters_the_days_below_the_stem() -> None:
    store = on_days("raw/2026-02-28/a.jpg", "raw/2026-03-01/b.jpg", "raw/2026-03-02/c.jpg")

    assert listed(store, "s3://bucket/raw/{{ ds }}/", Window(start=MARCH_1))[0] == [
        "raw/2026-03-01/b.jpg",
        "raw/2026-03-02/c.jpg",
    ]


def test_a_day_that_is_not_there_is_empty() -> None:
    assert listed(on_days(), "s3://bucket/raw/{{ ds }}/", Window(MARCH_1, MARCH_2)) == ([], 0)


def test_pages_are_passed_on_as_they_come() -> None:
    store = on_days(*(f"{number:03}.jpg" for number in range(100)))

    first = next(list_pages(store, parse_location("s3://bucket/"), EVERYTHING, IMAGES))

    assert [image.key for image in first.images] == ["000.jpg", "001.jpg"]
    assert store.pages_given == 1


def test_an_empty_page_does_not_end_the_listing() -> None:
    store = on_days("a.txt", "b.txt", "c.jpg")

    pages = list(islice(list_pages(store, parse_location("s3://bucket/"), EVERYTHING, IMAGES), 2))

    assert [(len(page.images), page.ignored) for page in pages] == [(0, 2), (1, 0)]


@pytest.mark.parametrize("key", ["a\0b.jpg", "\ud800.jpg"])
def test_a_key_that_no_database_can_hold_is_ignored_and_the_page_goes_on(key: str) -> None:
    assert listed(on_days("a.jpg", key, "z.jpg"), "s3://bucket/") == (["a.jpg", "z.jpg"], 1)
