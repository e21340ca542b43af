"""Where a range of keys is cut: always between, always a text that a store and a database take, whatever the keys are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.listing.pages import can_be_stored
from tasks.listing.splitting import MAX_KEY_BYTES, PROBES, FirstKey, is_in_byte_order, left, middle, split_point

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
NARROW = st.text(st.sampled_from("\x01\x02/09:aAz{\x7f\u00e9\ud7ff\ue000\U0010fffe\U0010ffff"), max_size=6)
SKEWED = st.builds(
    "raw/{}/{:02}/img_{:06}.jpg".format, st.sampled_from((2024, 2026)), st.integers(1, 12), st.integers(0, 999_999)
)
KEYS = SKEWED | NARROW.map("raw/{}".format) | TEXT.map("raw/{}".format)


def by_bytes(text: str) -> bytes:
    return text.encode()


@settings(max_examples=500)
@given(low=TEXT | NARROW | SKEWED, high=TEXT | NARROW | SKEWED)
@example(low="", high="\x01")
@example(low="a", high="a\x01")
@example(low="\ud7ff", high="\ue000")
@example(low="a" + "\U0010ffff", high="b")
@example(low="x" * 1024, high="x" * 1023 + "y")
def test_a_middle_lies_strictly_between_in_byte_order_and_can_be_stored(low: str, high: str) -> None:
    found = middle(low, high)
    if low >= high:
        assert found is None
    elif found is None:  # Only a text with a NUL or one too long would fit.
        assert high == low + "\x01" or len(low.encode()) >= MAX_KEY_BYTES
    else:
        assert by_bytes(low) < by_bytes(found) < by_bytes(high)
        assert can_be_stored(found)
        assert len(found.encode()) <= MAX_KEY_BYTES


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ("img_000123", "img_999999", "img_4"),
        ("img_3999", "img_4210", "img_4"),
        ("img_0", "img_:", "img_5"),
        ("img_0", "img_\U0010ffff", "img_:"),
        ("raw/a", "raw/{", "raw/n"),
        ("a9", "b", "a:"),
    ],
)
def test_a_middle_is_short_and_where_a_person_would_cut(low: str, high: str, expected: str) -> None:
    assert middle(low, high) == expected


class Keys:
    """Keys in byte order, and how often the first behind another one was asked for."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = sorted(set(keys))
        self.asked = 0

    def first(self, prefix: str, after: str | None) -> str | None:
        self.asked += 1
        start = 0 if after is None else bisect_right(self.keys, after)
        return next((key for key in self.keys[start:] if key.startswith(prefix)), None)


@settings(max_examples=300)
@given(st.lists(KEYS, max_size=40), st.data())
def test_a_cut_has_keys_on_both_sides_and_is_found_wherever_there_is_one(found: list[str], data: st.DataObject) -> None:
    keys = Keys(found)
    places = [None, *keys.keys]
    low = data.draw(st.sampled_from(places))
    high = data.draw(st.sampled_from(places))
    inside = [key for key in keys.keys if (low is None or key > low) and (high is None or key <= high)]
    at = split_point(keys.first, "raw/", low, high)
    assert keys.asked <= PROBES
    if at is None:
        assert len(inside) < 3 or any("\x01" in key or "\U0010ffff" in key for key in inside)
    else:
        assert can_be_stored(at)
        assert sum(key <= at for key in inside) >= 2
        assert sum(key > at for key in inside) >= 1


@pytest.mark.parametrize("length", [1_010, 1_020, 1_024])
def test_nothing_is_asked_behind_a_text_that_is_too_long_for_a_key(length: int) -> None:
    keys = Keys([f"raw/{'x' * (length - 10)}{number:06}" for number in range(100)])

    def first(prefix: str, after: str | None) -> str | None:
        assert after is None or len(after.encode()) <= MAX_KEY_BYTES
        return keys.first(prefix, after)

    assert (split_point(first, "raw/", None, None) is not None) == (length <= 1_020)


def cuts(keys: Keys, count: int) -> list[int]:
    """How many keys each range has after `count` cuts, each of them in the largest one."""
    ranges: list[tuple[str | None, str | None]] = [(None, None)]

    def size(part: tuple[str | None, str | None]) -> int:
        return sum((part[0] is None or key > part[0]) and (part[1] is None or key <= part[1]) for key in keys.keys)

    for _ in range(count):
        ranges.sort(key=size)
        low, high = ranges.pop()
        at = split_point(keys.first, "raw/", low, high)
        ranges += [(low, high)] if at is None else [(low, at), (at, high)]
    return sorted(map(size, ranges))


@pytest.mark.parametrize(
    "keys",
    [
        [f"raw/2026/11/26/img_{number:06}.jpg" for number in range(4_000)],
        ["raw/", *(f"raw/{number % 31:02}/{number:08x}.png" for number in range(4_000))],
        [f"raw/{'abc'[min(2, number // 20)]}/{number:06}.jpg" for number in range(4_000)],
        [f"raw/{chr(0x4E00 + number)}.png" for number in range(4_000)],
        [f"raw/{number * 2654435761 % 2**32:08x}" for number in range(4_000)],
    ],
    ids=["one day", "days and a marker", "one large folder", "Chinese", "hashes"],
)
def test_sixteen_workers_find_work_for_each_in_keys_as_they_are(keys: list[str]) -> None:
    asked = Keys(keys)
    sizes = cuts(asked, 40)
    assert len(sizes) == 41
    assert sizes[-1] < len(asked.keys) / 6, sizes
    assert asked.asked / 40 < 25, "LISTs for a cut"


def folder_by_folder(keys: Keys) -> FirstKey:
    """As stores of folders list: `a/x` before `a-b`."""

    def order(key: str) -> str:
        return key.replace("/", "\0")

    def first(prefix: str, after: str | None) -> str | None:
        behind = sorted((key for key in keys.keys if after is None or order(key) > order(after)), key=order)
        return next((key for key in behind if key.startswith(prefix)), None)

    return first


def test_a_store_of_folders_and_one_that_begins_anew_are_found_out() -> None:
    keys = Keys(["raw/a/x", "raw/a/y", "raw/a-b", "raw/b"])
    assert is_in_byte_order(keys.first, "raw/")
    assert is_in_byte_order(Keys([]).first, "raw/")
    assert is_in_byte_order(Keys(["raw/1", "raw/2", "raw/3", "raw/4"]).first, "raw/")
    assert not is_in_byte_order(folder_by_folder(Keys(["raw/a/x", "raw/b"])), "raw/")
    assert not is_in_byte_order(lambda prefix, _after: keys.first(prefix, None), "raw/")
    assert not is_in_byte_order(lambda _prefix, _after: "raw/1", "raw/")


def test_what_is_left_grows_with_the_way_to_go() -> None:
    half = left("raw/", "raw/0", "raw/5", "raw/:", 1_000)
    assert 500 < half < 2_000
    assert left("raw/", "raw/0", "raw/2", "raw/:", 1_000) > half > left("raw/", "raw/0", "raw/8", "raw/:", 1_000)
    assert left("raw/", None, "raw/5", None, 1_000) > 1_000, "an open end"
    assert left("raw/", "raw/0", "raw/:", "raw/:", 1_000) == 0
