"""The Compare page: the counts of every image, and the images of a cell."""

from __future__ import annotations

import html
import re
from collections import Counter
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from sqlalchemy import delete

from tasks.cache.database import connect, writing
from tasks.cache.pages.reviewing import save_review
from tasks.cache.pages.scope import PipelineScope, pipeline_scope
from tasks.cache.schema import review
from tests.pages.conftest import COMPARED_IMAGES, HOSTILE_KEY
from tests.pairs import labels_by_key
from tests.site import Site

PAGE = "/afterimage/pipelines/compared/compare"


class Truth:
    """What the page should say, counted one image at a time."""

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        scope = pipeline_scope(self.engine, "compared")
        assert scope is not None
        self.scope: PipelineScope = scope
        self.current = scope.current
        self.before = next(model for model in scope.models if model != scope.current)
        one, two = (labels_by_key(self.engine, scope, model.model_no) for model in (self.before, self.current))
        self.answers = {key: (one[key][1], two[key][1]) for key in one}
        self.differ = Counter(pair for pair in self.answers.values() if pair[0] != pair[1])


@pytest.fixture(scope="module")
def truth(site: Site, seeded: dict[str, str]) -> Truth:
    return Truth(seeded["AFTERIMAGE_DATABASE"])


def cards(client: httpx.Client, **query: str) -> list[str]:
    """The keys on all pages of a cell."""
    found: list[str] = []
    address: str | None = f"{PAGE}?{urlencode(query)}"
    while address is not None:
        page = client.get(address).text
        found += [html.unescape(key) for key in re.findall(r'class="key" title="([^"]*)"', page)]
        onward = re.search(r'<a href="([^"#]*)#images" data-testid="next"', page)
        address = None if onward is None else PAGE + html.unescape(onward[1])
    return found


def test_counts_are_those_of_every_image(viewer: httpx.Client, truth: Truth) -> None:
    page = viewer.get(PAGE).text
    agreed = COMPARED_IMAGES - truth.differ.total()
    assert 0 < agreed < COMPARED_IMAGES
    told = re.sub(r"<[^>]+>|\s+", " ", re.search(r'data-testid="agreement">(.*?)</p>', page, re.DOTALL)[1])  # type: ignore[index]
    assert f"{agreed / COMPARED_IMAGES:.1%}" in told
    assert f"of {COMPARED_IMAGES} images" in told
    assert f"{truth.differ.total()} differ" in told
    cells = re.findall(r'from=(\w+)&amp;to=(\w+)#images" title="[^"]*">(\d+)</a>', page)
    assert {(one, two): int(images) for one, two, images in cells} == truth.differ
    assert "heat-9" in page or "heat-8" in page


def test_a_cell_leads_to_its_images(viewer: httpx.Client, truth: Truth) -> None:
    odd = HOSTILE_KEY.replace("\n", "\\n").replace("\u202e", "\\u202e")
    for (one, two), images in truth.differ.items():
        wanted = [key if key != HOSTILE_KEY else odd for key, pair in truth.answers.items() if pair == (one, two)]
        found = cards(viewer, **{"from": one, "to": two})
        assert sorted(found) == sorted(wanted)
        assert len(found) == images
    assert len(cards(viewer)) == truth.differ.total()
    assert cards(viewer, **{"from": "a label that none has"}) == []
    assert cards(viewer, to="\0") == []


def test_models_may_be_chosen_and_turned_round(viewer: httpx.Client, truth: Truth) -> None:
    turned = {"a": truth.current.model_id, "b": truth.before.model_id}
    (pair, images), *_ = truth.differ.most_common(1)
    assert len(cards(viewer, **turned, **{"from": pair[1], "to": pair[0]})) == images
    assert viewer.get(PAGE, params={"a": truth.current.model_id}).status_code == 200
    same = viewer.get(PAGE, params={"a": truth.current.model_id, "b": truth.current.model_id})
    assert same.status_code == 422
    assert "choose two models" in same.text
    assert viewer.get(PAGE, params={"a": "0" * 64}).status_code == 404


def test_accuracy_is_that_of_the_reviews(viewer: httpx.Client, truth: Truth) -> None:
    assert "no review of an image" in viewer.get(PAGE).text
    rows: dict[str, Any] = labels_by_key(truth.engine, truth.scope, truth.current.model_no)
    digests = {row["key"]: row["digest"] for row in _predictions(truth)}
    try:
        for number, key in enumerate(sorted(rows)[:10]):
            said = rows[key][1] if number < 8 else "violet"
            save_review(truth.engine, "compared", digests[key], said, truth.current.model_no, "uma")
        page = re.sub(r"\s+", " ", viewer.get(PAGE).text)
        assert '80.0%</td> <td class="number">49.0% to 94.3%</td> <td class="number">10</td>' in page
    finally:
        with writing(truth.engine) as connection:
            connection.execute(delete(review))


def _predictions(truth: Truth) -> list[dict[str, Any]]:
    from tasks.cache import contract

    rows = contract.current_predictions(truth.engine, "compared")
    return [row | {"digest": bytes.fromhex(row["digest"])} for row in rows]


def test_one_model_is_told_how_a_second_comes_about(viewer: httpx.Client) -> None:
    page = viewer.get("/afterimage/pipelines/photos/compare")
    assert page.status_code == 200
    assert 'data-testid="single"' in page.text
    assert "the only model" in page.text
