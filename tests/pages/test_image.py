"""The page of an image, and that it tells nothing of what its reader may not see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import delete, insert, select

from tasks.cache.database import connect, writing
from tasks.cache.schema import image, pipeline, prediction, review, run

IMAGE = "/afterimage/pipelines/photos/image"
ODD = [
    "odd/<script>alert(1)</script>\"'.png",
    "odd/a%2Fb#c?d&e=f.png",
    "odd/\u202eline\nbreak.png",
    "odd/" + "é" * 1000,
]


@pytest.fixture
def odd(seeded: dict[str, str]) -> Iterator[None]:
    """Images under hostile keys with the bytes of the first one; they are taken away again."""
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:
        photos = connection.execute(select(pipeline).where(pipeline.c.name == "photos")).one()
        found = (
            connection.execute(select(image).where(image.c.key == photos.prefix + "dogs/0000.png")).mappings().first()
        )
        assert found is not None
        connection.execute(insert(image), [{**found, "key": photos.prefix + key} for key in ODD])
    yield
    with writing(engine) as connection:
        connection.execute(delete(image).where(image.c.key.in_([photos.prefix + key for key in ODD])))
    engine.dispose()


def test_everything_about_an_image(viewer: httpx.Client) -> None:
    page = viewer.get(IMAGE, params={"key": "dogs/0000.png"}).text
    assert page.count('data-testid="prediction"') == 3  # photos, others, secret
    assert re.search(r"<th scope=\"row\">digest</th><td class=\"key\">[0-9a-f]{64}<", page)
    assert 'aria-label="blue: ' in page
    assert "margin 0." in page
    assert "UTC · run" in page
    assert "bytes</td>" in page


def test_who_may_not_see_a_pipeline_sees_neither_its_models_nor_its_twins(
    narrow: httpx.Client, admin: httpx.Client
) -> None:
    params = {"key": "dogs/0000.png"}
    all_of_it, some = admin.get(IMAGE, params=params).text, narrow.get(IMAGE, params=params).text
    assert "/hidden" in all_of_it
    assert "/hidden" not in some
    assert all_of_it.count('data-testid="twin"') == some.count('data-testid="twin"') + 1
    assert "dogs/twin.png" in some
    assert (all_of_it.count('data-testid="prediction"'), some.count('data-testid="prediction"')) == (3, 2)

    api = IMAGE.replace("/afterimage", "/afterimage/api")
    assert len(admin.get(api, params=params).json()["twins"]) == 2
    found = narrow.get(api, params=params).json()
    assert [twin["key"] for twin in found["twins"]] == ["dogs/twin.png"]
    assert "secret" not in str(found)


def test_a_key_that_only_failed_has_a_page(viewer: httpx.Client) -> None:
    answer = viewer.get(IMAGE, params={"key": "dogs/broken-0.png"})
    assert answer.status_code == 200
    assert "truncated" in answer.text
    assert "No model has predicted it." in answer.text


@pytest.mark.parametrize("key", ["nothing.png", "", "dogs/\0", "../hidden/0.png", "/etc/passwd"])
def test_an_unknown_key_is_404(key: str, viewer: httpx.Client) -> None:
    answer = viewer.get(IMAGE, params={"key": key})
    assert answer.status_code == 404
    assert "has no image under the key" in answer.text


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("key", ODD)
def test_hostile_keys_are_text_and_can_be_followed(key: str, viewer: httpx.Client) -> None:
    cards = viewer.get("/afterimage/pipelines/photos/browse", params={"prefix": "odd/"}).text
    link = f"{IMAGE}?key={quote(key, safe='')}"
    assert f'href="{link}"' in cards
    page = viewer.get(link)
    assert page.status_code == 200
    for text in (cards, page.text):
        assert "<script>alert" not in text
        assert "\u202e" not in text
    # With its twins, of which there are so many as keys.
    assert page.text.count('data-testid="twin"') == len(ODD) + 2


def test_what_a_person_said_is_shown(viewer: httpx.Client, seeded: dict[str, str]) -> None:
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:
        found = connection.execute(select(image.c.digest).where(image.c.key.endswith("cats/0003.png"))).scalar_one()
        said = {"label": "<b>cat", "model_no": 1, "reviewer": "ann", "reviewed_at": datetime.now(UTC)}
        connection.execute(insert(review), {"pipeline": "photos", "digest": found, **said})
    try:
        page = viewer.get(IMAGE, params={"key": "cats/0003.png"}).text
        assert "<strong>&lt;b&gt;cat</strong>, said by ann" in page
        rows = viewer.get("/afterimage/api/pipelines/photos/reviews").json()["reviews"]
        assert [(row["key"], row["label"]) for row in rows] == [("cats/0003.png", "<b>cat")]
        assert viewer.get("/afterimage/api/pipelines/others/reviews").json()["reviews"] == []
    finally:
        with writing(engine) as connection:
            connection.execute(delete(review).where(review.c.digest == found))
        engine.dispose()


def test_a_run_in_airflow_is_linked(viewer: httpx.Client, seeded: dict[str, str]) -> None:
    """The seeded runs are the command line's; this one becomes a run of the DAG for a moment."""
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:
        number = connection.execute(select(run.c.run_no).where(run.c.pipeline == "photos")).scalars().first()
        before = connection.execute(select(run.c.dag_id, run.c.run_id).where(run.c.run_no == number)).one()
        named = {"dag_id": "predict_photos", "run_id": "manual__2026-11-26T00:00:00+00:00"}
        connection.execute(run.update().where(run.c.run_no == number).values(**named))
        assert connection.execute(select(prediction).where(prediction.c.run_no == number)).first() is not None
    try:
        page = viewer.get(IMAGE, params={"key": "cats/0001.png"}).text
        link = "/dags/predict_photos/runs/manual__2026-11-26T00%3A00%3A00%2B00%3A00"
        assert f'<a data-airflow href="/afterimage/..{link}">' in page
    finally:
        with writing(engine) as connection:
            connection.execute(run.update().where(run.c.run_no == number).values(**before._mapping))
        engine.dispose()
