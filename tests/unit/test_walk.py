"""A listing's order: none runs for ever, none ends early."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import TransientStorageError
from tasks.storage import walk
from tasks.storage.walk import Walk


def ordered() -> Walk:
    return Walk("s3://bucket/raw/", is_ordered=True)


def follow(listing: Walk, pages: list[tuple[list[str], str]]) -> None:
    for keys, token in pages:
        listing.follow(keys, True, token)


@given(st.lists(st.text(min_size=1, max_size=6), unique=True), st.integers(1, 5))
def test_every_listing_in_byte_order_is_followed_to_its_end(keys: list[str], size: int) -> None:
    keys = sorted(keys, key=lambda key: key.encode("utf-8", "surrogatepass"))
    pages = [keys[start : start + size] for start in range(0, len(keys), size)] or [[]]
    listing = ordered()

    found = [listing.follow(page, page is not pages[-1], f"token {number}") for number, page in enumerate(pages)]

    assert found == [f"token {number}" for number in range(len(pages) - 1)] + [None]


@pytest.mark.parametrize("page", [["a"], ["c", "d"], ["d", "e", "e"], ["d", "f", "e"]])
def test_keys_that_do_not_grow_are_an_error_that_names_page_keys_and_what_to_do(page: list[str]) -> None:
    listing = ordered()
    listing.follow(["b", "c"], True, "1")

    with pytest.raises(TransientStorageError, match=r"Page 2 .*'s3://bucket/raw/' turns back: '.' follows '.'.*update"):
        listing.follow(page, True, "2")


ORDERS = {"bytes": lambda key: key, "folders": lambda key: key.replace("/", "\0")}
FEW_KEYS = st.text("a/-.", min_size=1, max_size=4)


@given(keys=st.lists(FEW_KEYS, max_size=8), order=st.sampled_from(["bytes", "folders", "none"]), size=st.integers(1, 4))
@example(["a/a", "a-", "b"], "folders", 2)
def test_a_page_in_one_go_is_judged_as_key_by_key(keys: list[str], order: str, size: int) -> None:
    """One order must hold from the first pair to the last, over all pages."""
    keys = sorted(set(keys), key=ORDERS[order]) if order in ORDERS else keys
    pages = [keys[start : start + size] for start in range(0, len(keys), size)]
    holding, turn = list(ORDERS.values()), None
    for one, other in itertools.pairwise(keys):
        holding = [each for each in holding if each(one) < each(other)]
        if not holding:
            turn = f"turns back: {other!r} follows {one!r}"
            break
    listing = ordered()
    if turn is None:
        follow(listing, [(page, f"token {number}") for number, page in enumerate(pages)])
        return
    with pytest.raises(TransientStorageError, match=re.escape(turn)):
        follow(listing, [(page, f"token {number}") for number, page in enumerate(pages)])


def test_an_order_holds_over_empty_pages() -> None:
    listing = ordered()
    listing.follow(["b"], True, "1")
    listing.follow([], True, "2")

    with pytest.raises(TransientStorageError, match=r"Page 3 .* turns back"):
        listing.follow(["a"], True, "3")


@pytest.mark.parametrize("token", [None, ""])
def test_more_without_a_token_is_an_error(token: str | None) -> None:
    with pytest.raises(TransientStorageError, match="says that more follows, and not where"):
        ordered().follow(["a"], True, token)


@given(lead=st.integers(0, 30), circle=st.integers(1, 30), with_keys=st.booleans())
def test_every_circle_is_found_soon(lead: int, circle: int, with_keys: bool) -> None:
    places = itertools.chain(range(lead), itertools.cycle(range(lead, lead + circle)))
    pages = [
        ([f"key {place}"] if with_keys else [], f"token {place}")
        for place in itertools.islice(places, 4 * (lead + circle) + 4)
    ]

    with pytest.raises(TransientStorageError, match="leads in a circle"):
        follow(Walk("s3://bucket--x-s3/", is_ordered=False), pages)


def test_empty_pages_under_ever_new_tokens_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "EMPTY_PAGES", 10)

    with pytest.raises(TransientStorageError, match="the 11th in a row without a key"):
        follow(ordered(), [([], f"token {number}") for number in range(20)])


def test_a_store_of_folders_may_go_through_them_one_by_one() -> None:
    """As SeaweedFS does; mixing both orders is neither."""
    listing = ordered()
    follow(listing, [(["a/x", "a/y"], "1"), (["a-b/x", "b"], "2")])

    with pytest.raises(TransientStorageError, match="turns back"):
        listing.follow(["c-d", "c/e"], True, "3")


def test_a_store_that_does_not_begin_where_it_was_asked_to_is_found_out() -> None:
    """It would give every range of a bucket all keys of the bucket."""
    listing = Walk("s3://bucket/raw/", is_ordered=True, after="m")

    with pytest.raises(TransientStorageError, match=r"Page 1 .* turns back: 'a' follows 'm'"):
        listing.follow(["a", "b"], True, "1")
