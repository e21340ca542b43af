"""Export: files that are whole, of one moment, and few at a time."""

from __future__ import annotations

import csv
import html
import io
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import httpx
import pytest
from pyarrow import parquet
from sqlalchemy import delete, insert, select

from tasks.cache.database import connect, writing
from tasks.cache.schema import image, pipeline, prediction, run, source

PHOTOS = "/afterimage/pipelines/photos"
BULK = "/afterimage/pipelines/bulk"
MANY = 40_000


def rows_of_csv(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))


def all_of_api(client: httpx.Client, address: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    at: str | None = address
    while at is not None:
        found = client.get(at).raise_for_status().json()
        rows += found[name]
        at = found["next"]
    return rows


@pytest.mark.parametrize(
    "query",
    ["", "prefix=cats/", "label=blue&contains=win", "score_from=0.3&margin_to=0.5", "label=red", "order=uncertain"],
)
def test_the_files_the_page_and_the_api_have_the_same_rows(query: str, viewer: httpx.Client) -> None:
    page = viewer.get(f"{PHOTOS}/export?{query}").text
    counted = re.search(r'data-testid="rows-predictions">([\d,]+)<', page)
    assert counted is not None
    links = [html.unescape(link) for link in re.findall(r'href="([^"]*/export/predictions[^"]*)"', page)]
    assert len(links) == 2
    answer = viewer.get(links[0])
    in_csv = rows_of_csv(answer)
    in_parquet = parquet.read_table(io.BytesIO(viewer.get(links[1]).content)).to_pylist()
    in_api = all_of_api(viewer, f"/afterimage/api/pipelines/photos/predictions?limit=50&{query}", "predictions")

    count = int(counted[1].replace(",", ""))
    assert int(answer.headers["x-row-count"]) == count == len(in_csv)
    assert f'filename="afterimage-photos-predictions-{count}.csv"' in answer.headers["content-disposition"]
    by_key = sorted(in_api, key=lambda row: row["key"])
    moments = ("last_modified", "predicted_at", "deleted_at")
    for name in moments:
        for row in by_key:
            row[name] = None if row[name] is None else datetime.fromisoformat(row[name])
    assert by_key == in_parquet
    assert [row["key"] for row in in_csv] == [row["key"] for row in in_parquet]
    assert [float(row["score"]) for row in in_csv] == [row["score"] for row in in_parquet]


@pytest.mark.parametrize(("name", "rows"), [("failures", 3), ("runs", 1), ("reviews", 0)])
def test_the_other_tables_are_exported(name: str, rows: int, viewer: httpx.Client) -> None:
    answer = viewer.get(f"{PHOTOS}/export/{name}")
    assert len(rows_of_csv(answer)) == rows == int(answer.headers["x-row-count"])
    file = parquet.read_table(io.BytesIO(viewer.get(f"{PHOTOS}/export/{name}?format=parquet").content))
    assert file.num_rows == rows
    assert file.column_names == answer.text.splitlines()[0].split(",")
    assert len(all_of_api(viewer, f"/afterimage/api/pipelines/photos/{name}?limit=1", name)) == rows


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("predictions?format=xlsx", 400),
        ("predictions?score_from=2", 400),
        ("predictions?model=zz", 400),
        ("labels", 404),
    ],
)
def test_what_there_is_not_is_refused(wrong: str, status: int, viewer: httpx.Client) -> None:
    """A file with other rows than were asked for would be worse than none."""
    answer = viewer.get(f"{PHOTOS}/export/{wrong}")
    assert answer.status_code == status
    assert "Expected" in answer.text


@pytest.fixture
def bulk(seeded: dict[str, str]) -> Iterator[None]:
    """A pipeline with many images, made by hand; it is taken away again."""
    engine = connect(seeded["AFTERIMAGE_DATABASE"])
    with writing(engine) as connection:
        other = connection.execute(select(run).where(run.c.pipeline == "photos")).mappings().one()
        number = connection.execute(insert(source).values(uri="s3://bulk")).inserted_primary_key[0]
        row = {**other, "pipeline": "bulk", "dag_id": "predict_bulk", "run_no": None, "source_no": number, "prefix": ""}
        connection.execute(insert(run), row)
        used = {"source_no": number, "prefix": "", "model_no": other["model_no"], "updated_at": other["started_at"]}
        connection.execute(insert(pipeline), {"name": "bulk", **used})
        fill(connection, number, other)
    yield
    with writing(engine) as connection:
        for table in (image, pipeline, run):
            connection.execute(delete(table).where(table.c.source_no == number))
        connection.execute(delete(prediction).where(prediction.c.run_no == -1))
        connection.execute(delete(source).where(source.c.source_no == number))
    engine.dispose()


def fill(connection: Any, source_no: int, other: Any) -> None:
    digests = [number.to_bytes(32, "big") for number in range(MANY)]
    moment = {"last_modified": other["started_at"], "recorded_at": other["started_at"]}
    constant = {"source_no": source_no, "etag": "e", "size": 1, **moment}
    images = [{"key": f"{number:06}", "digest": digest, **constant} for number, digest in enumerate(digests)]
    connection.execute(insert(image), images)
    said = {"label_index": 0, "score": 0.5, "margin": 0.5, "entropy": 0.5, "top_k": b""}
    made = {"model_no": other["model_no"], "run_no": -1, "generation": 1, "predicted_at": other["started_at"]}
    connection.execute(insert(prediction), [{"digest": digest, **said, **made} for digest in digests])


@pytest.mark.usefixtures("bulk")
def test_a_third_export_is_refused_at_once_and_one_that_was_left_gives_its_place_back(admin: httpx.Client) -> None:
    address = f"{BULK}/export/predictions"
    with ExitStack() as held:
        for _ in range(2):
            # Not read: the server can write no more than the sockets hold.
            stream = admin.stream("GET", address, headers={"Accept-Encoding": "identity"})
            assert held.enter_context(stream).status_code == 200
        started = time.monotonic()
        third = admin.get(address)
        assert third.status_code == 429
        assert time.monotonic() - started < 2
        assert "Two exports are being written already" in third.text
        page = admin.get(f"{BULK}/export")
        assert page.status_code == 200
        assert "nothing was counted" in page.text
    deadline = time.monotonic() + 10
    while (answer := admin.get(address)).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(rows_of_csv(answer)) == MANY == int(answer.headers["x-row-count"])
    assert admin.get(f"{BULK}/export").status_code == 200
