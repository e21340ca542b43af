"""Browse: cards, filters in the address, pages that go on."""

from __future__ import annotations

import html
import re

import httpx
import pytest

BROWSE = "/afterimage/pipelines/photos/browse"


def keys_of(page: str) -> list[str]:
    """The keys of the cards, in order."""
    return [html.unescape(key) for key in re.findall(r'<span class="key" title="([^"]*)"', page)]


def next_of(page: str) -> str | None:
    """The address of the next page."""
    found = re.search(r'<a href="([^"]*)" rel="next"', page)
    return None if found is None else BROWSE + html.unescape(found[1])


def all_keys(client: httpx.Client, address: str) -> list[str]:
    """The keys of all pages."""
    keys: list[str] = []
    at: str | None = address
    while at is not None:
        answer = client.get(at)
        assert answer.status_code == 200, answer.text
        keys += keys_of(answer.text)
        at = next_of(answer.text)
    return keys


def test_all_pages_together_show_every_image_once(viewer: httpx.Client) -> None:
    assert len(keys_of(viewer.get(BROWSE).text)) == 48
    keys = all_keys(viewer, BROWSE)
    assert len(keys) == 121
    assert keys == sorted(set(keys))
    assert sorted(all_keys(viewer, f"{BROWSE}?order=uncertain")) == keys


def test_filters_narrow(viewer: httpx.Client) -> None:
    cats = all_keys(viewer, f"{BROWSE}?prefix=cats/")
    assert len(cats) == 60
    assert all(key.startswith("cats/") for key in cats)
    assert all_keys(viewer, f"{BROWSE}?contains=win") == ["dogs/twin.png"]
    labels = [all_keys(viewer, f"{BROWSE}?label={label}") for label in ("dark", "red", "green", "blue")]
    assert sorted(key for found in labels for key in found) == all_keys(viewer, BROWSE)
    assert [] in labels
    assert all_keys(viewer, f"{BROWSE}?before=2000-01-01") == []
    assert len(all_keys(viewer, f"{BROWSE}?since=2000-01-01&score_from=0&margin_to=1")) == 121


def test_a_filter_stays_in_the_form_and_in_the_links(viewer: httpx.Client) -> None:
    page = viewer.get(f"{BROWSE}?prefix=cats/&order=uncertain").text
    assert 'name="prefix" value="cats/"' in page
    assert '<option value="uncertain" selected>' in page
    assert "/pipelines/photos/export?prefix=cats%2F&amp;order=uncertain" in page


@pytest.mark.parametrize(
    "wrong",
    [
        "score_from=2",
        "score_to=nan",
        "margin_from=x",
        "since=26.11.2026",
        "before=2026-13-01",
        "order=size",
        "model=zzz",
        "deleted=yes",
        "label=a%00b",
        "after=%00",
    ],
)
def test_a_wrong_value_is_named_and_the_page_is_there(wrong: str, viewer: httpx.Client) -> None:
    answer = viewer.get(f"{BROWSE}?{wrong}")
    assert answer.status_code == 200
    assert f'role="alert">{wrong.partition("=")[0]} is ' in answer.text
    assert len(keys_of(answer.text)) == 48


@pytest.mark.parametrize("after", ["x", "[]", '[1,"zz",null]', '[null,"00",null]', '[0.5,"00",7]', "1"])
def test_a_place_that_no_page_wrote_is_left_out(after: str, viewer: httpx.Client) -> None:
    answer = viewer.get(BROWSE, params={"order": "uncertain", "after": after})
    assert answer.status_code == 200
    assert 'role="alert">after is ' in answer.text


def test_hostile_text_is_shown_as_text(viewer: httpx.Client) -> None:
    hostile = "\"><script>alert(1)</script>\u202e'\n"
    page = viewer.get(BROWSE, params={"label": hostile, "contains": hostile, "score_from": hostile}).text
    assert "<script>alert" not in page


def test_a_pipeline_without_predictions_is_answered_politely(admin: httpx.Client) -> None:
    answer = admin.get("/afterimage/pipelines/nothing/browse")
    assert answer.status_code == 404
    assert "has no predictions yet" in answer.text
